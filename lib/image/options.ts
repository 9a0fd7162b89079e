/**
 * What can be said when an image is opened or created.
 *
 * @module
 */

import type { BackingPolicy } from "./backing.ts";
import type { DataFilePolicy, DataFileReference, ExistingDataFile } from "./data_file.ts";
import type { Preallocation } from "./preallocation.ts";
import type { BlockFile } from "../storage/block_file.ts";
import type { LayoutOptions } from "../format/layout.ts";
import type { CheckFinding } from "../metadata/findings.ts";
import type { Durability } from "../metadata/ordered_file.ts";

export type { Durability };

/** How an image is used, whether it is opened or created. */
export interface ImageOptions {
  /**
   * How much `flush()` promises. `full` makes everything durable, in the order that a crash cannot hurt. `none` leaves that
   * to the host until the image is closed: faster, for an image that is worth nothing before it is complete. `unsafe` leaves it to
   * the host even then, for an image that could be made again: a power cut soon after may leave anything in its place.
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
  /**
   * Whether an external data file may be opened, be it the image's or that of an image below.
   *
   * @default {"refuse"}
   */
  readonly dataFile?: DataFilePolicy;
  /** Called with what is found in an image that was not closed properly, and mended before it is written. */
  readonly onFinding?: (finding: CheckFinding) => void;
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
   * What is allocated ahead of use; together with a backing file only where `extendedL2` is set.
   *
   * @default {"off"}
   */
  readonly preallocation?: Preallocation;
  /**
   * Name of an external data file, as it shall stand in the image: relative to the image's folder, or absolute. It is made
   * where it does not exist. Version 3 only.
   */
  readonly dataFile?: string;
  /**
   * What happens where the data file exists and holds anything but zeroes: it is refused; its content is kept (as the content
   * of the disk with `dataFileRaw` or `preallocation`); or it is thrown away.
   *
   * @default {"refuse"}
   */
  readonly existingDataFile?: ExistingDataFile;
  /** Opens the data file in place of the name's own meaning, such as a file in memory. */
  readonly openDataFile?: (reference: DataFileReference) => BlockFile;
  /**
   * Whether to refuse where the file exists already.
   *
   * @default {false}
   */
  readonly createNew?: boolean;
}
