/** Resumes a training on any mesh: every rank reads and verifies its own shards. */

import {
  isTrained,
  type Optimizer,
  type TrainedParameters,
} from "../../compiler/mod.ts";
import {
  heldIndices,
  readTensor,
  type Session,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import { withTensors } from "../checkpoint/tensors.ts";
import { optimizerStates, shapeOf } from "./parameters.ts";
import { copySlice, emptyPart, overlaps } from "./parts.ts";
import type { SavedTraining } from "./saved.ts";

/** Context of loading a training. */
export interface Loading {
  readonly plan: Plan;
  readonly session: Session;
  /** The ranks in this process. */
  readonly ranks: readonly number[];
}

/** Verifies saved parameters. With several processes, each verifies its share of them. */
export async function checkParameters(
  folder: string,
  { sha256: wanted }: SavedTraining,
  tensors: TensorDirectory,
  { plan, ranks, trained }: Loading & {
    readonly trained?: TrainedParameters | undefined;
  },
): Promise<void> {
  const written = [...tensors.keys()].filter((name) =>
    isTrained(name, trained)
  );
  const names = [...new Set([...Object.keys(wanted), ...written])];
  for (const [i, name] of names.sort().entries()) {
    if (!ranks.includes(i % plan.ranks)) continue;
    const entry = tensors.get(name);
    const found = entry && await sha256(await bytesAt(entry));
    if (found !== wanted[name]) throw changed(folder, name);
  }
}

/** Loads the optimizer state of this process's ranks. Throws DataError if something is missing. */
export async function loadOptimizerState(
  folder: string,
  files: FileSystem,
  { optimizerState }: SavedTraining,
  into: Loading & { readonly optimizer: Optimizer },
): Promise<void> {
  const missing = optimizerStates(into.plan, into.optimizer)
    .find((state) => !Object.hasOwn(optimizerState, state));
  if (missing !== undefined) throw changed(folder, missing);
  const paths = new Set(
    Object.values(optimizerState).flatMap(({ slices }) =>
      slices.map(({ file }) => files.join(folder, file))
    ),
  );
  await withTensors([...paths], files, async (tensors) => {
    for (const state of Object.keys(optimizerState)) {
      await loadState(folder, state, optimizerState[state]!, {
        tensors,
        ...into,
      });
    }
  });
}

async function loadState(
  folder: string,
  state: string,
  { shape, slices }: SavedTraining["optimizerState"][string],
  { tensors, plan, session, ranks }: Loading & {
    readonly tensors: TensorDirectory;
  },
): Promise<void> {
  const sizes = slices.map(({ shape }) => product(shape));
  const complete = product(shape) === sizes.reduce((a, b) => a + b, 0);
  const same = Object.hasOwn(plan.buffers, state) &&
    shape.join() === shapeOf(plan, state).join();
  if (!complete || !same) throw changed(folder, state);
  const parts = ranks.map((rank) => {
    const held = heldIndices(plan, { name: state, rank });
    return { rank, held, tensor: emptyPart(shape, held) };
  });
  for (const { tensor: name, start, shape, sha256: wanted } of slices) {
    const overlapping = parts.filter(({ held }) =>
      overlaps(held, start, shape)
    );
    if (overlapping.length === 0) continue;
    const entry = tensors.get(name);
    if (entry?.shape.join() !== shape.join()) throw changed(folder, name);
    const tensor = await readTensor(entry);
    if (await sha256(tensor.data) !== wanted) throw changed(folder, name);
    for (const part of overlapping) {
      copySlice(part.tensor, part.held, { start, tensor });
    }
  }
  for (const { rank, tensor } of parts) session.writePart(state, rank, tensor);
}

async function bytesAt(
  { source, offset, bytes }: TensorEntry,
): Promise<Uint8Array> {
  return await source.read(offset, bytes);
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}

function changed(folder: string, tensor: string): DataError {
  return new DataError(
    `Cannot resume '${folder}': tensor '${tensor}' differs from the saved one. Copy the folder again, or start from an earlier one`,
  );
}
