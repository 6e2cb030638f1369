// Scales of groups of elements, against the same choice by plain loops in f64.

import t from "tap";
import { affineScale, clamped, symmetricScale } from "../engine/gguf/fit.ts";
import { range } from "../spec/range.ts";
import { randoms } from "./helpers/random_values.ts";

/** Candidates: the ratio of the largest code to the largest element differs by so many codes. */
const STEPS = range(19).map((k) => 0.1 * (k - 9));

/** A group in which the weight of one small element exceeds all others. */
const ONE_WEIGHT = "with one large weight";

/** Kinds of groups of 32 f32 elements: an element of each, of a random number and its index. */
const GROUPS: { readonly [what: string]: (x: number, i: number) => number } = {
  uniform: (x) => x,
  positive: (x) => Math.abs(x),
  negative: (x) => -Math.abs(x),
  "of three values": (x) => Math.round(x),
  ties: (x) => Math.round(x * 8) / 8,
  constant: () => 0.3,
  "of zeros": () => -0,
  sparse: (x, i) => i === 5 ? x : 0,
  "of many magnitudes": (x, i) => x * 2 ** (i * 7 - 112),
  subnormal: (x) => x * 2 ** -140,
  huge: (x) => x * 2 ** 126,
  [ONE_WEIGHT]: (x, i) => i === 5 ? x / 32 : x,
};

interface Group {
  readonly values: Float64Array;
  readonly weights: Float64Array;
}

function groupOf(what: string, seed: number): Group {
  const values = randoms(32, seed);
  const weights = randoms(32, seed + 1000);
  return {
    values: Float64Array.from(
      values,
      (x, i) => Math.fround(GROUPS[what]!(x, i)),
    ),
    weights: Float64Array.from(
      weights,
      (x, i) =>
        what === ONE_WEIGHT && i !== 5 ? 2 ** -100 : Math.fround(Math.abs(x)),
    ),
  };
}

/** The sums of a candidate in the order of elements: of weighted codes, their squares and products with elements. */
function sumsOf({ values, weights }: Group, code: (x: number) => number) {
  let [codes, squares, products] = [0, 0, 0];
  values.forEach((x, i) => {
    const c = code(x), weighted = weights[i]! * c;
    codes += weighted;
    squares += weighted * c;
    products += weights[i]! * x * c;
  });
  return { codes, squares, products };
}

function expectedSymmetric(group: Group, bound: number): number {
  const extreme = group.values.reduce(
    (a, b) => Math.abs(b) > Math.abs(a) ? b : a,
    0,
  );
  if (extreme === 0) return 0;
  let [best, scale] = [-1, -extreme / bound];
  for (const step of STEPS) {
    const inverse = -(bound + step) / extreme;
    const { squares, products } = sumsOf(
      group,
      (x) => clamped(x * inverse, -bound, bound - 1),
    );
    const gain = squares > 0 ? products * products / squares : 0;
    if (gain > best) [best, scale] = [gain, products / squares];
  }
  return scale;
}

function expectedAffine(group: Group, max: number): [number, number] {
  const { values, weights } = group;
  const low = Math.min(0, ...values), high = Math.max(...values);
  if (high <= low) return [0, -low];
  let [total, sum] = [0, 0];
  values.forEach((x, i) => {
    total += weights[i]!;
    sum += weights[i]! * x;
  });
  const errorOf = ([scale, minimum]: [number, number]) =>
    values.reduce((error, x, i) => {
      const code = clamped((x + minimum) / scale, 0, max);
      const difference = code * scale - minimum - x;
      return error + weights[i]! * difference * difference;
    }, 0);
  let best: [number, number] = [(high - low) / max, -low];
  for (const step of STEPS) {
    const inverse = (max + step) / (high - low);
    const { codes, squares, products } = sumsOf(
      group,
      (x) => clamped((x - low) * inverse, 0, max),
    );
    const determinant = total * squares - codes * codes;
    if (!(determinant > 0)) continue;
    const minimum = (codes * products - squares * sum) / determinant;
    const scale = minimum > 0
      ? (total * products - codes * sum) / determinant
      : products / squares;
    const candidate: [number, number] = [scale, Math.max(0, minimum)];
    if (scale > 0 && errorOf(candidate) < errorOf(best)) best = candidate;
  }
  return best;
}

for (const what of Object.keys(GROUPS)) {
  t.test(`scales of groups: ${what}`, (t) => {
    for (let seed = 1; seed <= 50; seed++) {
      const group = groupOf(what, seed);
      for (const end of [16, 32]) {
        const part = { ...group, begin: 0, end };
        const taken = {
          values: group.values.slice(0, end),
          weights: group.weights.slice(0, end),
        };
        for (const bound of [8, 16, 32]) {
          const name = `seed ${seed}, ${end} elements, ${bound}`;
          t.equal(
            symmetricScale(part, bound),
            expectedSymmetric(taken, bound),
            name,
          );
        }
        const { scale, minimum } = affineScale(part, 15);
        t.strictSame(
          [scale, minimum + 0],
          expectedAffine(taken, 15).map((x) => x + 0),
          `seed ${seed}, ${end} elements, affine`,
        );
      }
    }
    t.end();
  });
}
