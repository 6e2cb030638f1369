/**
 * Finds the best scale for the elements of a group: the minimum weighted squared error over candidates, each refined by
 * its codes.
 */

/** Elements and the weights of their errors. */
export interface Weighted {
  readonly values: Float32Array;
  /** Non-negative. */
  readonly weights: Float32Array;
}

/** Number of candidates on each side of the scale that fits the largest element, and their distance in code steps. */
const CANDIDATES = 9, DISTANCE = 0.1;

/** Returns the weights of errors: `importance` times the size of the elements, always positive. */
export function weightsOf(
  values: Float32Array,
  importance: Float32Array | undefined,
): Float32Array {
  // Loops are many times faster than methods with a function.
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! * values[i]!;
  const mean = sum / values.length;
  const root = Math.sqrt(mean);
  const weights = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const x = values[i]!;
    weights[i] = importance
      ? importance[i]! * Math.sqrt(mean + x * x)
      : root + Math.abs(x);
  }
  return weights;
}

/** Returns the largest absolute value. */
export function largestOf(values: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    largest = Math.max(largest, Math.abs(values[i]!));
  }
  return largest;
}

/** Returns the elements and weights from `begin` to `end`. */
export function partOf(
  { values, weights }: Weighted,
  begin: number,
  end: number,
): Weighted {
  return {
    values: values.subarray(begin, end),
    weights: weights.subarray(begin, end),
  };
}

/** Returns the nearest integer within bounds; of two equally near ones, the larger. */
export function clamped(x: number, low: number, high: number): number {
  // `Math.round` has a branch that processors cannot predict.
  return Math.min(high, Math.max(low, Math.floor(x + 0.5)));
}

/** Returns the scale of integers from `-bound` to `bound - 1`, or 0 if all elements are 0. */
export function symmetricScale(
  { values, weights }: Weighted,
  bound: number,
): number {
  let extreme = 0;
  for (const x of values) if (Math.abs(x) > Math.abs(extreme)) extreme = x;
  if (extreme === 0) return 0;
  let [best, scale] = [-1, -extreme / bound];
  for (let k = -CANDIDATES; k <= CANDIDATES; k++) {
    const inverse = -(bound + DISTANCE * k) / extreme;
    let [products, squares] = [0, 0];
    for (let i = 0; i < values.length; i++) {
      const code = clamped(inverse * values[i]!, -bound, bound - 1);
      products += weights[i]! * values[i]! * code;
      squares += weights[i]! * code * code;
    }
    const gain = squares > 0 ? products * products / squares : 0;
    if (gain > best) [best, scale] = [gain, products / squares];
  }
  return scale;
}

/** A scale, and the minimum that is subtracted from scaled codes. Both are non-negative. */
export interface Affine {
  readonly scale: number;
  readonly minimum: number;
}

/** Returns the scale and the minimum of integers from 0 to `max`. */
export function affineScale(
  { values, weights }: Weighted,
  max: number,
): Affine {
  let [low, high] = [0, -Infinity];
  let [total, sum] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    low = Math.min(low, values[i]!);
    high = Math.max(high, values[i]!);
    total += weights[i]!;
    sum += weights[i]! * values[i]!;
  }
  if (high <= low) return { scale: 0, minimum: -low };
  let best = { scale: (high - low) / max, minimum: -low };
  const errorOf = (fit: Affine, above: number) =>
    affineError({ values, weights }, fit, { max, above });
  let smallest = errorOf(best, Infinity);
  for (let k = -CANDIDATES; k <= CANDIDATES; k++) {
    const inverse = (max + DISTANCE * k) / (high - low);
    let [codes, squares, products] = [0, 0, 0];
    for (let i = 0; i < values.length; i++) {
      const code = clamped(inverse * (values[i]! - low), 0, max);
      const weighted = weights[i]! * code;
      codes += weighted;
      squares += weighted * code;
      products += weighted * values[i]!;
    }
    const determinant = total * squares - codes * codes;
    if (determinant <= 0) continue;
    const scale = (total * products - codes * sum) / determinant;
    const minimum = (codes * products - squares * sum) / determinant;
    const found = minimum > 0
      ? { scale, minimum }
      : { scale: products / squares, minimum: 0 };
    if (!(found.scale > 0)) continue;
    const error = errorOf(found, smallest);
    if (error < smallest) [best, smallest] = [found, error];
  }
  return best;
}

/** Returns the weighted squared error, or a part of it that is not less than `above`. */
function affineError(
  { values, weights }: Weighted,
  { scale, minimum }: Affine,
  { max, above }: { readonly max: number; readonly above: number },
): number {
  let error = 0;
  for (let i = 0; i < values.length && error < above; i++) {
    const code = clamped((values[i]! + minimum) / scale, 0, max);
    const difference = scale * code - minimum - values[i]!;
    error += weights[i]! * difference * difference;
  }
  return error;
}
