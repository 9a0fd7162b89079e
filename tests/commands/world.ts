/**
 * {@linkcode World}: which images there are, so that commands can be made up that fit them.
 *
 * @module
 */

/** What is known of an image. */
export interface ImageState {
  /** Name of its file. */
  readonly name: string;
  /** Its format. */
  readonly format: "raw" | "qcow2";
  /** Virtual size in bytes. */
  readonly size: number;
  /** Format version; 0 for raw images. */
  readonly version: 0 | 2 | 3;
  /** Cluster size in bytes; a sector for raw images. */
  readonly clusterSize: number;
  /** Width of refcounts. */
  readonly refcountBits: number;
  /** Whether L2 entries are extended. */
  readonly extendedL2: boolean;
  /** Names and IDs of its snapshots. */
  readonly snapshots: readonly string[];
  /** Whether the disk has got another size since the first of them was made. */
  readonly wasResized: boolean;
  /** Whether the disk was longer before. */
  readonly wasLonger: boolean;
  /** Names of its bitmaps. */
  readonly bitmaps: readonly string[];
  /** Name of its backing file. */
  readonly backing: string | undefined;
  /** The format that it gives for that. */
  readonly backingFormat: string | undefined;
  /** Name of its data file. */
  readonly dataFile: string | undefined;
}

/** What `qemu-img info --output=json` says, as far as it matters here. */
interface Info {
  readonly format: string;
  readonly "virtual-size": number;
  readonly "cluster-size"?: number;
  readonly snapshots?: readonly { readonly id: string; readonly name: string }[];
  readonly "backing-filename"?: string;
  readonly "backing-filename-format"?: string;
  readonly "format-specific"?: {
    readonly data?: {
      readonly compat?: string;
      readonly "refcount-bits"?: number;
      readonly "extended-l2"?: boolean;
      readonly "data-file"?: string;
      readonly bitmaps?: readonly { readonly name: string }[];
    };
  };
}

const SECTOR_SIZE = 512;

/** The images in a folder, by the names of their files. */
export class World {
  readonly #images = new Map<string, ImageState>();
  readonly #uncertain = new Set<string>();
  readonly #blank = new Set<string>();
  /** The names of all data files that there are, also of those that no image has any more. */
  dataFiles: readonly string[] = [];

  /** All images. */
  get images(): readonly ImageState[] {
    return [...this.#images.values()];
  }

  /** The images of a format. */
  ofFormat(format: "raw" | "qcow2"): readonly ImageState[] {
    return this.images.filter((image) => image.format === format);
  }

  /** An image by its name. */
  find(name: string): ImageState | undefined {
    return this.#images.get(name);
  }

  /** An image and all images beneath it, as far as they are there. A loop ends where it begins anew. */
  chainOf(name: string): readonly ImageState[] {
    const chain: ImageState[] = [];
    for (let next = this.find(name); next !== undefined && !chain.includes(next);) {
      chain.push(next);
      next = next.backing === undefined ? undefined : this.find(next.backing);
    }
    return chain;
  }

  /** Whether it is not certain that an image, or one beneath it, has the same clusters allocated in both folders. */
  mayDifferInAllocation(name: string): boolean {
    return this.chainOf(name).some((image) => this.#uncertain.has(image.name));
  }

  /** Whether a file stands beneath an image of which it is not certain that the same clusters are allocated in both folders. */
  isBeneathUncertain(name: string): boolean {
    return this.images.some((image) => {
      const chain = this.chainOf(image.name);
      const above = chain.slice(0, Math.max(0, chain.findIndex((beneath) => beneath.name === name)));
      return above.some((image) => this.#uncertain.has(image.name));
    });
  }

  /** Whether an image was made without content, and is as it was then. */
  isBlank(name: string): boolean {
    return this.#blank.has(name) && this.find(name)?.backing === undefined;
  }

  /** Says whether an image has just been made without content. */
  setBlank(name: string, isBlank: boolean): void {
    if (isBlank) this.#blank.add(name);
    else this.#blank.delete(name);
  }

  /** Says whether it is certain that an image has the same clusters allocated in both folders. */
  setAllocation(name: string, certain: boolean): void {
    if (certain) this.#uncertain.delete(name);
    else this.#uncertain.add(name);
  }

  /**
   * Takes note of what became of a file.
   *
   * @param name Its name.
   * @param infoJson What `qemu-img info --output=json` says of it; `undefined` where it is no image.
   */
  note(name: string, infoJson: string | undefined): void {
    const before = this.find(name);
    this.#images.delete(name);
    if (infoJson === undefined) return;
    const info: Info = JSON.parse(infoJson);
    if (info.format !== "raw" && info.format !== "qcow2") return;
    const data = info["format-specific"]?.data ?? {};
    const isQcow2 = info.format === "qcow2";
    const hadSnapshots = before !== undefined && before.snapshots.length > 0 && info.snapshots !== undefined;
    this.#images.set(name, {
      name,
      format: info.format,
      size: info["virtual-size"],
      version: !isQcow2 ? 0 : data.compat === "0.10" ? 2 : 3,
      clusterSize: isQcow2 ? info["cluster-size"] ?? SECTOR_SIZE : SECTOR_SIZE,
      refcountBits: data["refcount-bits"] ?? 0,
      extendedL2: data["extended-l2"] ?? false,
      snapshots: (info.snapshots ?? []).flatMap((snapshot) => [snapshot.id, snapshot.name]),
      wasResized: hadSnapshots && (before.wasResized || before.size !== info["virtual-size"]),
      wasLonger: before !== undefined && (before.wasLonger || before.size > info["virtual-size"]),
      bitmaps: (data.bitmaps ?? []).map((bitmap) => bitmap.name),
      backing: info["backing-filename"],
      backingFormat: info["backing-filename-format"],
      dataFile: data["data-file"],
    });
  }
}
