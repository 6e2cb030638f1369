/** `switchyard plan`: what a plan holds, and whether it fits; the plan itself, or what a step of it would take on a machine. */

import {
  adamw,
  loadTarget,
  loadTrainable,
  planSummary,
  planTraining,
  type PlanTrainingOptions,
  sgd,
  type Summarized,
  summarizeTarget,
  type TrainedDType,
} from "../../engine/mod.ts";
import type { EncodingName } from "../../spec/encoding.ts";
import {
  formatPlan,
  type Machine,
  type Mesh,
  type Plan,
  stringifyPlan,
} from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { PlanFlags } from "../flags.ts";
import { findMachine } from "../machines.ts";
import { diffPlans } from "../plan_diff.ts";
import { filterPlanText, filterSummary } from "../plan_filter.ts";
import { formatSummary } from "../summary_text.ts";
import { UsageError } from "../values.ts";
import { planOptions } from "./options.ts";
import { predictCommand, type SceneFlags } from "./predict.ts";

/** Flags of `plan`. */
export interface PlanCommandFlags extends PlanFlags, SceneFlags {
  readonly out?: string;
  readonly check?: boolean;
  readonly json?: boolean;
  /** The plan itself instead of its summary. */
  readonly full?: boolean;
  readonly layer?: number;
  readonly rank?: number;
  /** A name of `machines/`, or a file. */
  readonly target?: string;
  readonly limits?: { readonly [limit: string]: number };
  readonly diff?: boolean;
  readonly other?: string;
  /** The plan of a step of training instead. */
  readonly train?: boolean;
  readonly optimizer?: "adamw" | "sgd";
  readonly clip?: number;
  readonly zero?: NonNullable<PlanTrainingOptions["zero"]>;
  readonly dtype?: EncodingName;
  /** Every mesh that was given. */
  readonly meshes: readonly Mesh[];
}

/** What sets the bound of an axis of a checkpoint's model. */
const BOUND_FLAGS = {
  token: "--max-tokens",
  sequence: "--max-sequences",
  context: "--max-context",
};

/** Print the summary of a model's plan, or the plan; `--out` writes its document to a file. Exit code 3: it does not fit. */
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
  checkFlags(flags);
  if (meshes.length > 1) {
    throw new UsageError(
      "Cannot use --mesh several times without --machine: a plan has one mesh. Give its axes in one, such as ep=4,dp=2",
    );
  }
  const machineOf = flags.target === undefined
    ? undefined
    : await findMachine(io, flags.target);
  const made = await summarized(io, model, flags, machineOf);
  if (flags.other !== undefined) {
    const other = await summarized(io, flags.other, flags, machineOf);
    await io.out(diffPlans(made, other));
    return 0;
  }
  return await printPlan(io, made, flags);
}

async function printPlan(
  io: CliIo,
  { plan, summary }: Summarized,
  flags: PlanCommandFlags,
): Promise<number> {
  const { json = false, full = false, layer, rank, out } = flags;
  const document = out !== undefined || json && full ? stringifyPlan(plan) : "";
  if (out !== undefined) {
    await io.files.write(out, [new TextEncoder().encode(document)]);
  }
  const shown = filterSummary(summary, { layer });
  await io.out(
    json
      ? full ? document : `${JSON.stringify(shown, null, 2)}\n`
      : full || layer !== undefined
      ? filterPlanText(formatPlan(plan), plan, { layer, rank })
      : formatSummary(shown),
  );
  const { problems, target } = summary;
  if (problems.length === 0) return 0;
  const where = target === undefined ? "" : ` on '${target}'`;
  io.err(
    `Cannot fit the plan${where}: ${problems[0]!.what}${
      problems.length > 1 ? ` (and ${problems.length - 1} more)` : ""
    }. What mends it: ${problems[0]!.mend}`,
  );
  return 3;
}

/** Refuse flags that would do nothing. */
function checkFlags(flags: PlanCommandFlags): void {
  const [useless] =
    (["tokens", "sequences", "past", "skew", "choices"] as const)
      .filter((flag) => flags[flag] !== undefined);
  if (useless !== undefined) {
    throw new UsageError(
      `Cannot use --${useless} without --machine: it says what step is predicted. Leave it out, or give a machine file`,
    );
  }
  if ((flags.diff ?? false) !== (flags.other !== undefined)) {
    throw new UsageError(
      flags.diff
        ? "Cannot use --diff with one plan: there is nothing to compare it with. Give two"
        : `Cannot plan '${flags.other}' too: a plan is of one model. Give one, or compare two with --diff`,
    );
  }
  if (flags.json && flags.full && flags.layer !== undefined) {
    throw new UsageError(
      "Cannot use --layer with --json --full: a document is whole. Leave --full out for the summary of a layer",
    );
  }
  if (flags.train) return;
  for (const flag of ["optimizer", "clip", "zero"] as const) {
    if (flags[flag] === undefined) continue;
    throw new UsageError(
      `Cannot use --${flag} without --train: it says how a model is trained. Leave it out, or give --train`,
    );
  }
}

async function summarized(
  io: CliIo,
  model: string,
  flags: PlanCommandFlags,
  machine: Machine | undefined,
): Promise<Summarized> {
  const against = {
    ...machine ? { machine } : {},
    ...flags.limits ? { limits: flags.limits } : {},
    ...flags.rank === undefined ? {} : { rank: flags.rank },
  };
  if (flags.train) {
    const plan = await trainingPlan(io, model, flags);
    return { plan, summary: planSummary(plan, against) };
  }
  const target = await loadTarget(model, io.files, { withoutWeights: true });
  const { dtype } = flags;
  if (dtype !== undefined && target.kind !== "configuration") {
    throw new UsageError(
      `Cannot use --dtype without --train: '${model}' says what its weights are stored as. Leave it out, or give --train`,
    );
  }
  return await summarizeTarget(target, io.files, {
    ...planOptions(target, flags),
    ...against,
    ...target.kind === "model" ? {} : { flags: BOUND_FLAGS },
    ...dtype === undefined ? {} : { dtype },
    check: flags.check ?? false,
  });
}

/** The plan of a step of training: what is exported is trained as it says, else with the output `loss`. */
async function trainingPlan(
  io: CliIo,
  path: string,
  flags: PlanCommandFlags,
): Promise<Plan> {
  const { optimizer, clip, zero, dtype } = flags;
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
    ...zero === undefined ? {} : { zero },
    ...dtype === undefined ? {} : { dtype: trainedDType(dtype) },
  });
}

function trainedDType(dtype: EncodingName): TrainedDType {
  if (dtype === "f32" || dtype === "f16" || dtype === "bf16") return dtype;
  throw new UsageError(
    `Cannot use --dtype '${dtype}' with --train. Give f32, f16, bf16`,
  );
}
