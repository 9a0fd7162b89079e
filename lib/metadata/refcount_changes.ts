/**
 * How much the refcounts of host clusters are to rise or fall.
 *
 * @module
 */

const CHUNK_SIZE = 4096;

/** A sum for each host cluster, in chunks that are made where something changes. */
export class RefcountChanges {
  readonly #chunks = new Map<number, Int32Array>();
  #lastIndex = -1;
  #lastChunk: Int32Array = new Int32Array();

  /**
   * Adds to the change of a cluster's refcount.
   *
   * @param cluster Index of the host cluster.
   * @param change What to add; less than zero where references go away.
   */
  add(cluster: number, change: number): void {
    const index = Math.floor(cluster / CHUNK_SIZE);
    if (index !== this.#lastIndex) {
      this.#lastChunk = this.#chunks.get(index) ?? new Int32Array(CHUNK_SIZE);
      this.#chunks.set(index, this.#lastChunk);
      this.#lastIndex = index;
    }
    const position = cluster % CHUNK_SIZE;
    this.#lastChunk[position] = (this.#lastChunk[position] ?? 0) + change;
  }

  /**
   * How much a cluster's refcount changes.
   *
   * @param cluster Index of the host cluster.
   * @returns The sum of what was added.
   */
  get(cluster: number): number {
    return this.#chunks.get(Math.floor(cluster / CHUNK_SIZE))?.[cluster % CHUNK_SIZE] ?? 0;
  }

  /**
   * The clusters whose refcounts change.
   *
   * @returns Pairs of cluster and change, in ascending order of clusters.
   */
  *entries(): Generator<readonly [cluster: number, change: number]> {
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      for (let position = 0; position < CHUNK_SIZE; position++) {
        const change = chunk[position] ?? 0;
        if (change !== 0) yield [index * CHUNK_SIZE + position, change];
      }
    }
  }
}
