/** Scatters elements of a file into the layout of a buffer: transposed axes, selected indices, padded rows. */

import type { StoredDType } from "../../spec/dtype.ts";

/** Destinations of a file tensor's elements, in elements of the buffer. */
export interface ScatterLayout {
  /** By file axis: its length, its stride in the buffer, and for a slice each index's local index or -1. */
  readonly axes: readonly {
    readonly size: number;
    readonly stride: number;
    readonly local: Int32Array | undefined;
  }[];
  /** Buffer element of the first and of the last selected element. */
  readonly lowest: number;
  readonly highest: number;
}

/** Elements as bits. */
export type Words = Uint8Array | Uint16Array | Uint32Array;

/** The part of a buffer being assembled, and the dtype in which infinities and NaNs are rejected. */
export interface ScatterTarget {
  readonly target: Words;
  /** Buffer element at the start of `target`. */
  readonly from: number;
  readonly stored: StoredDType;
}

/** Exponent bits that are all ones in infinities and NaNs. */
const EXPONENT: { readonly [D in StoredDType]: number } = {
  f32: 0x7f800000,
  f16: 0x7c00,
  bf16: 0x7f80,
  i32: 0,
  u32: 0,
  u8: 0,
};

/**
 * Scatters some rows of the first file axis, contained in `source`. Elements outside the target are skipped. Returns
 * the index of the first non-finite element, if any.
 */
export function scatter(
  source: Words,
  rows: readonly [begin: number, end: number],
  placed: ScatterLayout,
  into: ScatterTarget,
): number[] | undefined {
  const [begin, end] = rows;
  const { axes, lowest } = placed;
  const exponent = EXPONENT[into.stored];
  let bad: number[] | undefined;
  let read = 0;
  const visit = (i: number, at: number, index: readonly number[]): void => {
    const axis = axes[i];
    const [from, to] = i === 0 ? [begin, axis ? end : 1] : [0, axis!.size];
    if (i >= axes.length - 1) {
      const stride = axis?.stride ?? 1;
      const flaw = putRun(
        source.subarray(read, read += to - from),
        at - into.from + (axis?.local ? 0 : from * stride),
        stride,
        axis?.local?.subarray(from, to),
        into.target,
        exponent,
      );
      if (flaw >= 0) bad ??= axis ? [...index, from + flaw] : [];
      return;
    }
    const skipped = axes.slice(i + 1).reduce((n, { size }) => n * size, 1);
    for (let j = from; j < to && !bad; j++) {
      const local = axis!.local ? axis!.local[j]! : j;
      if (local < 0) read += skipped;
      else visit(i + 1, at + local * axis!.stride, [...index, j]);
    }
  };
  visit(0, lowest, []);
  return bad;
}

/** Scatters one run of the last file axis. Returns the index of the first non-finite element, or -1. */
function putRun(
  run: Words,
  at: number,
  stride: number,
  local: Int32Array | undefined,
  target: Words,
  exponent: number,
): number {
  if (exponent !== 0) {
    for (let j = 0; j < run.length; j++) {
      if (
        (run[j]! & exponent) === exponent && (!local || local[j]! >= 0)
      ) return j;
    }
  }
  if (local) {
    for (let j = 0; j < run.length; j++) {
      const to = at + local[j]! * stride;
      if (local[j]! >= 0 && to >= 0 && to < target.length) target[to] = run[j]!;
    }
  } else if (stride === 1 && at >= 0 && at + run.length <= target.length) {
    target.set(run, at);
  } else {
    for (let j = 0, to = at; j < run.length; j++, to += stride) {
      if (to >= 0 && to < target.length) target[to] = run[j]!;
    }
  }
  return -1;
}
