/** Products with quantized activations: random operands, kernels and reference. */

import { evaluateSize } from "../../spec/size.ts";
import {
  type BlocksDType,
  randomBlocks,
  randomsFrom,
  transposed,
  wordsOfBlocks,
} from "./random_blocks.ts";
import { inWords } from "./halves.ts";
import {
  bindings,
  elementwiseGrid,
  type Grid,
} from "../../compiler/kernels/mod.ts";
import { matmulBytes } from "../../compiler/kernels/matmul/bytes.ts";
import {
  type BytesMatmulOptions,
  quantizedLayoutOf,
} from "../../compiler/kernels/matmul/bytes_operands.ts";
import { quantize, quantizedRow } from "../../compiler/kernels/quantize.ts";
import { type BytesArithmetic, matmulGrid } from "../../compiler/tuning/mod.ts";
import type { MatmulTile } from "../../compiler/tuning/tile.ts";
import { q8SumOf } from "../../spec/weights/activations.ts";
import { q8Dot, quantizeActivations } from "./q8_reference.ts";
import { load, store, u32 } from "../../spec/kernel/build.ts";
import { expr } from "../../compiler/kernels/kernel.ts";
import { isHalf } from "../../spec/dtype.ts";
import { narrow, widen } from "../../runtime/half.ts";
import {
  groupedDType,
  PACKED_ELEMENTS,
  type PackedDType,
  type PackedElement,
  type PackedElementName,
  type Packing,
  PACKINGS,
  type ScaleKind,
  SCALES,
  type WordsDType,
} from "../../spec/weights/packed.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";

/** Distributions of activations; the first is always finite. */
export const KINDS: readonly ((i: number, next: () => number) => number)[] = [
  (_, next) => (next() / 2 ** 31 - 1) * (next() % 64 ? 1 : 100),
  () => 127,
  (_, next) => (next() / 2 ** 31 - 1) * 2 ** (next() % 120 - 60),
  (_, next) => next() % 3 ? ofBits(next() & 0x807fffff) : -0,
  (_, next) => next() % 300 ? next() / 2 ** 31 - 1 : ofBits(next()),
  (i, next) => i % 2 ? -1 : 1 + (next() / 2 ** 31 - 1) / 64,
];

function ofBits(bits: number): number {
  return new Float32Array(Uint32Array.of(bits).buffer)[0]!;
}

function activations(kind: number, length: number): Float32Array {
  const next = randomsFrom(kind * 7919 + length);
  return Float32Array.from({ length }, (_, i) => KINDS[kind]!(i, next));
}

/** Matrix of random codes with random scales. */
interface Matrix {
  readonly stored: PackedDType;
  readonly columns: number;
  readonly k: number;
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly offsets?: Float32Array;
  /** Its zero points, if offsets are computed from them. */
  readonly zeros?: Uint8Array;
  /** Its blocks, in block formats. */
  readonly blocks?: Uint8Array;
}

function matrix(
  stored: PackedDType,
  { columns, k, seed }: { columns: number; k: number; seed: number },
): Matrix {
  const next = randomsFrom(seed);
  const packing: Packing = PACKINGS[stored];
  if (packing.block) {
    return {
      ...randomBlocks(stored as BlocksDType, { columns, k, next }),
      stored,
      columns,
      k,
    };
  }
  const { element, perScale = k, scale } = packing;
  const { bits, offset }: PackedElement = PACKED_ELEMENTS[element];
  const extreme = seed % 3 === 0;
  const codes = Uint8Array.from(
    { length: columns * k },
    () =>
      (extreme && next() % 2 ? 1 << (bits - 1) : next()) & ((1 << bits) - 1),
  );
  const number = () =>
    scale === "e8m0"
      ? 2 ** (next() % 200 - 127)
      : (next() / 2 ** 31 - 1) * 2 ** (next() % 30 - 20);
  const length = columns * k / perScale;
  const { stored: dtype, beforeZero }: ScaleKind = SCALES[scale];
  const half = beforeZero ?? (isHalf(dtype) ? dtype : undefined);
  const random = Float32Array.from({ length }, number);
  const scales = half ? widen(half, narrow(half, random)) : random;
  const zeros = beforeZero
    ? Uint8Array.from({ length }, () => next() % 17)
    : undefined;
  return {
    stored,
    columns,
    k,
    codes,
    scales,
    ...zeros ? { zeros } : {},
    ...offset
      ? {
        offsets: zeros
          ? scales.map((scale, i) => -scale * zeros[i]!)
          : Float32Array.from({ length }, number),
      }
      : {},
  };
}

/** Returns the buffers of a matrix. */
function stored(
  { stored, codes, scales, offsets, zeros, columns, blocks }: Matrix,
  inside: "n" | "k",
): { readonly [part: string]: Uint32Array } {
  const { perWord, scale, inWords: words }: Packing = PACKINGS[stored];
  const order = <T extends Uint32Array | Float32Array>(values: T) =>
    inside === "k" ? values : transposed(values, columns);
  if (blocks) {
    const weight = words
      ? order(wordsOfBlocks(stored as WordsDType, blocks))
      : inWords(blocks);
    return { weight, scales: weight, offsets: weight };
  }
  const elements = Uint32Array.from(
    { length: codes.length / perWord },
    (_, w) =>
      codes.subarray(w * perWord, (w + 1) * perWord).reduce(
        (word, code, i) => (word | code << (32 / perWord * i)) >>> 0,
        0,
      ),
  );
  const floats = (values: Float32Array) =>
    new Uint32Array(order(values).slice().buffer);
  const { stored: dtype, beforeZero }: ScaleKind = SCALES[scale];
  return {
    weight: order(elements),
    scales: scale === "e8m0"
      ? inWords(Uint8Array.from(order(scales), (x) => Math.log2(x) + 127))
      : beforeZero
      ? order(
        Uint32Array.from(
          narrow(beforeZero, scales),
          (half, i) => half | zeros![i]! << 16,
        ),
      )
      : isHalf(dtype)
      ? inWords(new Uint8Array(narrow(dtype, order(scales)).buffer))
      : floats(scales),
    ...offsets && !zeros ? { offsets: floats(offsets) } : {},
  };
}

export interface Shape {
  readonly rows: number;
  readonly k: number;
  readonly columns: number;
}

/** Evaluates a grid without dynamic lengths. */
function workgroupsOf(grid: Grid): readonly [number, number, number] {
  const [x, y, z] = grid.map((size) => evaluateSize(size, () => NaN));
  return [x!, y!, z!];
}

/** Returns the kernels of a product and their workgroups. */
function kernelsOf(
  stored: PackedDType,
  { rows, k, columns }: Shape,
  { tile, inside, arithmetic }: Variant,
) {
  const layout = quantizedLayoutOf(stored);
  const left = "rows";
  const { element, scale, block }: Packing = PACKINGS[stored];
  const { offset }: PackedElement = PACKED_ELEMENTS[element];
  const { stored: scaleType, beforeZero }: ScaleKind = SCALES[scale];
  const [scales, offsets] = block
    ? ["weight", "weight"]
    : ["scales", beforeZero ? "scales" : "offsets"];
  const first = quantize({
    name: `quantize_${layout.order}_${layout.sumOf}`,
    ...layout,
    bindings: bindings({ x: "f32" }, { rows: "u32" }),
    k,
    blocks: u32(rows * k / 32),
    at: (block, j) => load("x", expr`${block} * 32 + ${j}`),
    to: left,
  });
  const options: BytesMatmulOptions = {
    name: `matmul_bytes_${stored}_${rows}x${k}x${columns}`,
    k,
    columns,
    tile,
    arithmetic,
    rows: u32(rows),
    bindings: bindings({
      rows: "u32",
      weight: "u32",
      ...block ? {} : { scales: scaleType === "f32" ? "f32" : "u32" },
      ...offsets === "offsets" && offset ? { offsets: "f32" } : {},
    }, { y: "f32" }),
    weights: [{
      binding: "weight",
      stored,
      scales,
      ...offset ? { offsets } : {},
      inside,
      left,
    }],
    leftRow: (row) => row,
    epilogue: (
      { row, column },
      [sum],
    ) => [store("y", expr`${row} * ${columns} + ${column}`, sum!)],
  };
  return {
    first,
    second: matmulBytes(options),
    grids: [
      workgroupsOf(elementwiseGrid(rows * k / 32)),
      workgroupsOf(matmulGrid(options, rows)),
    ],
  } as const;
}

/** Variant of the matmul kernel. */
export interface Variant {
  readonly tile: MatmulTile;
  readonly inside: "n" | "k";
  readonly arithmetic: BytesArithmetic;
}

export const GUARDED: Variant = {
  tile: { rows: 4, columns: 2, lanes: 32 },
  inside: "n",
  arithmetic: "guarded",
};
export const SIGNED: Variant = {
  tile: { rows: 4, columns: 2, lanes: 64, split: 16, right: "workgroup" },
  inside: "n",
  arithmetic: "signed",
};
export const UNSIGNED: Variant = {
  tile: { rows: 8, columns: 2, lanes: 256, split: 16, right: "workgroup" },
  inside: "k",
  arithmetic: "unsigned",
};

/** Formats whose products are computed with integers. */
const ELEMENTS = Object.keys(PACKED_ELEMENTS) as PackedElementName[];
export const STORED = [
  ...ELEMENTS.flatMap((element) =>
    ([16, 32, 64] as const).map((size) => groupedDType(element, size))
  ),
  "int4x32_bf16",
  "uint4x32_f16_zero",
  "uint4x64_bf16_zero",
  "mxfp4",
  "int8",
].filter((stored) =>
  q8SumOf(PACKINGS[stored as PackedDType]) !== undefined
) as PackedDType[];

export const SHAPES: readonly Shape[] = [
  { rows: 1, k: 512, columns: 40 },
  { rows: 3, k: 192, columns: 33 },
  { rows: 9, k: 320, columns: 17 },
  { rows: 140, k: 128, columns: 20 },
];

export type Run = (
  kernel: Kernel,
  buffers: { readonly [name: string]: Uint32Array },
  groups: readonly [number, number, number],
) => Promise<{ readonly [name: string]: Uint32Array }>;

export interface Case {
  readonly stored: PackedDType;
  readonly shape: Shape;
  readonly kind: number;
}

export function titleOf({ stored, shape, kind }: Case): string {
  return `${stored} ${Object.values(shape).join("x")}, kind ${kind}`;
}

/** Compares a product with the reference, bit by bit. Returns the first difference, or undefined. */
export async function productError(
  run: Run,
  variant: Variant,
  { stored: dtype, shape, kind }: Case,
): Promise<string | undefined> {
  const { rows, k, columns } = shape;
  const x = activations(kind, rows * k);
  const weights = matrix(dtype, { columns, k, seed: kind + rows * 3 });
  const { first, second, grids } = kernelsOf(dtype, shape, variant);
  const row = quantizedRow(k, quantizedLayoutOf(dtype));
  const quantized = await run(first, {
    x: new Uint32Array(x.buffer),
    rows: new Uint32Array(rows * row.words),
  }, grids[0]);
  const wanted = quantizeActivations(x);
  const scales = Array.from(
    { length: rows },
    (_, at) =>
      quantized["rows"]!.subarray(
        at * row.words + row.scales,
        at * row.words + row.sums,
      ),
  );
  if (new Uint32Array(wanted.scales.buffer).join() !== scales.join()) {
    return "scales differ";
  }
  const found = await run(second, {
    ...quantized,
    ...stored(weights, variant.inside),
    y: new Uint32Array(rows * columns),
  }, grids[1]);
  const y = new Float32Array(found["y"]!.buffer);
  const packing: Packing = PACKINGS[dtype];
  const { perScale = k } = packing;
  const of = (values: Float32Array, at: number, each: number) =>
    values.subarray(at * each, (at + 1) * each);
  for (let row = 0; row < rows; row++) {
    const left = {
      codes: wanted.codes.subarray(row * k, (row + 1) * k),
      scales: of(wanted.scales, row, k / 32),
    };
    for (let column = 0; column < columns; column++) {
      const each = k / perScale;
      const dot = q8Dot(left, {
        packing,
        codes: weights.codes.subarray(column * k, (column + 1) * k),
        scales: of(weights.scales, column, each),
        offsets: weights.offsets && of(weights.offsets, column, each),
      });
      const result = y[row * columns + column]!;
      if (!Object.is(result, dot)) {
        return `row ${row}, column ${column}: ${result}, not ${dot}`;
      }
    }
  }
  return undefined;
}
