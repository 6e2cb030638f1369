/** Matrices in the formats of NVIDIA ModelOpt, and the same elements and scales as compressed-tensors. */

import { nearestCode } from "../../engine/encodings/nearest.ts";
import type { FileTensor } from "./quantized_checkpoint.ts";

/** A quantized matrix: `NAME.weight` and the other tensors of its module, by suffix, and its values. */
export interface Quantized {
  readonly modelopt: { readonly [suffix: string]: FileTensor };
  readonly compressed: { readonly [suffix: string]: FileTensor };
  readonly values: Float32Array<ArrayBuffer>;
}

/** Rows and columns. */
export type MatrixSize = readonly [rows: number, columns: number];

const fp4 = nearestCode("fp4");
const fp8 = nearestCode("fp8");

const f32 = (values: readonly number[], shape: readonly number[] = []) =>
  ({ dtype: "F32", shape, data: Float32Array.from(values) }) as const;

const largest = (values: Float32Array) =>
  values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

const half = (codes: Uint8Array) =>
  Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => codes[2 * i]! | codes[2 * i + 1]! << 4,
  );

/** NVFP4. The factor of the matrix is the f32 nearest to the reciprocal of the scale of compressed-tensors. */
export function nvfp4(x: Float32Array, [rows, columns]: MatrixSize): Quantized {
  const reciprocal = Math.fround(6 * 448 / largest(x));
  const global = Math.fround(1 / reciprocal);
  const scales = Uint8Array.from(
    { length: x.length / 16 },
    (_, i) =>
      fp8.code(largest(x.subarray(16 * i, 16 * i + 16)) / 6 / global) || 1,
  );
  const scaleOf = (i: number) =>
    Math.fround(fp8.value(scales[Math.floor(i / 16)]!) * global);
  const codes = Uint8Array.from(x, (x, i) => fp4.code(x / scaleOf(i)));
  const packed = {
    dtype: "U8",
    shape: [rows, columns / 2],
    data: half(codes),
  } as const;
  const weight_scale = {
    dtype: "F8_E4M3",
    shape: [rows, columns / 16],
    data: scales,
  } as const;
  return {
    modelopt: {
      weight: packed,
      weight_scale,
      weight_scale_2: f32([global]),
      input_scale: f32([0.125]),
    },
    compressed: {
      weight_packed: packed,
      weight_scale,
      weight_global_scale: f32([reciprocal], [1]),
      input_global_scale: f32([8], [1]),
    },
    values: Float32Array.from(codes, (code, i) => fp4.value(code) * scaleOf(i)),
  };
}

/** FP8 with a scale for the matrix (`FP8`), per row, per 128x128 block, or per 32 columns as E8M0 (`MXFP8`). */
export function fp8In(
  form: "FP8" | "FP8_PER_CHANNEL_PER_TOKEN" | "FP8_PB_WO" | "MXFP8",
  x: Float32Array,
  [rows, columns]: MatrixSize,
): Quantized {
  const [height, width] = {
    FP8: [rows, columns],
    FP8_PER_CHANNEL_PER_TOKEN: [1, columns],
    FP8_PB_WO: [128, 128],
    MXFP8: [1, 32],
  }[form] as [number, number];
  const [down, across] = [Math.ceil(rows / height), Math.ceil(columns / width)];
  const blockOf = (i: number) =>
    Math.floor(i / columns / height) * across +
    Math.floor((i % columns) / width);
  const most = new Float32Array(down * across);
  x.forEach((x, i) =>
    most[blockOf(i)] = Math.max(most[blockOf(i)]!, Math.abs(x))
  );
  const scales = most.map((most) =>
    form === "MXFP8" ? 2 ** Math.ceil(Math.log2(most / 448)) : most / 448
  );
  const data = Uint8Array.from(x, (x, i) => fp8.code(x / scales[blockOf(i)]!));
  const shape = {
    FP8: [],
    FP8_PER_CHANNEL_PER_TOKEN: [rows],
    FP8_PB_WO: [down, 1, across, 1],
    MXFP8: [down, across],
  }[form];
  const exponents = Uint8Array.from(scales, (scale) => 127 + Math.log2(scale));
  const weight = { dtype: "F8_E4M3", shape: [rows, columns], data } as const;
  return {
    modelopt: {
      weight,
      weight_scale: form === "MXFP8"
        ? { dtype: "U8", shape, data: exponents }
        : { dtype: "F32", shape, data: scales },
    },
    compressed: {
      weight,
      weight_scale: { dtype: "F32", shape: [down, across], data: scales },
    },
    values: Float32Array.from(
      data,
      (code, i) => fp8.value(code) * scales[blockOf(i)]!,
    ),
  };
}
