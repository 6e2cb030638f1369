/** Trains the export of `train` in a model file. */

import type { Batches, Training } from "../../compiler/mod.ts";
import { checkTensors } from "../../runtime/mod.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import type { PlanOptions } from "../open.ts";
import type { Tensors } from "../run.ts";
import { initialWeights } from "./initial.ts";
import type { Task, WeighedBatch } from "./task.ts";

/** The task of a declared training. */
export async function declaredTask(
  training: Training,
  files: FileSystem,
): Promise<Task> {
  const { model, loss = "loss", optimizer, schedule, clipNorm } = training;
  const { seed = 0, deviation = 0.02 } = training;
  const { accumulate = 1, biasUpdate, dtype } = training;
  const data = checked(training.data, "data");
  const validation = training.validation &&
    checked(training.validation, "validation");
  return {
    model,
    loss,
    ...meshOptions(training),
    settings: {
      optimizer,
      schedule,
      seed,
      ...clipNorm === undefined ? {} : { clipNorm },
      ...accumulate === 1 ? {} : { accumulate },
      ...biasUpdate === undefined ? {} : { biasUpdate },
      ...dtype === undefined ? {} : { dtype },
    },
    // A function cannot be compared, but its first batch can.
    text: await digest(data(1)),
    taken: accumulate,
    validation: validation && {
      count: training.validationBatches ?? 1,
      at: (index) => Promise.resolve(weighed(validation(index + 1))),
    },
    where: "the initial weights",
    initial: (plan) =>
      Promise.resolve(initialWeights(plan, { seed, deviation })),
    batch: (index) => Promise.resolve(weighed(data(index + 1))),
    prepare: (out) => files.makeFolder(out),
    close: () => Promise.resolve(),
  };
}

/** The mesh and the placements of a declared training, if any. */
export function meshOptions(
  { mesh, place }: Training,
): Pick<PlanOptions, "mesh" | "place"> {
  return {
    ...mesh ? { mesh } : {},
    ...place ? { place } : {},
  };
}

/** Batches of a function whose values are known to be tensors. */
function checked(batch: Batches, name: string): Batches {
  return (index) => {
    const inputs = batch(index);
    checkTensors(inputs, `Cannot train on batch ${index} of '${name}'`);
    return inputs;
  };
}

/** Maximum length of the first axes of a batch: its tokens. */
function rowsOf(inputs: Tensors): number {
  return Math.max(...Object.values(inputs).map(({ shape }) => shape[0] ?? 1));
}

/** The weight of a batch: its labels that are not ignored, or 1 without labels. */
function weighed(inputs: Tensors): WeighedBatch {
  const labels = inputs["labels"]?.data;
  let counted = labels ? 0 : 1;
  labels?.forEach((label) => counted += label >= 0 ? 1 : 0);
  return { inputs, counted, tokens: rowsOf(inputs) };
}

async function digest(inputs: Tensors): Promise<string> {
  const parts: string[] = [];
  for (const [name, { data, shape }] of Object.entries(inputs).sort()) {
    parts.push(`${name} ${shape.join(" ")} ${await sha256(data)}`);
  }
  return await sha256(new TextEncoder().encode(parts.join("\n")));
}
