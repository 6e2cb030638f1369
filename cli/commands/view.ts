/** `switchyard view`: write a plan as a page, or one of its pictures. */

import type { Summarized } from "../../engine/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { placeRanks } from "../../spec/machine.ts";
import type { Machine } from "../../spec/mod.ts";
import {
  DARK,
  figureSvg,
  LIGHT,
  meshText,
  pageHtml,
  type PictureName,
  PICTURES,
  type SearchResult,
  sentPerToken,
  viewPlan,
} from "../../view/mod.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { findMachine } from "../machines.ts";
import { pageAssets } from "../page_assets.ts";
import { diffPlans } from "../plan_diff.ts";
import { readChoices, readSources, readTrace } from "../seen_files.ts";
import { serveRun } from "../http/serve_run.ts";
import { UsageError } from "../flags/values.ts";
import {
  checkSummaryFlags,
  ranksOf,
  summarized,
  type SummaryFlags,
} from "./summarized.ts";

/** Flags of `view`. */
export interface ViewCommandFlags extends SummaryFlags {
  readonly svg?: PictureName;
  readonly dark?: boolean;
  readonly trace?: string;
  readonly choices?: string;
  readonly against?: string;
  readonly out?: string;
  readonly open?: boolean;
  /** Serve the page so that it can run the plan. */
  readonly run?: boolean;
  /** Name of the model. Default: the last component of its path. */
  readonly name?: string;
  /** The search that found the plan. */
  readonly search?: SearchResult;
}

/** Writes a page about a plan, or one of its pictures. */
export async function viewCommand(
  base: CliIo,
  name: string,
  flags: ViewCommandFlags,
): Promise<number> {
  const { svg, dark = false, out, revision } = flags;
  checkSummaryFlags(flags);
  checkViewFlags(flags);
  const { io, model } = await locate(base, name, {
    revision,
    extent: flags.run ? "weights" : "headers",
  });
  if (flags.run) {
    const { made, machine } = await madeOf(io, model, flags);
    const page = await pageOf(io, { model: name, made, machine }, flags);
    await serveRun(io, { page, folder: model, open: flags.open ?? false });
    return 0;
  }
  if (svg === undefined) {
    const file = out ?? "plan.html";
    await writePage(io, model, { ...flags, name, out: file });
    await io.out(`wrote ${file}\n`);
    if (flags.open) io.browse(file);
    return 0;
  }
  const { made } = await madeOf(io, model, flags);
  const text = await drawn(made, svg, dark);
  if (out === undefined) await io.out(text);
  else await io.files.write(out, [new TextEncoder().encode(text)]);
  return 0;
}

/** Writes the page that the flags select to their output file. */
export async function writePage(
  io: CliIo,
  model: string,
  flags: ViewCommandFlags & { readonly out: string },
): Promise<void> {
  const { made, machine } = await madeOf(io, model, flags);
  const { name = model } = flags;
  const text = await pageOf(io, { model: name, made, machine }, flags);
  await io.files.write(flags.out, [new TextEncoder().encode(text)]);
}

async function madeOf(io: CliIo, model: string, flags: ViewCommandFlags) {
  const machine = flags.target === undefined
    ? undefined
    : await findMachine(io, flags.target, { ...ranksOf(flags), model });
  return { machine, made: await summarized(io, model, flags, { machine }) };
}

/** Throws UsageError for flags without effect. */
function checkViewFlags(flags: ViewCommandFlags): void {
  const { svg, dark, open, run, out } = flags;
  if (run && (svg !== undefined || out !== undefined)) {
    throw new UsageError(
      "Cannot use --run with --svg or --out: the page is served, as it reads weights. Leave them out",
    );
  }
  if (run && flags.trace !== undefined) {
    throw new UsageError(
      "Cannot use --run with --trace: a run in the page replaces the recorded one. Leave one of them out",
    );
  }
  if (open && svg !== undefined) {
    throw new UsageError(
      "Cannot use --open with --svg: a picture goes to a file. Leave one of them out",
    );
  }
  if (dark && svg === undefined) {
    throw new UsageError(
      "Cannot use --dark without --svg: a page is as dark as the system. Leave it out, or give --svg",
    );
  }
  for (const flag of ["trace", "choices", "against"] as const) {
    if (svg === undefined || flags[flag] === undefined) continue;
    throw new UsageError(
      `Cannot use --${flag} with --svg: a picture is of the plan only. Leave one of them out`,
    );
  }
}

async function drawn(
  { plan, summary }: Summarized,
  svg: PictureName,
  dark: boolean,
): Promise<string> {
  const figure = PICTURES[svg](viewPlan(await plan(), summary));
  if (figure === undefined) {
    throw new DataError(
      `Cannot draw '${svg}': the plan has none. Give a --mesh of several ranks`,
    );
  }
  return `${figureSvg(figure, { palette: dark ? DARK : LIGHT })}\n`;
}

async function pageOf(
  io: CliIo,
  { model, made, machine }: {
    readonly model: string;
    readonly made: Summarized;
    readonly machine: Machine | undefined;
  },
  flags: ViewCommandFlags,
): Promise<string> {
  const { trace, choices, against, search } = flags;
  const { summary } = made;
  const plan = await made.plan();
  const other = against === undefined
    ? undefined
    : await summarized(io, against, flags, { machine, asIs: true });
  const mesh = meshText(summary);
  const placements = machine
    ? placeRanks(machine).map(({ host, rack }) => ({ host, rack }))
    : [];
  return pageHtml(plan, {
    title: `${nameOf(model)}${mesh === "" ? "" : ` on ${mesh}`}${
      flags.train ? ", a step of training" : ""
    }`,
    summary,
    sources: await readSources(io, plan, made),
    predicted: await made.timelines(),
    costs: await made.costs(),
    ...placements.length >= plan.ranks
      ? { placements: placements.slice(0, plan.ranks) }
      : {},
    ...trace === undefined ? {} : { trace: await readTrace(io, trace) },
    ...choices === undefined
      ? {}
      : { choices: await readChoices(io, choices, plan) },
    ...other === undefined ? {} : {
      against: {
        name: nameOf(against!),
        summary: other.summary,
        sent: sentPerToken(await other.plan()),
        text: await diffPlans(made, other),
      },
    },
    ...search === undefined ? {} : { search },
    ...flags.run ? { run: true } : {},
  }, await pageAssets(io));
}

/** Returns the name of a model: the last component of its path. */
function nameOf(model: string): string {
  const last = model.split(/[/\\]/).findLast((part) => part !== "") ?? model;
  return last.replace(/\.(ts|json)$/, "");
}
