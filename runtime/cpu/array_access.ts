/** Bounds-checked array accesses by index. */

import type { WasmFunction } from "./wasm.ts";

/** An array in memory: a binding or a shared array. Sixteen bytes before and after it are readable. */
export interface MemoryView {
  /** Local that holds its address. */
  readonly address: number;
  /** Local that holds its length in elements. */
  readonly length: number;
  /** Local with length + 5: `index + 4 < length + 5` holds if a vector at `index` overlaps the array. */
  readonly vectorEnd: number;
}

/**
 * Converts the index on the stack to the address of an element, or of four consecutive ones, of which some may be out
 * of bounds; an index of which all are out of bounds becomes 0.
 */
export function checkAddress(
  f: WasmFunction,
  view: MemoryView,
  elements: 1 | 4,
): void {
  const i = f.local("i32");
  f.tee(i);
  f.i32(0);
  f.get(i);
  if (elements === 4) {
    f.i32(4);
    f.op("i32.add");
  }
  f.get(elements === 4 ? view.vectorEnd : view.length);
  f.op("i32.lt_u", "select");
  scaleAddress(f, view);
}

function scaleAddress(f: WasmFunction, view: MemoryView): void {
  f.i32(2);
  f.op("i32.shl");
  f.get(view.address);
  f.op("i32.add");
}

/** Replaces the vector of indices on the stack by elements; an index out of bounds becomes 0. */
export function gather(f: WasmFunction, view: MemoryView): void {
  const i = f.local("v128");
  f.tee(i);
  f.get(i);
  f.get(view.length);
  f.op("i32x4.splat", "i32x4.lt_u", "v128.and");
  f.i32(2);
  f.op("i32x4.shl");
  f.get(view.address);
  f.op("i32x4.splat", "i32x4.add");
  f.set(i);
  f.get(i);
  f.extract(0);
  f.load("v128.load32_zero");
  const value = f.local("v128");
  for (let lane = 1; lane < 4; lane++) {
    f.set(value);
    f.get(i);
    f.extract(lane);
    f.get(value);
    f.loadLane(lane);
  }
}

/** Stores a word, in a local, at an index, in a local; drops it if the index is out of bounds. */
export function storeOne(
  f: WasmFunction,
  view: MemoryView,
  { index, value }: { readonly index: number; readonly value: number },
): void {
  f.get(index);
  f.get(view.length);
  f.op("i32.lt_u");
  f.if();
  f.get(index);
  scaleAddress(f, view);
  f.get(value);
  f.load("i32.store");
  f.op("end");
}

/**
 * Stores a vector, in a local, at consecutive elements: at once if all are in bounds and all lanes of the mask, if any,
 * are active; otherwise by the function `lanes`.
 */
export function storeRun(
  f: WasmFunction,
  view: MemoryView,
  { index, value, mask, lanes }: {
    readonly index: number;
    readonly value: number;
    readonly mask: (() => void) | undefined;
    readonly lanes: number;
  },
): void {
  f.get(index);
  f.get(view.length);
  f.op("i32.lt_u");
  f.get(index);
  f.i32(3);
  f.op("i32.add");
  f.get(view.length);
  f.op("i32.lt_u", "i32.and");
  if (mask) {
    mask();
    f.op("i32x4.all_true", "i32.and");
  }
  f.if();
  f.get(index);
  scaleAddress(f, view);
  f.get(value);
  f.load("v128.store");
  f.op("else");
  f.get(view.address);
  f.get(view.length);
  f.get(index);
  f.op("i32x4.splat");
  f.words(0, 1, 2, 3);
  f.op("i32x4.add");
  f.get(value);
  if (mask) mask();
  else f.words(-1, -1, -1, -1);
  f.call(lanes);
  f.op("end");
}

/** (address, length, index, value, mask): stores active lanes in bounds, one by one. */
export function printStoreLanes(f: WasmFunction): void {
  for (let lane = 0; lane < 4; lane++) {
    f.get(4);
    f.extract(lane);
    f.get(2);
    f.extract(lane);
    f.get(1);
    f.op("i32.lt_u", "i32.and");
    f.if();
    f.get(0);
    f.get(2);
    f.extract(lane);
    f.i32(2);
    f.op("i32.shl", "i32.add");
    f.get(3);
    f.storeLane(lane);
    f.op("end");
  }
}
