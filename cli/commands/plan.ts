/** `switchyard plan`: compile a model and print its plan, or what a step of it would take on a machine. */

import {
  adamw,
  loadTarget,
  loadTrainable,
  planTarget,
  planTraining,
  sgd,
  type TrainedDType,
} from "../../engine/mod.ts";
import {
  formatPlan,
  type Mesh,
  type Plan,
  stringifyPlan,
} from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { PlanFlags } from "../flags.ts";
import { UsageError } from "../values.ts";
import { planOptions } from "./options.ts";
import { predictCommand, type SceneFlags } from "./predict.ts";

/** Flags of `plan`. */
export interface PlanCommandFlags extends PlanFlags, SceneFlags {
  readonly out?: string;
  readonly check?: boolean;
  readonly json?: boolean;
  /** The plan of a step of training instead. */
  readonly train?: boolean;
  readonly optimizer?: "adamw" | "sgd";
  readonly clip?: number;
  readonly optimizerState?: "whole" | "sharded";
  readonly dtype?: TrainedDType;
  /** Every mesh that was given. */
  readonly meshes: readonly Mesh[];
}

/** Print the plan of a model; `--out` writes its document to a file. */
export async function planCommand(
  io: CliIo,
  model: string,
  flags: PlanCommandFlags,
): Promise<number> {
  const { machine, meshes } = flags;
  if (machine !== undefined) {
    if (flags.train) {
      throw new UsageError(
        "Cannot use --train with --machine: only steps without training are predicted. Leave one of them out",
      );
    }
    return await predictCommand(io, model, { ...flags, machine });
  }
  const [useless] =
    (["tokens", "sequences", "past", "skew", "choices"] as const)
      .filter((flag) => flags[flag] !== undefined);
  if (useless !== undefined) {
    throw new UsageError(
      `Cannot use --${useless} without --machine: it says what step is predicted. Leave it out, or give a machine file`,
    );
  }
  if (meshes.length > 1) {
    throw new UsageError(
      "Cannot use --mesh several times without --machine: a plan has one mesh. Give its axes in one, such as ep=4,dp=2",
    );
  }
  const plan = flags.train
    ? await trainingPlan(io, model, flags)
    : await servingPlan(io, model, flags);
  const document = flags.json || flags.out !== undefined
    ? stringifyPlan(plan)
    : "";
  if (flags.out !== undefined) {
    await io.files.write(flags.out, [new TextEncoder().encode(document)]);
  }
  await io.out(flags.json ? document : formatPlan(plan));
  return 0;
}

async function servingPlan(
  io: CliIo,
  model: string,
  flags: PlanCommandFlags,
): Promise<Plan> {
  const ofTraining = ["optimizer", "clip", "optimizerState", "dtype"] as const;
  for (const flag of ofTraining) {
    if (flags[flag] === undefined) continue;
    const name = flag === "optimizerState" ? "optimizer-state" : flag;
    throw new UsageError(
      `Cannot use --${name} without --train: it says how a model is trained. Leave it out, or give --train`,
    );
  }
  const target = await loadTarget(model, io.files);
  return await planTarget(target, io.files, {
    ...planOptions(target, flags),
    check: flags.check ?? false,
  });
}

/** The plan of a step of training: what is exported is trained as it says, else with the output `loss`. */
async function trainingPlan(
  io: CliIo,
  path: string,
  flags: PlanCommandFlags,
): Promise<Plan> {
  const { optimizer, clip, optimizerState, dtype } = flags;
  const what = await loadTrainable(path, io.files);
  const of = typeof what === "string"
    ? { kind: "checkpoint" as const }
    : { kind: "model" as const };
  return await planTraining(what, io.files, {
    ...planOptions(of, flags),
    check: flags.check ?? false,
    ...optimizer === undefined
      ? {}
      : { optimizer: optimizer === "sgd" ? sgd() : adamw() },
    ...clip === undefined ? {} : { clipNorm: clip },
    ...optimizerState === undefined ? {} : { optimizerState },
    ...dtype === undefined ? {} : { dtype },
  });
}
