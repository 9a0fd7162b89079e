/**
 * A counter for each host cluster.
 *
 * @module
 */

const CHUNK_BITS = 16;
const CHUNK_SIZE = 2 ** CHUNK_BITS;
/** From so many counters on a chunk is an array: as a map it would be no smaller. */
const MAX_SPARSE_COUNT = CHUNK_SIZE / 32;
const MAX_UINT16 = 0xffff;

/** Where few clusters were counted a map from positions to counts, then an array; a wide one where a count is large. */
type Chunk = Map<number, number> | Uint16Array | Float64Array;

/**
 * How often each host cluster was counted. Takes space for what was counted alone, wherever that is: a sparse file can claim
 * to be larger than any memory.
 */
export class ReferenceCounts {
  readonly #chunks = new Map<number, Chunk>();
  #lastIndex = -1;
  #lastChunk: Chunk = new Uint16Array();

  /**
   * Counts a cluster.
   *
   * @param cluster Index of the host cluster.
   * @param times How often; where it is negative, the count falls.
   * @returns The count.
   */
  add(cluster: number, times = 1): number {
    const index = Math.floor(cluster / CHUNK_SIZE);
    const position = cluster % CHUNK_SIZE;
    if (index !== this.#lastIndex) this.#use(index, this.#chunks.get(index) ?? new Map<number, number>());
    const chunk = this.#lastChunk;
    if (chunk instanceof Map) {
      const count = (chunk.get(position) ?? 0) + times;
      chunk.set(position, count);
      if (chunk.size > MAX_SPARSE_COUNT) this.#use(index, arrayOf(chunk));
      return count;
    }
    const count = (chunk[position] ?? 0) + times;
    if (count > MAX_UINT16 && chunk instanceof Uint16Array) {
      this.#use(index, Float64Array.from(chunk));
      return this.add(cluster, times);
    }
    chunk[position] = count;
    return count;
  }

  /**
   * Counts clusters in a row.
   *
   * @param first Index of the first host cluster.
   * @param count How many.
   * @param times How often each of them.
   * @returns The highest count.
   */
  addRun(first: number, count: number, times: number): number {
    let highest = 0;
    for (let cluster = first; cluster < first + count;) {
      // What the first one needs of the chunk, the others need no more of, unless counts grow large.
      highest = Math.max(highest, this.add(cluster, times));
      const chunk = this.#lastChunk;
      const position = cluster % CHUNK_SIZE;
      const end = Math.min(CHUNK_SIZE, position + first + count - cluster);
      let next = position + 1;
      if (chunk instanceof Uint16Array) {
        for (; next < end; next++) {
          const total = (chunk[next] ?? 0) + times;
          if (total > MAX_UINT16) break;
          if (total > highest) highest = total;
          chunk[next] = total;
        }
      }
      cluster += next - position;
    }
    return highest;
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
   * How often clusters in a row were counted.
   *
   * @param first Index of the first host cluster.
   * @param into Receives the counts. All of the clusters lie in one stretch of 65,536 that begins at a multiple of that.
   */
  read(first: number, into: Float64Array): void {
    const chunk = this.#chunks.get(Math.floor(first / CHUNK_SIZE));
    const position = first % CHUNK_SIZE;
    if (chunk === undefined) into.fill(0);
    else if (chunk instanceof Map) into.forEach((_, index) => into[index] = chunk.get(position + index) ?? 0);
    else into.set(chunk.subarray(position, position + into.length));
  }

  /**
   * Whether all clusters in a row were counted exactly once.
   *
   * @param first Index of the first host cluster.
   * @param count How many.
   * @returns Whether they were.
   */
  areAllOne(first: number, count: number): boolean {
    for (let cluster = first; cluster < first + count;) {
      const chunk = this.#chunks.get(Math.floor(cluster / CHUNK_SIZE));
      if (chunk === undefined) return false;
      const position = cluster % CHUNK_SIZE;
      const end = Math.min(CHUNK_SIZE, position + first + count - cluster);
      for (let index = position; index < end; index++) {
        if ((chunk instanceof Map ? chunk.get(index) : chunk[index]) !== 1) return false;
      }
      cluster += end - position;
    }
    return true;
  }

  /**
   * The stretches of clusters in which any was counted.
   *
   * @param length How many clusters a stretch has: a power of two, at most 65,536.
   * @returns The first cluster of each, in ascending order, all of them multiples of the length.
   */
  *stretches(length: number): Generator<number> {
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      const used = new Set<number>();
      if (chunk instanceof Map) {
        for (const [position, count] of chunk) if (count !== 0) used.add(position - position % length);
      }
      for (let start = 0; start < CHUNK_SIZE; start += length) {
        const isUsed = chunk instanceof Map ? used.has(start) : chunk.subarray(start, start + length).some(isCounted);
        if (isUsed) yield index * CHUNK_SIZE + start;
      }
    }
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

function arrayOf(counts: ReadonlyMap<number, number>): Uint16Array | Float64Array {
  const isWide = counts.values().some((count) => count > MAX_UINT16);
  const array = isWide ? new Float64Array(CHUNK_SIZE) : new Uint16Array(CHUNK_SIZE);
  for (const [position, count] of counts) array[position] = count;
  return array;
}

function isCounted(count: number): boolean {
  return count !== 0;
}
