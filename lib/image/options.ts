/**
 * What can be said when an image is opened or created.
 *
 * @module
 */

import type { BackingPolicy } from "./backing.ts";
import type { Preallocation } from "./preallocation.ts";
import type { LayoutOptions } from "../format/layout.ts";
import type { Durability } from "../metadata/ordered_file.ts";

export type { Durability };

/** How an image is used, whether it is opened or created. */
export interface ImageOptions {
  /**
   * How much `flush()` promises. `full` makes everything durable, in the order that a crash cannot hurt. `none` leaves that
   * to the host until the image is closed: faster, for an image that is worth nothing before it is complete.
   *
   * @default {"full"}
   */
  readonly durability?: Durability;
  /**
   * The most bytes of L2 tables to keep in memory. By default all of them up to 32 MiB.
   */
  readonly cacheSize?: number;
  /**
   * Whether a backing file may be opened. `create` allows the one that it is given.
   *
   * @default {"refuse"}
   */
  readonly backing?: BackingPolicy;
  /**
   * Whether to lock the file, so that two programs do not write it at once.
   *
   * @default {true}
   */
  readonly lock?: boolean;
}

/** How {@linkcode Qcow2File.open} opens an image. */
export interface OpenOptions extends ImageOptions {
  /**
   * Whether the image may be changed.
   *
   * @default {false}
   */
  readonly write?: boolean;
}

/** How {@linkcode Qcow2File.createSnapshot} makes a snapshot. */
export interface SnapshotOptions {
  /**
   * When the snapshot was taken.
   *
   * @default {new Date()}
   */
  readonly date?: Date;
}

/** How {@linkcode Qcow2File.create} makes an image. */
export interface CreateOptions extends ImageOptions, Omit<LayoutOptions, "size"> {
  /** Virtual size in bytes, rounded up to a multiple of 512. The backing file's where there is one and nothing is said. */
  readonly size?: number;
  /** Name of a backing file, as it shall stand in the image: relative to the image's folder, or absolute. */
  readonly backingFile?: string;
  /** Format of the backing file, such as `raw` or `qcow2`; must be said where there is one. */
  readonly backingFormat?: string;
  /**
   * What is allocated ahead of use; not together with a backing file.
   *
   * @default {"off"}
   */
  readonly preallocation?: Preallocation;
  /**
   * Whether to refuse where the file exists already.
   *
   * @default {false}
   */
  readonly createNew?: boolean;
}
