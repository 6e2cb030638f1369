/** Reading arrays in memory by index, so that no index can reach beyond what may be read. */

import type { Push } from "./math.ts";
import type { WasmFunction } from "./wasm.ts";

/** An array in memory: a binding or a shared array. Sixteen bytes before and after it may be read. */
export interface MemoryView {
  /** Local that holds its address. */
  readonly address: number;
  /** Local that holds its length in elements. */
  readonly length: number;
  /** Local that holds length + 5: `index + 4 < length + 5` holds where a vector at `index` touches the array. */
  readonly reach: number;
}

/** A load whose address a loop keeps in a local, known to be in range. */
export interface PointedLoad {
  readonly pointer: number;
  readonly offset: number;
}

/** Push the address of an element; an index outside the array becomes 0. */
export function pushAddress(
  f: WasmFunction,
  view: MemoryView,
  index: Push,
): void {
  const i = f.local("i32");
  f.get(view.address);
  index();
  f.tee(i);
  f.i32(0);
  f.get(i);
  f.get(view.length);
  f.op("i32.lt_u", "select");
  f.i32(2);
  f.op("i32.shl", "i32.add");
}

/** Push the address of four consecutive elements, some of which may be outside of the array. */
export function pushRunAddress(
  f: WasmFunction,
  view: MemoryView,
  index: Push,
): void {
  const i = f.local("i32");
  f.get(view.address);
  index();
  f.tee(i);
  f.i32(0);
  f.get(i);
  f.i32(4);
  f.op("i32.add");
  f.get(view.reach);
  f.op("i32.lt_u", "select");
  f.i32(2);
  f.op("i32.shl", "i32.add");
}

/** Push a vector of elements at the indices of a vector; an index outside the array becomes 0. */
export function gather(
  f: WasmFunction,
  view: MemoryView,
  indices: Push,
): void {
  const i = f.local("v128");
  indices();
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
