/**
 * Finds the best scale for the elements of a group: the minimum weighted squared error over candidates, each refined by
 * its codes.
 */

import { COUNT, type FitSums, fitSums } from "./fit_sums.ts";

/** Elements and the weights of their errors. */
export interface Weighted {
  /** Values of f32. */
  readonly values: Float64Array;
  /** Values of f32, non-negative. */
  readonly weights: Float64Array;
}

/** Rows, and the importance of their columns. */
export interface Rows {
  readonly values: Float32Array;
  readonly importance: Float32Array | undefined;
}

/** Elements of a group, from `begin` to `end`: at most 32. */
export interface Part extends Weighted {
  readonly begin: number;
  readonly end: number;
}

/** Number of candidates, the one that fits the largest element, and their distance in code steps. */
const CANDIDATES = COUNT - 1, MIDDLE = 9, DISTANCE = 0.1;

/** Returns memory for elements of blocks. */
export function weightedBlock(elements: number): Weighted {
  return {
    values: new Float64Array(elements),
    weights: new Float64Array(elements),
  };
}

/**
 * Copies a block of rows, from an element, and weighs its errors: by `importance` times the size of the elements,
 * always positive.
 */
export function loadBlock(
  { values, weights }: Weighted,
  rows: Rows,
  begin: number,
): void {
  const { importance } = rows;
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const x = rows.values[begin + i]!;
    values[i] = x;
    sum += x * x;
  }
  const mean = sum / values.length;
  const root = Math.sqrt(mean);
  const column = importance ? begin % importance.length : 0;
  for (let i = 0; i < values.length; i++) {
    const x = values[i]!;
    weights[i] = Math.fround(
      importance
        ? importance[column + i]! * Math.sqrt(mean + x * x)
        : root + Math.abs(x),
    );
  }
}

/** Returns the largest absolute value. */
export function largestOf(values: Float64Array): number {
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    largest = Math.max(largest, Math.abs(values[i]!));
  }
  return largest;
}

/** Returns the nearest integer within bounds; of two equally near ones, the larger. */
export function clamped(x: number, low: number, high: number): number {
  // `Math.round` has a branch that processors cannot predict.
  return Math.min(high, Math.max(low, Math.floor(x + 0.5)));
}

let compiled: FitSums | undefined;

/** Copies a group for `FitSums`, with bounds of codes. */
function loadGroup(
  { values, weights, begin, end }: Part,
  low: number,
  high: number,
): FitSums {
  compiled ??= fitSums();
  const { arrays } = compiled;
  for (let i = begin; i < end; i++) {
    arrays.values[i - begin] = values[i]!;
    arrays.weights[i - begin] = weights[i]!;
    arrays.products[i - begin] = weights[i]! * values[i]!;
  }
  arrays.low.fill(low);
  arrays.high.fill(high);
  return compiled;
}

/** Returns the scale of integers from `-bound` to `bound - 1`, or 0 if all elements are 0. */
export function symmetricScale(part: Part, bound: number): number {
  const { values, begin, end } = part;
  let extreme = 0;
  for (let i = begin; i < end; i++) {
    if (Math.abs(values[i]!) > Math.abs(extreme)) extreme = values[i]!;
  }
  if (extreme === 0) return 0;
  const { arrays, sums } = loadGroup(part, -bound, bound - 1);
  const { scaled, inverses, productSums, squareSums } = arrays;
  for (let i = begin; i < end; i++) scaled[i - begin] = values[i]!;
  for (let k = 0; k < CANDIDATES; k++) {
    inverses[k] = -(bound + DISTANCE * (k - MIDDLE)) / extreme;
  }
  sums(end - begin);
  let best = -1, scale = -extreme / bound;
  for (let k = 0; k < CANDIDATES; k++) {
    const products = productSums[k]!, squares = squareSums[k]!;
    const gain = squares > 0 ? products * products / squares : 0;
    if (gain > best) {
      best = gain;
      scale = products / squares;
    }
  }
  return scale;
}

/** A scale, and the minimum that is subtracted from scaled codes. Both are non-negative. */
export interface Affine {
  readonly scale: number;
  readonly minimum: number;
}

/** Returns the scale and the minimum of integers from 0 to `max`, which is at most 31. */
export function affineScale(part: Part, max: number): Affine {
  const { values, begin, end } = part;
  const { arrays, sums, errors } = loadGroup(part, 0, max);
  const { scaled, weights, products, inverses } = arrays;
  let low = 0, high = -Infinity, total = 0, sum = 0;
  for (let i = begin; i < end; i++) {
    low = Math.min(low, values[i]!);
    high = Math.max(high, values[i]!);
    total += weights[i - begin]!;
    sum += products[i - begin]!;
  }
  if (high <= low) return { scale: 0, minimum: -low };
  for (let i = begin; i < end; i++) scaled[i - begin] = values[i]! - low;
  for (let k = 0; k < CANDIDATES; k++) {
    inverses[k] = (max + DISTANCE * (k - MIDDLE)) / (high - low);
  }
  sums(end - begin);
  const { scales, minimums } = arrays;
  for (let k = 0; k < CANDIDATES; k++) {
    const codes = arrays.codeSums[k]!, squares = arrays.squareSums[k]!;
    // Equal to a sum of weighted codes times elements: products of two f32 and of five bits are exact.
    const product = arrays.productSums[k]!;
    const determinant = total * squares - codes * codes;
    const minimum = (codes * product - squares * sum) / determinant;
    minimums[k] = minimum > 0 ? minimum : 0;
    scales[k] = minimum > 0
      ? (total * product - codes * sum) / determinant
      : product / squares;
    if (determinant <= 0 || !(scales[k]! > 0)) scales[k] = 0;
  }
  scales[CANDIDATES] = (high - low) / max;
  minimums[CANDIDATES] = -low;
  errors(end - begin);
  let best = CANDIDATES;
  for (let k = 0; k < CANDIDATES; k++) {
    const isLess = arrays.errors[k]! < arrays.errors[best]!;
    if (isLess && scales[k]! > 0) best = k;
  }
  return { scale: scales[best]!, minimum: minimums[best]! };
}
