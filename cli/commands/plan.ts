/**
 * `switchyard plan`: the contents of a plan, whether it fits, and its predicted times on a machine; or the plan
 * document.
 */

import type { Summarized } from "../../engine/mod.ts";
import { formatPlan, stringifyPlan } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { findMachine } from "../machines.ts";
import { comparePlans, diffPlans } from "../plan_diff.ts";
import { filterPlanText, filterSummary, type Shown } from "../plan_filter.ts";
import { formatSummary } from "../summary_text.ts";
import { refuseFlags, UsageError } from "../flags/values.ts";
import {
  checkSummaryFlags,
  ranksOf,
  summarized,
  type SummaryFlags,
} from "./summarized.ts";

/** Flags of `plan`. */
export interface PlanCommandFlags extends SummaryFlags {
  readonly out?: string;
  readonly json?: boolean;
  /** Print the plan document instead of its summary. */
  readonly full?: boolean;
  readonly layer?: number;
  readonly diff?: boolean;
  readonly other?: string;
}

/**
 * Prints the summary of a model's plan, or the plan itself. `--out` writes the plan document to a file. Exit code 3:
 * the plan does not fit.
 */
export async function planCommand(
  base: CliIo,
  name: string,
  flags: PlanCommandFlags,
): Promise<number> {
  checkFlags(flags);
  checkSummaryFlags(flags);
  const { revision } = flags;
  const { io, model } = await locate(base, name, {
    revision,
    extent: "headers",
  });
  const found = flags.target === undefined
    ? undefined
    : await findMachine(io, flags.target, { ...ranksOf(flags), model });
  const made = await summarized(io, model, flags, { machine: found });
  if (flags.other !== undefined) {
    const compared = await locate(io, flags.other, { extent: "headers" });
    const other = await summarized(compared.io, compared.model, flags, {
      machine: found,
      asIs: true,
    });
    const lines = await diffPlans(made, other);
    const same = lines.startsWith("the plans are the same");
    if (!same) {
      await io.out(
        await comparePlans({ ...made, name }, {
          ...other,
          name: flags.other,
        }),
      );
    }
    if (same || flags.full) await io.out(same ? lines : `\n${lines}`);
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
  const document = out !== undefined || json && full
    ? stringifyPlan(await plan())
    : "";
  if (out !== undefined) {
    await io.files.write(out, [new TextEncoder().encode(document)]);
  }
  const shown = filterSummary(summary, { layer });
  await io.out(
    json
      ? full ? document : `${JSON.stringify(shown, null, 2)}\n`
      : full || layer !== undefined
      ? await planText(plan, { layer, rank })
      : formatSummary(shown),
  );
  const { problems, target } = summary;
  if (problems.length === 0) return 0;
  // The text form of the summary.
  if (!json && !full && layer === undefined) return 3;
  const where = target === undefined ? "" : ` on '${target}'`;
  io.err(
    `Cannot fit the plan${where}: ${problems[0]!.what}${
      problems.length > 1 ? ` (and ${problems.length - 1} more)` : ""
    }. The fix: ${problems[0]!.fix}`,
  );
  return 3;
}

async function planText(
  compiled: Summarized["plan"],
  filter: Shown,
): Promise<string> {
  const plan = await compiled();
  return filterPlanText(formatPlan(plan), plan, filter);
}

/** Throws UsageError for flags without effect. */
function checkFlags(flags: PlanCommandFlags): void {
  if ((flags.diff ?? false) !== (flags.other !== undefined)) {
    throw new UsageError(
      flags.diff
        ? "Cannot use --diff with one plan: there is no second plan to compare. Give two"
        : `Cannot plan '${flags.other}' too: a plan is of one model. Give one, or compare two with --diff`,
    );
  }
  if (flags.diff) {
    refuseFlags(
      { "--json": flags.json, "--out": flags.out, "--layer": flags.layer },
      "with --diff: differences are printed as text. Leave it out",
    );
  }
  if (flags.json && flags.full && flags.layer !== undefined) {
    throw new UsageError(
      "Cannot use --layer with --json --full: a plan document has no layers to select. Leave --full out for the summary of a layer",
    );
  }
}
