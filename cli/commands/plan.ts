/** `switchyard plan`: compile a model and print its plan. */

import { loadTarget, planTarget } from "../../engine/mod.ts";
import { formatPlan, stringifyPlan } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { PlanFlags } from "../flags.ts";
import { planOptions } from "./options.ts";

/** Flags of `plan`. */
export interface PlanCommandFlags extends PlanFlags {
  readonly out?: string;
  readonly check?: boolean;
  readonly json?: boolean;
}

/** Print the plan of a model; `--out` writes its document to a file. */
export async function planCommand(
  io: CliIo,
  model: string,
  flags: PlanCommandFlags,
): Promise<number> {
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
