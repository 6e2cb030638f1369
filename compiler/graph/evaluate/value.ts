/** Values of the reference evaluator: row-major arrays with named axes. */

import type { DType } from "../../../spec/dtype.ts";
import { roundF16 } from "../../../spec/half.ts";
import type { NodeOf, Primitive } from "../graph.ts";

/** Number arrays of the evaluator. */
export type Numbers = Float32Array | Float64Array | Int32Array | Uint32Array;

/** Compute dtype of a value: that of its node, or f64 on request. */
export type ValueDType = DType | "f64";

/** A node as references see it, with compute dtype `dtype`. */
export type Shown<P extends Primitive = Primitive> =
  & Omit<NodeOf<P>, "dtype">
  & { readonly dtype: ValueDType };

/** A tensor with its elements. */
export interface Value {
  readonly axes: readonly string[];
  readonly shape: readonly number[];
  readonly dtype: ValueDType;
  readonly data: Numbers;
}

/** How many elements a shape has. */
export function count(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** A value of zeros. */
export function zeros(
  axes: readonly string[],
  shape: readonly number[],
  dtype: ValueDType,
): Value {
  const length = count(shape);
  const data = dtype === "i32"
    ? new Int32Array(length)
    : dtype === "u32"
    ? new Uint32Array(length)
    : dtype === "f64"
    ? new Float64Array(length)
    : new Float32Array(length);
  return { axes, shape, dtype, data };
}

/** Stores a number in a value, rounded to its dtype. */
export function put(value: Value, index: number, x: number): void {
  value.data[index] = value.dtype === "f16" ? roundF16(x) : x;
}

/** The rounding of intermediate numbers computed from `value`: to f32, or none in double precision. */
export function rounding(value: Value): (x: number) => number {
  return value.dtype === "f64" ? (x) => x : Math.fround;
}

/** The stride of `data` along each of `axes`; 0 along axes that the value does not have. */
export function strides(value: Value, axes: readonly string[]): number[] {
  const steps = new Array<number>(value.axes.length);
  for (let i = value.axes.length - 1, stride = 1; i >= 0; i--) {
    steps[i] = stride;
    stride *= value.shape[i]!;
  }
  return axes.map((axis) => steps[value.axes.indexOf(axis)] ?? 0);
}

/** The length of an axis of a value. */
export function lengthOf(value: Value, axis: string): number {
  return value.shape[value.axes.indexOf(axis)]!;
}

/** Visits every index of `shape` in row-major order, with its offset in each of several arrays given their strides. */
export function visit(
  shape: readonly number[],
  arrays: readonly (readonly number[])[],
  each: (offsets: readonly number[], n: number) => void,
): void {
  const total = count(shape);
  const at = new Array<number>(shape.length).fill(0);
  const offsets = new Array<number>(arrays.length).fill(0);
  for (let n = 0; n < total; n++) {
    each(offsets, n);
    for (let i = shape.length - 1; i >= 0; i--) {
      at[i]!++;
      const carry = at[i] === shape[i];
      const steps = carry ? 1 - shape[i]! : 1;
      for (let j = 0; j < arrays.length; j++) {
        offsets[j]! += arrays[j]![i]! * steps;
      }
      if (!carry) break;
      at[i] = 0;
    }
  }
}
