/**
 * The system calls of Linux on 64-bit machines.
 *
 * @module
 */

import type { ByteLocks, NativeHost, PreallocateOutcome } from "./native_host.ts";
import { cString, type HoleSeeks, Libc, openHoleFinder } from "./libc.ts";

/** The C library as glibc and as musl call it. */
const LIBRARIES = ["libc.so.6", "libc.so", `libc.musl-${Deno.build.arch}.so.1`];

const SYMBOLS = [
  "open",
  "close",
  "flock",
  "fcntl",
  "fallocate",
  "statx",
  "sync_file_range",
  "copy_file_range",
  "__errno_location",
];

const O_RDONLY = 0;
const O_RDWR = 2;
/** So that a path which has become a pipe does not make the call wait. */
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;

const HOLE_SEEKS: HoleSeeks = { data: 3, hole: 4 };

const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

const SYNC_FILE_RANGE_WRITE = 2;

const EINTR = 4;
const EAGAIN = 11;
const EACCES = 13;
const EFBIG = 27;
const ENOSPC = 28;
const EDQUOT = 122;

/** Locks of an open file description: unlike those of a process they go only with their own descriptor. */
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const AT_EMPTY_PATH = 0x1000;
const STATX_INO = 0x100;
const STATX_LENGTH = 256;
const STATX_INO_OFFSET = 32;
const STATX_DEV_MAJOR_OFFSET = 136;
const STATX_DEV_MINOR_OFFSET = 140;

/**
 * The system calls of Linux.
 *
 * @returns The calls, or undefined where there is no C library to be opened.
 * @throws {Error} Where the C library lacks one of them.
 */
export function linuxHost(): NativeHost | undefined {
  const libc = Libc.load(LIBRARIES, SYMBOLS);
  if (libc === undefined) return undefined;
  const open = libc.bind("open", { parameters: ["buffer", "i32"], result: "i32" });
  const close = libc.bind("close", { parameters: ["i32"], result: "i32" });
  const flock = libc.bind("flock", { parameters: ["i32", "i32"], result: "i32" });
  const fallocate = libc.bind("fallocate", { parameters: ["i32", "i32", "i64", "i64"], result: "i32" });
  const statx = libc.bind("statx", { parameters: ["i32", "buffer", "i32", "u32", "buffer"], result: "i32" });
  const errno = libc.bindErrno("__errno_location");

  return {
    open: (path, writable) => open(cString(path), (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC),
    close: (descriptor) => void close(descriptor),
    isFile(descriptor, info) {
      const bytes = new Uint8Array(STATX_LENGTH);
      if (statx(descriptor, cString(""), AT_EMPTY_PATH, STATX_INO, bytes) !== 0) return false;
      const view = new DataView(bytes.buffer);
      const device = deviceNumber(
        view.getUint32(STATX_DEV_MAJOR_OFFSET, true),
        view.getUint32(STATX_DEV_MINOR_OFFSET, true),
      );
      return info.ino === Number(view.getBigUint64(STATX_INO_OFFSET, true)) && info.dev === Number(device);
    },
    openHoleFinder: (descriptor) => openHoleFinder(LIBRARIES, descriptor, HOLE_SEEKS),
    punchHole(descriptor, offset, length) {
      const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      return fallocate(descriptor, mode, BigInt(offset), BigInt(length)) === 0;
    },
    preallocate(descriptor, offset, length): PreallocateOutcome {
      while (fallocate(descriptor, 0, BigInt(offset), BigInt(length)) !== 0) {
        const error = errno();
        if (error === ENOSPC || error === EDQUOT || error === EFBIG) return "no-space";
        if (error !== EINTR) return "unsupported";
      }
      return "done";
    },
    copyRange: copyRange(libc),
    startSync: startSync(libc),
    flock(descriptor, kind) {
      const operation = kind === "none" ? LOCK_UN : (kind === "exclusive" ? LOCK_EX : LOCK_SH) | LOCK_NB;
      return flock(descriptor, operation) === 0 || errno() !== EAGAIN;
    },
    byteLocks: byteLocks(libc, errno),
  };
}

/** Not every C library has the call. */
function copyRange(libc: Libc): NativeHost["copyRange"] {
  if (!libc.has("copy_file_range")) return undefined;
  const copy = libc.bind("copy_file_range", {
    parameters: ["i32", "buffer", "i32", "buffer", "usize", "u32"],
    result: "isize",
  });
  const from = new BigInt64Array(1);
  const to = new BigInt64Array(1);
  return (source, sourceOffset, target, offset, length) => {
    from[0] = BigInt(sourceOffset);
    to[0] = BigInt(offset);
    return Number(copy(source, from, target, to, BigInt(length), 0));
  };
}

/** Not every C library has the call. */
function startSync(libc: Libc): ((descriptor: number) => void) | undefined {
  if (!libc.has("sync_file_range")) return undefined;
  const sync = libc.bind("sync_file_range", { parameters: ["i32", "i64", "i64", "u32"], result: "i32" });
  return (descriptor) => void sync(descriptor, 0n, 0n, SYNC_FILE_RANGE_WRITE);
}

/** Locks on single bytes by `struct flock`: type and whence of 16 bits, four bytes unused, start and length of 64 bits, pid. */
function byteLocks(libc: Libc, errno: () => number): ByteLocks {
  const fcntl = libc.bind("fcntl", { parameters: ["i32", "i32", "buffer"], result: "i32" });
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);

  function call(descriptor: number, command: number, type: number, byte: number): boolean {
    bytes.fill(0);
    view.setInt16(0, type, true);
    view.setBigInt64(8, BigInt(byte), true);
    view.setBigInt64(16, 1n, true);
    return fcntl(descriptor, command, bytes) === 0;
  }

  return {
    take(descriptor, byte) {
      if (call(descriptor, F_OFD_SETLK, F_RDLCK, byte)) return "had";
      const error = errno();
      return error === EAGAIN || error === EACCES ? "refused" : "unsupported";
    },
    release: (descriptor, byte) => void call(descriptor, F_OFD_SETLK, F_UNLCK, byte),
    // Asks whether a writer's lock could be had; the answer stands where the question stood.
    isLockedByOthers: (descriptor, byte) =>
      call(descriptor, F_OFD_GETLK, F_WRLCK, byte) && view.getInt16(0, true) !== F_UNLCK,
  };
}

/** One number for a device, put together from its two parts as the C library does it. */
function deviceNumber(major: number, minor: number): bigint {
  const high = (BigInt(major >>> 12) << 44n) | (BigInt(minor >>> 8) << 20n);
  return high | BigInt((major & 0xfff) << 8) | BigInt(minor & 0xff);
}
