/** Conversion of the bytes of a file's tensor to the elements of a weight. */

import type { PlanWeight } from "../../spec/plan/plan.ts";
import type { TensorEntry } from "./safetensors.ts";

/** `elements`: stored elements; `words`: four bytes are one u32; `bytes`: each byte becomes a u32. */
export type WeightForm = "elements" | "words" | "bytes";

/** The form of a tensor for a weight. Undefined if it has another dtype or shape. */
export function weightForm(
  weight: Pick<PlanWeight, "stored" | "shape" | "source">,
  entry: Pick<TensorEntry, "dtype" | "shape">,
): WeightForm | undefined {
  const { stored, shape } = weight;
  const same = [shape, fileShape(weight)].some((known) =>
    known.join() === entry.shape.join()
  );
  if (entry.dtype === stored.toUpperCase()) {
    return same ? "elements" : undefined;
  }
  const bytewise = entry.dtype === "U8" || entry.dtype === "I8";
  if (!bytewise || stored !== "u32") return undefined;
  if (same && entry.dtype === "U8") return "bytes";
  const bytes = shape.map((n, i) => i === shape.length - 1 ? 4 * n : n);
  return entry.shape.join() === bytes.join() ? "words" : undefined;
}

/**
 * The shape of a weight in files: its own, except for adapters of experts in one tensor, whose matrices are
 * `expert·rank inputs` and `outputs rank·expert`.
 */
export function fileShape(
  { source, shape }: Pick<PlanWeight, "source" | "shape">,
): readonly number[] {
  const [, matrix] = /\.lora_([AB])\.weight$/.exec(source) ?? [];
  const [a = 1, b = 1, c = 1] = shape;
  if (matrix === undefined || shape.length !== 3) return shape;
  return matrix === "A" ? [a * b, c] : [a, b * c];
}
