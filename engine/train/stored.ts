/** 16-bit parameters in training: their selection, their initial values, and their f32 master weights. */

import { modelAxis, sourceNames } from "../../spec/axis_parts.ts";
import {
  MASTER,
  type Optimizer,
  type TrainedParameters,
} from "../../compiler/mod.ts";
import {
  type FileTensor,
  heldIndices,
  type HostTensor,
  narrow,
  type Session,
} from "../../runtime/mod.ts";
import { type FileDType, isHalf, type StoredDType } from "../../spec/dtype.ts";
import { DataError } from "../../spec/errors.ts";
import type { Plan, PlanWeight } from "../../spec/plan/plan.ts";
import { packingOf } from "../../spec/weights/packed.ts";
import { shown } from "../../spec/shown.ts";
import { listWeightFiles } from "../checkpoint/checkpoint.ts";
import { isGguf } from "../gguf/folder.ts";
import type { FileSystem } from "../files.ts";
import type { Tensors } from "../run.ts";
import { readTensors, withTensors } from "../checkpoint/tensors.ts";
import { storedDTypes } from "../checkpoint/weights.ts";
import { shapeOf } from "./parameters.ts";
import { copySlice, emptyPart } from "./parts.ts";

/**
 * Storage dtypes of the tensors in a folder, from the headers of its files. Empty without weights. Throws DataError for
 * weights that cannot be trained: those of a GGUF file, and quantized ones unless only adapters are trained.
 */
export async function storedIn(
  folder: string,
  files: FileSystem,
  trained?: TrainedParameters,
): Promise<{ readonly [tensor: string]: FileDType }> {
  if (!isGguf(folder) && await files.stat(folder) !== "folder") return {};
  if (!await hasWeights(folder, files)) return {};
  const stored = await withTensors(
    await listWeightFiles(folder, files),
    files,
    (tensors) => Promise.resolve(storedDTypes(tensors)),
  );
  const [tensor, packing] = Object.entries(stored)
    .map(([name, dtype]) => [name, packingOf(dtype)] as const)
    .find(([, packing]) => packing !== undefined) ?? [];
  if (packing === undefined || trained === "adapters") return stored;
  throw untrained(
    folder,
    `tensor '${shown(tensor!)}' is quantized (${packing.title})`,
    ", or train adapters (--lora)",
  );
}

function untrained(folder: string, state: string, more = ""): DataError {
  return new DataError(
    `Cannot train '${folder}': ${state}. Give a checkpoint folder in f32, bf16 or f16${more}`,
  );
}

/** Whether a folder has weight files. Throws DataError for a GGUF file, which is not trained. */
export async function hasWeights(
  folder: string,
  files: FileSystem,
): Promise<boolean> {
  if (isGguf(folder)) throw untrained(folder, "it is a GGUF file");
  const names = await files.list(folder);
  return names.some((name) => name.endsWith(".safetensors"));
}

/** The weights of a folder, widened to f32. Undefined if it has none. */
export async function storedWeights(
  folder: string,
  files: FileSystem,
): Promise<Tensors | undefined> {
  if (!await hasWeights(folder, files)) return undefined;
  const read: { [name: string]: HostTensor } = {};
  for (const path of await listWeightFiles(folder, files)) {
    Object.assign(read, await readTensors(path, files));
  }
  return read;
}

/** Initial values as stored by a plan: 16-bit ones are rounded. Throws DataError if one is out of range. */
export function storedTensors(
  plan: Plan,
  initial: Tensors,
): { readonly [name: string]: FileTensor } {
  const tensors: { [name: string]: FileTensor } = { ...initial };
  for (const weight of plan.weights) {
    for (const name of sourceNames(plan, weight)) {
      const tensor = initial[name];
      if (tensor) tensors[name] = storedAs(name, weight.stored, tensor);
    }
  }
  return tensors;
}

function storedAs(
  name: string,
  stored: StoredDType,
  { shape, data, dtype }: HostTensor,
): FileTensor {
  if (!isHalf(stored) || !(data instanceof Float32Array)) {
    return { dtype, shape, data };
  }
  const halves = narrow(stored, data);
  const infinite = stored === "f16" ? 0x7c00 : 0x7f80;
  const large = halves.findIndex((bits) => (bits & 0x7fff) === infinite);
  if (large >= 0) {
    throw new DataError(
      `Cannot train '${name}' in ${stored}: its element ${large} is ${
        data[large]
      }, which ${stored} has no number for. Train it in another dtype`,
    );
  }
  return { dtype: stored, shape, data: halves };
}

/** Initializes the master weights of 16-bit parameters on this process's ranks with the unrounded values. */
export function writeMasters(
  { plan, session, ranks }: {
    readonly plan: Plan;
    readonly session: Session;
    readonly ranks: readonly number[];
  },
  { kind }: Optimizer,
  initial: Tensors,
): void {
  for (const weight of plan.weights) {
    const state = `${MASTER[kind]}.${weight.buffer}`;
    // Constant parameters have no master weights.
    if (!isHalf(weight.stored) || !Object.hasOwn(plan.buffers, state)) continue;
    const stack = stackedAt(plan, weight, state);
    for (const rank of ranks) {
      const held = heldIndices(plan, { name: state, rank });
      const part = emptyPart(shapeOf(plan, state), held);
      for (const [i, name] of sourceNames(plan, weight).entries()) {
        const { dtype, shape, data } = initial[name]!;
        const [size, start] = [[...shape], shape.map(() => 0)];
        if (stack !== undefined) {
          size.splice(stack, 0, 1);
          start.splice(stack, 0, i);
        }
        const tensor = { dtype, shape: size, data };
        copySlice(part, held, { start, tensor });
      }
      session.writePart(state, rank, part);
    }
  }
}

/** The axis of a state along which its source tensors are stacked. Undefined for a single tensor. */
function stackedAt(
  plan: Plan,
  { stack }: PlanWeight,
  state: string,
): number | undefined {
  if (stack === undefined) return undefined;
  const stacked = modelAxis(plan, stack);
  return plan.buffers[state]!.axes.findIndex(({ axis }) =>
    modelAxis(plan, axis) === stacked
  );
}
