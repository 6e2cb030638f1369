/** Functions of every pool besides kernels: they move bytes. */

import { RECORD, RECORD_BYTES } from "./print.ts";
import { WasmFunction, WasmModule } from "./wasm.ts";

/** Their indices. */
export const COPY = 0, WRITE = 1;
/** Bytes that one workgroup of a copy moves. */
export const COPY_BLOCK = 1 << 16;

/** Functions like kernels that copy memory, and that write the bytes after their record. */
export function printMoves(): Uint8Array<ArrayBuffer> {
  const module = new WasmModule();
  const copy = new WasmFunction(["i32", "i32", "i32", "i32"], []);
  const start = copy.local("i32");
  const end = copy.local("i32");
  const bytes = () => {
    copy.get(0);
    copy.load("i32.load", 4 * RECORD.x);
  };
  copy.get(1);
  copy.i32(COPY_BLOCK);
  copy.op("i32.mul");
  copy.set(start);
  copy.get(2);
  copy.i32(COPY_BLOCK);
  copy.op("i32.mul");
  copy.tee(end);
  bytes();
  copy.get(end);
  bytes();
  copy.op("i32.lt_u", "select");
  copy.set(end);
  for (const word of [0, 4]) {
    copy.get(0);
    copy.load("i32.load", RECORD_BYTES + word);
    copy.get(start);
    copy.op("i32.add");
  }
  copy.get(end);
  copy.get(start);
  copy.op("i32.sub");
  copy.copy();
  module.add(copy, `run${COPY}`);

  const write = new WasmFunction(["i32", "i32", "i32", "i32"], []);
  write.get(0);
  write.load("i32.load", RECORD_BYTES);
  write.get(0);
  write.i32(RECORD_BYTES + 4);
  write.op("i32.add");
  write.get(0);
  write.load("i32.load", 4 * RECORD.x);
  write.copy();
  module.add(write, `run${WRITE}`);
  return module.encode();
}
