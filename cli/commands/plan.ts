/** `switchyard plan`: compile a model and print its plan, or what a step of it would take on a machine. */

import { loadTarget, planTarget } from "../../engine/mod.ts";
import { formatPlan, type Mesh, stringifyPlan } from "../../spec/mod.ts";
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
    return await predictCommand(io, model, { ...flags, machine });
  }
  const [useless] = (["tokens", "sequences", "past", "skew"] as const)
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
  const target = await loadTarget(model, io.files);
  const plan = await planTarget(target, io.files, {
    ...planOptions(target, flags),
    check: flags.check ?? false,
  });
  const document = flags.json || flags.out !== undefined
    ? stringifyPlan(plan)
    : "";
  if (flags.out !== undefined) {
    await io.files.write(flags.out, [new TextEncoder().encode(document)]);
  }
  await io.out(flags.json ? document : formatPlan(plan));
  return 0;
}
