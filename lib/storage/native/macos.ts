/**
 * The system calls of macOS.
 *
 * @module
 */

import type { NativeHost, PreallocateOutcome } from "./native_host.ts";
import { cString, type HoleSeeks, Libc, openHoleFinder } from "./libc.ts";

const LIBRARIES = ["libSystem.B.dylib", "/usr/lib/libSystem.B.dylib", "libSystem.dylib"];

/** The call with inode numbers of 64 bits, which Intel machines have beside an older one. */
const FSTAT = Deno.build.arch === "x86_64" ? "fstat$INODE64" : "fstat";

const SYMBOLS = ["open", "close", "flock", "fcntl", "ftruncate", FSTAT, "__error"];

const O_RDONLY = 0;
const O_RDWR = 2;
/** So that a path which has become a pipe does not make the call wait. */
const O_NONBLOCK = 0x4;
const O_CLOEXEC = 0x1000000;

const HOLE_SEEKS: HoleSeeks = { data: 4, hole: 3 };

const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;

const F_PREALLOCATE = 42;
const F_PUNCHHOLE = 99;
const F_ALLOCATEALL = 4;
const F_PEOFPOSMODE = 3;

const EINTR = 4;
const EFBIG = 27;
const ENOSPC = 28;
const EAGAIN = 35;
const EDQUOT = 69;

const STAT_LENGTH = 256;
const STAT_DEV_OFFSET = 0;
const STAT_INO_OFFSET = 8;

/**
 * The system calls of macOS.
 *
 * @returns The calls, or undefined where the system library cannot be opened.
 * @throws {Error} Where it lacks one of them.
 */
export function macosHost(): NativeHost | undefined {
  const libc = Libc.load(LIBRARIES, SYMBOLS);
  if (libc === undefined) return undefined;
  const open = libc.bind("open", { parameters: ["buffer", "i32"], result: "i32" });
  const close = libc.bind("close", { parameters: ["i32"], result: "i32" });
  const flock = libc.bind("flock", { parameters: ["i32", "i32"], result: "i32" });
  const ftruncate = libc.bind("ftruncate", { parameters: ["i32", "i64"], result: "i32" });
  const fstat = libc.bind(FSTAT, { parameters: ["i32", "buffer"], result: "i32" });
  const fcntl = bindFcntl(libc);
  const errno = libc.bindErrno("__error");

  return {
    open: (path, writable) => open(cString(path), (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC),
    close: (descriptor) => void close(descriptor),
    isFile(descriptor, info) {
      const bytes = new Uint8Array(STAT_LENGTH);
      if (fstat(descriptor, bytes) !== 0) return false;
      const view = new DataView(bytes.buffer);
      return info.ino === Number(view.getBigUint64(STAT_INO_OFFSET, true)) &&
        info.dev === view.getInt32(STAT_DEV_OFFSET, true);
    },
    openHoleFinder: (descriptor) => openHoleFinder(LIBRARIES, descriptor, HOLE_SEEKS),
    punchHole(descriptor, offset, length) {
      // struct fpunchhole: flags and reserved of 32 bits, offset and length of 64 bits. Only whole blocks are taken.
      const view = new DataView(new ArrayBuffer(24));
      view.setBigInt64(8, BigInt(offset), true);
      view.setBigInt64(16, BigInt(length), true);
      return fcntl(descriptor, F_PUNCHHOLE, view) === 0;
    },
    preallocate(descriptor, offset, length, size): PreallocateOutcome {
      // The system reserves behind the end of a file and nowhere else.
      if (offset < size) return "unsupported";
      // struct fstore: flags and position mode of 32 bits; offset, length and the length that was had, of 64 bits.
      const view = new DataView(new ArrayBuffer(32));
      view.setUint32(0, F_ALLOCATEALL, true);
      view.setInt32(4, F_PEOFPOSMODE, true);
      view.setBigInt64(16, BigInt(offset + length - size), true);
      while (fcntl(descriptor, F_PREALLOCATE, view) !== 0) {
        const error = errno();
        if (error === ENOSPC || error === EDQUOT || error === EFBIG) return "no-space";
        if (error !== EINTR) return "unsupported";
      }
      return ftruncate(descriptor, BigInt(offset + length)) === 0 ? "done" : "unsupported";
    },
    copyRange: undefined,
    startSync: undefined,
    flock(descriptor, kind) {
      const operation = kind === "none" ? LOCK_UN : (kind === "exclusive" ? LOCK_EX : LOCK_SH) | LOCK_NB;
      return flock(descriptor, operation) === 0 || errno() !== EAGAIN;
    },
    // QEMU takes none where there are only the locks of a process.
    byteLocks: undefined,
  };
}

type Fcntl = (descriptor: number, command: number, argument: DataView<ArrayBuffer>) => number;

/**
 * The third argument of fcntl is variadic. On Apple's ARM machines such arguments go on the stack even while registers are
 * free, unlike all others; the six that are declared between fill the registers, so that the last one lands there too.
 */
function bindFcntl(libc: Libc): Fcntl {
  if (Deno.build.arch !== "aarch64") {
    return libc.bind("fcntl", { parameters: ["i32", "i32", "buffer"], result: "i32" });
  }
  const fcntl = libc.bind("fcntl", {
    parameters: ["i32", "i32", "i64", "i64", "i64", "i64", "i64", "i64", "buffer"],
    result: "i32",
  });
  return (descriptor, command, argument) => fcntl(descriptor, command, 0n, 0n, 0n, 0n, 0n, 0n, argument);
}
