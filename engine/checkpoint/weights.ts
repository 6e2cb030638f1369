/** Checks the tensors of safetensors files against a plan: all present, with the right shape, and no others. */

import { sourceNames } from "../../spec/axis_parts.ts";
import type { TensorDirectory } from "../../runtime/mod.ts";
import { weightForm } from "../../runtime/weights/form.ts";
import type { FileDType, StoredDType } from "../../spec/dtype.ts";
import { nearName } from "../../spec/near_name.ts";
import { DataError } from "../../spec/errors.ts";
import { packedParts } from "../../spec/weights/packed.ts";
import { shown } from "../../spec/shown.ts";
import type { Plan, PlanWeight } from "../../spec/plan/plan.ts";

/** Storage dtypes by their names in safetensors files. */
const STORED: { readonly [dtype: string]: StoredDType } = {
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
  I32: "i32",
  U32: "u32",
};

/**
 * Buffers and copies in published checkpoints besides their parameters. Scales of activations and of KV caches are for
 * kernels that quantize those.
 */
const HARMLESS =
  /\.rotary_emb\.inv_freq$|^lm_head\.weight$|\.(input(_global)?_scale|[kv]_scale)$/;

/**
 * The storage dtypes of parameters with fewer than 32 bits, for the compiler; all others must have the compute dtype.
 */
export function storedDTypes(
  tensors: TensorDirectory,
): { readonly [tensor: string]: FileDType } {
  const parts = packedParts(
    tensors.keys(),
    (file, name) => tensors.get(name)!.dtype === file.dtype,
  );
  return Object.fromEntries(
    [...tensors].flatMap(([name, { dtype, packed }]): [string, FileDType][] => {
      if (packed) return [[name, packed]];
      const part = parts.get(name);
      if (part) return [[part.param, part.dtype]];
      return dtype === "F16" || dtype === "BF16"
        ? [[name, STORED[dtype]!]]
        : [];
    }),
  );
}

/**
 * Throws a DataError for the first tensor that is missing, has another shape or dtype, or is not used.
 *
 * @param of where: the folder or file, for messages; unused: prefixes of unused tensors that are allowed
 */
export function checkTensors(
  plan: Plan,
  tensors: TensorDirectory,
  { where, unused = [] }: {
    readonly where: string;
    readonly unused?: readonly string[];
  },
): void {
  const wanted = new Set(
    plan.weights.flatMap((weight) => sourceNames(plan, weight)),
  );
  const spare = () => [...tensors.keys()].filter((name) => !wanted.has(name));
  const viewed = new Set<string>();
  for (const weight of plan.weights) {
    for (const name of sourceNames(plan, weight)) {
      for (const of of tensors.get(name)?.of ?? []) viewed.add(of);
      checkTensor(weight, tensors, { name, where, spare });
    }
  }
  for (const [name, { of = [name] }] of tensors) {
    if (wanted.has(name) || HARMLESS.test(name)) continue;
    if (of.some((source) => viewed.has(source))) continue;
    if (unused.some((start) => name.startsWith(start))) continue;
    throw new DataError(
      `Cannot load '${where}': tensor '${
        shown(name)
      }' is not part of the model. Remove it, or check that the model is the right one`,
    );
  }
}

function checkTensor(
  weight: PlanWeight,
  tensors: TensorDirectory,
  { name, where, spare }: {
    readonly name: string;
    readonly where: string;
    /** Tensors that the model does not use. */
    readonly spare: () => readonly string[];
  },
): void {
  const found = tensors.get(name);
  if (found === undefined) {
    const near = nearName(name, spare());
    throw new DataError(
      near !== undefined
        ? `Cannot load '${where}': tensor '${name}' is missing. Its tensor '${
          shown(near)
        }' is not used: correct one of the names`
        : `Cannot load '${where}': tensor '${name}' is missing. Copy the file again, or check that the model is the right one`,
    );
  }
  if (weightForm(weight, found) !== undefined) return;
  if (found.shape.join(" ") !== weight.shape.join(" ")) {
    throw new DataError(
      `Cannot load '${where}': tensor '${name}' has shape [${
        shown(found.shape.join(", "))
      }], and the model expects [${weight.shape.join(", ")}] (${
        weight.axes.join(" ")
      }). Check that the model is the right one`,
    );
  }
  if (STORED[found.dtype] !== weight.stored) {
    throw new DataError(
      `Cannot load '${where}': tensor '${name}' is ${found.dtype}, and the plan expects ${weight.stored.toUpperCase()}. Convert it, or compile the model again for these weights`,
    );
  }
}
