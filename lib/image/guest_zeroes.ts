/**
 * {@linkcode GuestZeroes}: how a range of the disk becomes zeroes, or is given back, with as little written as can be.
 *
 * @module
 */

import type { Disk, WriteZeroesOptions } from "../disk.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { isAllZero } from "../format/zeroes.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, isUnallocated, MappedRun } from "../metadata/mapping.ts";
import type { GuestIo } from "./guest_io.ts";

/** The most zeroes that are written at once, in bytes. */
const ZEROES_LENGTH = 1024 * 1024;

/** Static zeroes, shared by everybody. */
const zeroes = new Uint8Array(ZEROES_LENGTH);

/** Makes guest clusters zero or unallocated. The caller has checked ranges and permissions. */
export class GuestZeroes {
  readonly #metadata: ImageMetadata;
  readonly #io: GuestIo;
  readonly #backing: Disk | undefined;

  /**
   * @param metadata The image's metadata.
   * @param io Writes zeroes where an entry cannot say that there are some.
   * @param backing What unallocated clusters read as; zeroes without it.
   */
  constructor(metadata: ImageMetadata, io: GuestIo, backing: Disk | undefined) {
    this.#metadata = metadata;
    this.#io = io;
    this.#backing = backing;
  }

  /**
   * Makes a range read as zeroes.
   *
   * @param from Guest offset in bytes.
   * @param length Length in bytes.
   * @param options Whether host clusters may be given back, and whether entries must say so where nothing else stands beneath.
   */
  write(from: number, length: number, { unmap = false, explicit = false }: WriteZeroesOptions): void {
    const { subclusterSize, clusterSize } = this.#metadata.geometry;
    const [offset, end] = explicit ? this.#widened(from, from + length) : [from, from + length];
    const [first, last] = this.#wholeUnits(offset, end, subclusterSize);
    if (first >= last) {
      this.#zeroBytes(offset, end, explicit);
      return;
    }
    this.#zeroBytes(offset, first, explicit);
    const [firstCluster, lastCluster] = this.#wholeUnits(first, last, clusterSize);
    if (firstCluster >= lastCluster) {
      this.#zeroStates(first, last, explicit);
    } else {
      this.#zeroStates(first, firstCluster, explicit);
      this.#zeroClusters(firstCluster, lastCluster, unmap, explicit);
      this.#zeroStates(lastCluster, last, explicit);
    }
    this.#zeroBytes(last, end, explicit);
  }

  /**
   * Gives the whole clusters of a range back.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   */
  discard(offset: number, length: number): void {
    const { geometry, header, mapping } = this.#metadata;
    const [first, last] = this.#wholeUnits(offset, offset + length, geometry.clusterSize);
    const zeroFlag = header.version >= 3;
    // Version 2 has no entry that hides the backing file: there the content stays, as QEMU leaves it.
    if (first >= last || (this.#backing !== undefined && !zeroFlag)) return;
    this.#clearDataFile(first, last, true);
    this.#eachClusterRun(first, last, (kind, position, runLength) => {
      if (kind === ClusterKind.zero || (kind === ClusterKind.unallocated && this.#backing === undefined)) return;
      mapping.eachSlice(position, runLength, (at, partLength) => {
        mapping.unlink(mapping.prepareSlice(at), at, partLength, zeroFlag);
      });
    });
  }

  /**
   * Makes a range behind the end of the disk read as zeroes, whatever its entries and the backing file hold there. A data file
   * holds zeroes there already.
   *
   * @param offset Guest offset of the first byte behind the end.
   * @param end Guest offset behind the range; the L1 table reaches as far.
   */
  clearBehindEnd(offset: number, end: number): void {
    const { header, geometry, mapping } = this.#metadata;
    const firstWhole = alignUp(offset, geometry.clusterSize);
    const partEnd = Math.min(end, firstWhole);
    if (!this.#holdsZeroes(offset, partEnd)) this.#zeroPart(offset, partEnd);
    const hidesBacking = header.version >= 3 && this.#backing !== undefined;
    this.#eachClusterRun(firstWhole, alignUp(end, geometry.clusterSize), (kind, position, runLength) => {
      if (kind === ClusterKind.zero) return;
      let length = runLength;
      if (kind === ClusterKind.unallocated) {
        const inBacking = alignUp(this.#backing?.size ?? 0, geometry.clusterSize) - position;
        if (inBacking <= 0) return;
        length = Math.min(length, inBacking);
      }
      if (this.#backing !== undefined && !hidesBacking) {
        this.#writeOverBacking(this.#backing, kind, position, length);
      } else {
        mapping.eachSlice(position, length, (at, partLength) => {
          mapping.unlink(mapping.prepareSlice(at), at, partLength, hidesBacking);
        });
      }
    });
  }

  /** A range with all of its first and its last unit, as far as what is added reads as zeroes already. */
  #widened(from: number, to: number): readonly [offset: number, end: number] {
    const { geometry: { subclusterSize }, diskSize } = this.#metadata;
    const first = alignDown(from, subclusterSize);
    const last = Math.min(alignUp(to, subclusterSize), diskSize);
    return [this.#isBlank(first, from) ? first : from, this.#isBlank(to, last) ? last : to];
  }

  #isBlank(from: number, to: number): boolean {
    const run = new MappedRun();
    for (let position = from; position < to; position += run.length) {
      this.#metadata.mapping.find(position, to - position, run);
      if (this.#io.hasContent(run.kind, position)) return false;
    }
    return true;
  }

  /** The part of a range that consists of whole units; a last one that the disk cuts short is whole where its end is reached. */
  #wholeUnits(offset: number, end: number, unit: number): readonly [first: number, last: number] {
    return [alignUp(offset, unit), end >= this.#metadata.diskSize ? alignUp(end, unit) : alignDown(end, unit)];
  }

  /** Version 2 has no entry that hides the backing file: zeroes are written, where anything else would be seen. */
  #writeOverBacking(backing: Disk, kind: ClusterKind, position: number, length: number): void {
    if (!isUnallocated(kind)) {
      this.#zeroBytes(position, position + length);
      return;
    }
    for (const extent of backing.extents(position, Math.min(length, backing.size - position))) {
      if (extent.kind === "zero" || extent.kind === "unallocated") continue;
      this.#zeroBytes(extent.offset, extent.offset + extent.length);
    }
  }

  /** Writes zeroes into a part of a cluster, unless it reads as zeroes anyway and needs no entry that says so. */
  #zeroBytes(offset: number, end: number, explicit = false): void {
    const run = new MappedRun();
    for (let position = offset; position < end;) {
      this.#metadata.mapping.find(position, Math.min(end - position, ZEROES_LENGTH), run);
      const { length } = run;
      if (this.#io.hasContent(run.kind, position) || (explicit && isUnallocated(run.kind))) {
        this.#io.write(position, zeroes.subarray(0, length));
      }
      position += length;
    }
  }

  /**
   * Whether a part of a cluster holds zeroes, whatever stands beneath, so that neither a compressed cluster nor the states of subclusters
   * need to change. Into any other cluster zeroes are written: what was reserved for it then has its place on the host.
   */
  #holdsZeroes(offset: number, end: number): boolean {
    const { subclusterSize, clusterSize } = this.#metadata.geometry;
    const run = new MappedRun();
    for (let position = offset; position < end; position += run.length) {
      this.#metadata.mapping.find(position, end - position, run);
      if (isUnallocated(run.kind) && this.#backing !== undefined) return false;
      if (run.kind === ClusterKind.data && subclusterSize === clusterSize) return false;
      if (!this.#io.hasContent(run.kind, position)) continue;
      const bytes = new Uint8Array(run.length);
      this.#io.read(position, bytes);
      if (!isAllZero(bytes)) return false;
    }
    return true;
  }

  /** Makes a part of a cluster read as zeroes, which may lie behind the end of the disk: whole subclusters by their states. */
  #zeroPart(offset: number, end: number): void {
    const { subclusterSize, clusterSize } = this.#metadata.geometry;
    const first = Math.min(end, subclusterSize < clusterSize ? alignUp(offset, subclusterSize) : end);
    this.#zeroBytes(offset, first);
    const last = first < end ? alignUp(end, subclusterSize) : first;
    const run = new MappedRun();
    for (let position = first; position < last;) {
      this.#metadata.mapping.find(position, last - position, run);
      const { kind, length } = run;
      if (this.#io.hasContent(kind, position)) this.#zeroStates(position, position + length, false, end);
      position += length;
    }
  }

  /** Makes whole clusters read as zeroes. */
  #zeroClusters(first: number, last: number, unmap: boolean, explicit: boolean): void {
    const { header, mapping, geometry } = this.#metadata;
    if (!unmap && geometry.subclusterSize < geometry.clusterSize) {
      this.#zeroStates(first, last, explicit);
      return;
    }
    this.#clearDataFile(first, last, unmap);
    this.#eachClusterRun(first, last, (kind, position, runLength, copied) => {
      // Where nothing stands beneath, an entry would only cost space.
      const beneath = alignUp(this.#backing?.size ?? 0, geometry.clusterSize) - position;
      const isNeeded = kind !== ClusterKind.unallocated || explicit;
      const length = isNeeded ? runLength : Math.min(runLength, beneath);
      if (kind === ClusterKind.zero || length <= 0) return;
      if (kind === ClusterKind.zeroAllocated && !unmap) return;
      if (header.version === 2 && (!unmap || explicit || this.#backing !== undefined)) {
        this.#zeroBytes(position, Math.min(position + length, this.#metadata.diskSize), explicit);
        return;
      }
      mapping.eachSlice(position, length, (at, partLength) => {
        const slice = mapping.prepareSlice(at);
        if (unmap || !copied) mapping.unlink(slice, at, partLength, header.version >= 3);
        else mapping.setZeroFlag(slice, at, partLength);
      });
    });
  }

  /** Makes whole subclusters read as zeroes, the last of which the disk may cut short at its end; host clusters are kept. */
  #zeroStates(first: number, last: number, explicit: boolean, diskEnd = this.#metadata.diskSize): void {
    const { mapping, geometry } = this.#metadata;
    if (first >= last) return;
    this.#clearDataFile(first, last, false);
    const run = new MappedRun();
    for (let position = first; position < last;) {
      mapping.find(position, last - position, run);
      const { kind, length } = run;
      if (kind === ClusterKind.compressed) {
        // A part of a compressed cluster cannot change alone.
        if (length < geometry.clusterSize) this.#zeroBytes(position, Math.min(position + length, diskEnd), explicit);
        else mapping.unlink(mapping.prepareSlice(position), position, length, true);
      } else if (
        // Where nothing is allocated for a cluster that reads as zeroes, an entry would only cost space.
        kind === ClusterKind.reserved || this.#io.hasContent(kind, position) || (explicit && isUnallocated(kind))
      ) {
        mapping.eachSlice(position, length, (at, partLength) => {
          mapping.setZeroFlag(mapping.prepareSlice(at), at, partLength);
        });
      }
      position += length;
      this.#metadata.limitPendingFrees();
    }
  }

  /**
   * Makes a range of the data file zeroes, if there is one. A raw one must hold them, since it is read without the image; of
   * any other the space is given back where that is asked for and the host can.
   */
  #clearDataFile(first: number, last: number, unmap: boolean): void {
    const { hasDataFile, hasRawDataFile, guestFile, diskSize } = this.#metadata;
    if (!hasDataFile || !(unmap || hasRawDataFile)) return;
    const end = Math.min(last, diskSize, guestFile.file.size);
    if (first >= end) return;
    if (unmap && guestFile.punchHole(first, end - first)) return;
    if (!hasRawDataFile) return;
    for (const extent of [...guestFile.file.dataExtents(first, end - first)]) {
      for (let done = 0; done < extent.length; done += ZEROES_LENGTH) {
        const length = Math.min(ZEROES_LENGTH, extent.length - done);
        guestFile.writeAt(extent.offset + done, zeroes.subarray(0, length));
      }
    }
  }

  /**
   * Calls back for each run of a range of whole clusters; the range may reach beyond the end of the disk. A cluster whose
   * parts differ counts as data.
   */
  #eachClusterRun(
    first: number,
    last: number,
    visit: (kind: ClusterKind, position: number, length: number, copied: boolean) => void,
  ): void {
    const { mapping, geometry } = this.#metadata;
    const run = new MappedRun();
    for (let position = first; position < last;) {
      mapping.find(position, last - position, run);
      const isMixed = run.length < geometry.clusterSize;
      const length = isMixed ? geometry.clusterSize : alignDown(run.length, geometry.clusterSize);
      visit(isMixed ? ClusterKind.data : run.kind, position, length, run.copied);
      position += length;
      this.#metadata.limitPendingFrees();
    }
  }
}
