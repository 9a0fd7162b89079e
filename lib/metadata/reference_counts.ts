/**
 * A counter for each host cluster.
 *
 * @module
 */

const CHUNK_BITS = 16;
const CHUNK_SIZE = 2 ** CHUNK_BITS;
/** From so many counters on a chunk is an array: as a map it would be no smaller. */
const MAX_SPARSE_COUNT = CHUNK_SIZE / 16;
const MAX_UINT32 = 0xffffffff;

/** Where few clusters were counted a map from positions to counts, then an array; a wide one where a count is large. */
type Chunk = Map<number, number> | Uint32Array | Float64Array;

/**
 * How often each host cluster was counted. Takes space for what was counted alone, wherever that is: a sparse file can claim
 * to be larger than any memory.
 */
export class ReferenceCounts {
  readonly #chunks = new Map<number, Chunk>();
  #lastIndex = -1;
  #lastChunk: Chunk = new Uint32Array();

  /**
   * Counts a cluster.
   *
   * @param cluster Index of the host cluster.
   * @param times How often.
   */
  add(cluster: number, times = 1): void {
    const index = Math.floor(cluster / CHUNK_SIZE);
    const position = cluster % CHUNK_SIZE;
    if (index !== this.#lastIndex) this.#use(index, this.#chunks.get(index) ?? new Map<number, number>());
    const chunk = this.#lastChunk;
    if (chunk instanceof Map) {
      chunk.set(position, (chunk.get(position) ?? 0) + times);
      if (chunk.size > MAX_SPARSE_COUNT) this.#use(index, arrayOf(chunk));
      return;
    }
    const count = (chunk[position] ?? 0) + times;
    if (count > MAX_UINT32 && chunk instanceof Uint32Array) {
      this.#use(index, Float64Array.from(chunk));
      this.add(cluster, times);
    } else {
      chunk[position] = count;
    }
  }

  /**
   * Takes one count back.
   *
   * @param cluster Index of the host cluster, counted before.
   */
  remove(cluster: number): void {
    this.add(cluster, -1);
  }

  /**
   * How often a cluster was counted.
   *
   * @param cluster Index of the host cluster.
   * @returns The count.
   */
  get(cluster: number): number {
    const index = Math.floor(cluster / CHUNK_SIZE);
    const chunk = index === this.#lastIndex ? this.#lastChunk : this.#chunks.get(index);
    const position = cluster % CHUNK_SIZE;
    return (chunk instanceof Map ? chunk.get(position) : chunk?.[position]) ?? 0;
  }

  /**
   * The clusters that were counted.
   *
   * @returns Their indexes in ascending order.
   */
  *clusters(): Generator<number> {
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      const positions = chunk instanceof Map ? [...chunk.keys()].sort((a, b) => a - b) : chunk.keys();
      for (const position of positions) {
        if (this.get(index * CHUNK_SIZE + position) !== 0) yield index * CHUNK_SIZE + position;
      }
    }
  }

  #use(index: number, chunk: Chunk): void {
    this.#chunks.set(index, chunk);
    this.#lastIndex = index;
    this.#lastChunk = chunk;
  }
}

function arrayOf(counts: ReadonlyMap<number, number>): Uint32Array | Float64Array {
  const array = new Float64Array(CHUNK_SIZE);
  for (const [position, count] of counts) array[position] = count;
  return array.some((count) => count > MAX_UINT32) ? array : Uint32Array.from(array);
}
