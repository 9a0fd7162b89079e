/**
 * The bounds on everything whose size an image states, checked before memory is reserved for it.
 *
 * They are QEMU's, so that every image QEMU opens opens here too.
 *
 * @module
 */

const KIB = 1024;
const MIB = 1024 * KIB;

/** The smallest cluster: 512 bytes (format: `cluster_bits` must not be less than 9). */
export const MIN_CLUSTER_BITS = 9;
/** The largest cluster: 2 MiB (QEMU's limit). */
export const MAX_CLUSTER_BITS = 21;
/** The smallest cluster of an image with extended L2 entries: 16 KiB, so that a subcluster is at least 512 bytes. */
export const MIN_CLUSTER_BITS_EXTENDED_L2 = 14;
/** The widest refcount: 2^6 = 64 bits. */
export const MAX_REFCOUNT_ORDER = 6;
/** The longest L1 table in bytes. */
export const MAX_L1_TABLE_LENGTH = 32 * MIB;
/** The longest refcount table in bytes. */
export const MAX_REFCOUNT_TABLE_LENGTH = 8 * MIB;
/** The most snapshots. */
export const MAX_SNAPSHOT_COUNT = 65536;
/** The longest snapshot table in bytes. */
export const MAX_SNAPSHOT_TABLE_LENGTH = 64 * MIB;
/** The most extra data of one snapshot in bytes. */
export const MAX_SNAPSHOT_EXTRA_LENGTH = 1024;
/** The most bitmaps. */
export const MAX_BITMAP_COUNT = 65535;
/** The longest bitmap directory in bytes. */
export const MAX_BITMAP_DIRECTORY_LENGTH = 64 * MIB;
/** The most clusters that hold one bitmap's data. */
export const MAX_BITMAP_TABLE_ENTRY_COUNT = 0x8000000 / 8;
/** The longest name of a bitmap in bytes. */
export const MAX_BITMAP_NAME_LENGTH = 1023;
/** The most bytes that the clusters of one bitmap take. */
export const MAX_BITMAP_LENGTH = 512 * MIB;
/** The finest bitmap: one bit for 512 bytes. */
export const MIN_BITMAP_GRANULARITY_BITS = 9;
/** The coarsest bitmap: one bit for 2 GiB. */
export const MAX_BITMAP_GRANULARITY_BITS = 31;
/** The longest name of a backing file in bytes. */
export const MAX_BACKING_FILE_NAME_LENGTH = 1023;
/** The first host offset that the tables cannot express: they hold bits 9 to 55. */
export const MAX_TABLE_HOST_OFFSET = 2 ** 56;
