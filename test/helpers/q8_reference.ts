/** Products with `q8` activations, by spec/numerics.md: the reference that kernels are compared with. */

import {
  Q8_BLOCK,
  Q8_LIMITS,
  Q8_MIN,
  Q8_NAN,
  Q8_STEP,
  q8PartsOf,
  q8SumOf,
} from "../../spec/weights/activations.ts";
import { invariant } from "../../spec/errors.ts";
import { addAsTree } from "../../spec/numerics.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
  type Packing,
} from "../../spec/weights/packed.ts";

/** Rows of activations as integers. */
export interface QuantizedActivations {
  readonly codes: Int8Array;
  /** One per 32 elements. */
  readonly scales: Float32Array;
}

const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

function bitsOf(x: number): number {
  FLOAT[0] = x;
  return BITS[0]!;
}

function floatOf(bits: number): number {
  BITS[0] = bits;
  return FLOAT[0]!;
}

/** Quantizes rows of complete blocks. */
export function quantizeActivations(x: Float32Array): QuantizedActivations {
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(x.length / Q8_BLOCK);
  for (let b = 0; b < scales.length; b++) {
    const block = x.subarray(b * Q8_BLOCK, (b + 1) * Q8_BLOCK);
    const largest = block.reduce(
      (max, value) => Math.max(max, bitsOf(value) & 0x7fffffff),
      0,
    );
    if (largest >= Q8_LIMITS.none) scales[b] = floatOf(Q8_NAN);
    if (largest >= Q8_LIMITS.none || largest < Q8_LIMITS.zero) continue;
    const exponent = largest >>> 23;
    const m = ((largest & 0x7fffff | 0x800000) + 0xff) >>> 8;
    const inverse = Math.floor(127 * 2 ** 24 / m) * 2 ** (118 - exponent);
    scales[b] = Math.fround(m * floatOf(Q8_STEP)) * 2 ** (exponent - 142);
    block.forEach((value, i) => {
      codes[b * Q8_BLOCK + i] = toEven(Math.fround(value * inverse));
    });
  }
  return { codes, scales };
}

/** Rounds to the nearest integer, ties to even. */
function toEven(x: number): number {
  const down = Math.floor(x);
  const apart = x - down;
  if (apart !== 0.5) return apart < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/** A row of a packed matrix. */
export interface PackedRow {
  readonly packing: Packing;
  readonly codes: Uint8Array;
  /** One per `perScale` codes of the packing. */
  readonly scales: Float32Array;
  /** As many as scales, if the element kind has offsets. */
  readonly offsets?: Float32Array | undefined;
}

/** The product of a row of activations and a row of weights. `parts`: parts of the sum, if it is sharded. */
export function q8Dot(
  left: QuantizedActivations,
  { packing, codes, scales, offsets }: PackedRow,
  parts = q8PartsOf(left.scales.length),
): number {
  const { value, step = 1 }: PackedElement = PACKED_ELEMENTS[packing.element];
  const size = q8SumOf(packing);
  invariant(size, "weights are integers");
  const { perScale = codes.length } = packing;
  const { fround } = Math;
  const factor = (x: number) => Math.abs(x) < Q8_MIN ? 0 : x;
  const sums = codes.length / size;
  const ofPart = sums / parts;
  return addAsTree(
    Array.from({ length: parts }, (_, part) => {
      let total = 0;
      for (let n = part * ofPart; n < (part + 1) * ofPart; n++) {
        let [sum, all] = [0, 0];
        for (let i = n * size; i < (n + 1) * size; i++) {
          sum += left.codes[i]! * value(codes[i]!) / step;
          all += left.codes[i]!;
        }
        const scale = left.scales[Math.floor(n * size / Q8_BLOCK)]!;
        const at = Math.floor(n * size / perScale);
        const term = (sum: number, by: number) =>
          fround(sum * fround(factor(by) * scale));
        total = fround(total + term(sum, fround(scales[at]! * step)));
        if (offsets) total = fround(total + term(all, offsets[at]!));
      }
      return total;
    }),
    (a, b) => fround(a + b),
  );
}
