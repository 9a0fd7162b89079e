/**
 * A plain byte array, with room only for what is not zero, so that a disk of a terabyte has one too.
 *
 * @module
 */

/** How much is kept or left out together, in bytes. */
const CHUNK_SIZE = 65536;

/** Bytes that are zero until they are written. */
export class SparseBytes {
  #size: number;
  readonly #chunks = new Map<number, Uint8Array<ArrayBuffer>>();

  /** @param size How many bytes. */
  constructor(size: number) {
    this.#size = size;
  }

  /** How many bytes there are. */
  get size(): number {
    return this.#size;
  }

  /** Sets bytes; all of them lie within. */
  write(offset: number, data: Uint8Array): void {
    this.#eachPart(offset, data.length, (index, inChunk, length, done) => {
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) this.#chunks.set(index, chunk = new Uint8Array(CHUNK_SIZE));
      chunk.set(data.subarray(done, done + length), inChunk);
    });
  }

  /** Sets bytes to zero; all of them lie within. */
  clear(offset: number, length: number): void {
    // Of the chunks of a range, most are not there.
    for (const index of [...this.#chunks.keys()]) {
      const start = Math.max(offset, index * CHUNK_SIZE);
      const end = Math.min(offset + length, (index + 1) * CHUNK_SIZE);
      if (start >= end) continue;
      if (end - start === CHUNK_SIZE) this.#chunks.delete(index);
      else this.#chunks.get(index)?.fill(0, start - index * CHUNK_SIZE, end - index * CHUNK_SIZE);
    }
  }

  /** A copy of some bytes; all of them lie within. */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    this.#eachPart(offset, length, (index, inChunk, partLength, done) => {
      const chunk = this.#chunks.get(index);
      if (chunk !== undefined) bytes.set(chunk.subarray(inChunk, inChunk + partLength), done);
    });
    return bytes;
  }

  /** Makes the array longer, with zeroes, or shorter. */
  resize(size: number): void {
    if (size < this.#size) this.clear(size, this.#size - size);
    for (const index of [...this.#chunks.keys()]) if (index * CHUNK_SIZE >= size) this.#chunks.delete(index);
    this.#size = size;
  }

  /** A copy that changes on its own. */
  clone(): SparseBytes {
    const copy = new SparseBytes(this.#size);
    for (const [index, chunk] of this.#chunks) copy.#chunks.set(index, chunk.slice());
    return copy;
  }

  /** The stretches outside of which all is zero, in order. */
  stretches(): { readonly offset: number; readonly length: number }[] {
    return [...this.#chunks.keys()].sort((a, b) => a - b).map((index) => ({
      offset: index * CHUNK_SIZE,
      length: Math.min(CHUNK_SIZE, this.#size - index * CHUNK_SIZE),
    }));
  }

  /** Writes the bytes as a file, with holes for what was never written. */
  writeFile(path: string): void {
    using file = Deno.openSync(path, { create: true, truncate: true, write: true });
    file.truncateSync(this.#size);
    for (const { offset, length } of this.stretches()) {
      file.seekSync(offset, Deno.SeekMode.Start);
      const bytes = this.read(offset, length);
      for (let done = 0; done < length;) done += file.writeSync(bytes.subarray(done));
    }
  }

  #eachPart(
    offset: number,
    length: number,
    visit: (index: number, inChunk: number, length: number, done: number) => void,
  ): void {
    if (offset < 0 || offset + length > this.#size) {
      throw new RangeError(`Range of ${length} bytes at ${offset} is not within ${this.#size}`);
    }
    for (let done = 0; done < length;) {
      const inChunk = (offset + done) % CHUNK_SIZE;
      const partLength = Math.min(length - done, CHUNK_SIZE - inChunk);
      visit((offset + done - inChunk) / CHUNK_SIZE, inChunk, partLength, done);
      done += partLength;
    }
  }
}
