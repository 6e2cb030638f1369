/** `switchyard search`: the best mesh, strategy and batch of a model on a described machine, which may be absent. */

import {
  type Found,
  given,
  type Objective,
  replicaMesh,
  search,
  SEARCH_NUMERICS,
  type SearchPhase,
  type SearchTask,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { EncodingName } from "../../spec/weights/encoding.ts";
import type { ModelFlags, PlanFlags } from "../flags/flags.ts";
import { figureSvg, LIGHT, speedPicture } from "../../view/mod.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { findMachine } from "../machines.ts";
import { formatSearch, searchDocument } from "../search_text.ts";
import type { SearchStart, SearchThread } from "../search_thread.ts";
import { expertLoad } from "./experts.ts";
import { targetOf } from "./options.ts";
import { trainedFlag } from "./summarized.ts";
import { refuseFlags } from "../flags/values.ts";
import { type ViewCommandFlags, writePage } from "./view.ts";

/** Flags that change the bits of results, and so the predicted arithmetic. */
type SearchNumerics = Pick<PlanFlags, typeof SEARCH_NUMERICS[number]>;

/** Flags of `search`. */
export interface SearchFlags extends ModelFlags, SearchNumerics {
  readonly target: string;
  readonly phase?: SearchPhase;
  readonly objective?: Objective;
  /** Milliseconds. */
  readonly maxStep?: number;
  readonly ranks?: number;
  readonly maxContext?: number;
  readonly experts?: string;
  readonly dtype?: EncodingName;
  readonly limits?: { readonly [limit: string]: number };
  readonly svg?: string;
  readonly out?: string;
  readonly json?: boolean;
}

/** Default number of positions of a sequence. */
const CONTEXT = 4096;

/** Prints the result of the search, which a thread helps with. Exit code 3: nothing fits. */
export async function searchWith(
  base: CliIo,
  { name, flags, thread }: {
    readonly name: string;
    readonly flags: SearchFlags;
    readonly thread: SearchThread | undefined;
  },
): Promise<number> {
  const { revision } = flags;
  const { io, model } = await locate(base, name, {
    revision,
    extent: "headers",
  });
  const { ranks } = flags;
  const machine = await findMachine(io, flags.target, {
    model,
    ...ranks === undefined ? {} : { ranks },
  });
  const start: SearchStart = { model, flags, machine };
  thread?.begin(start);
  const task = await searchTask(io, start);
  const { phase, objective } = task;
  const searched = await search(task, {
    ranks,
    curve: flags.svg !== undefined,
    helper: thread,
  });
  const terms = {
    machine,
    phase,
    context: task.context,
    ...task.goal === undefined ? {} : { goal: task.goal },
    objective,
    experts: flags.experts ?? "even",
    compile: task.compile,
  };
  if (flags.svg !== undefined) {
    const curve = searched.curve.map(({ devices, best, single }) => ({
      devices,
      best: best?.tokensPerSecond,
      single: single?.tokensPerSecond,
    }));
    const figure = speedPicture(curve, `${phase}, ${machine.name}`);
    const text = `${figureSvg(figure, { palette: LIGHT })}\n`;
    await io.files.write(flags.svg, [new TextEncoder().encode(text)]);
  }
  const document = searchDocument(searched, terms);
  const [best] = searched.found;
  if (flags.out !== undefined && best) {
    await writePage(io, model, {
      ...planFlags(best, task.context, flags),
      name,
      out: flags.out,
      search: document,
    });
  }
  await io.out(
    flags.json
      ? `${JSON.stringify(document, null, 2)}\n`
      : formatSearch(searched, terms),
  );
  return searched.found.length > 0 ? 0 : 3;
}

/** Reads the task of a search: the configuration of a model, and recorded loads of experts. */
export async function searchTask(
  io: CliIo,
  { model, flags, machine }: SearchStart,
): Promise<SearchTask> {
  const { phase = "decode", objective = "throughput" } = flags;
  const target = await targetOf(io, model, {
    family: flags.family,
    withoutWeights: true,
  });
  if (target.kind !== "configuration" && target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot search with '${model}': it is not a published model, so its sequences are unknown. Give a config.json, or a folder with one`,
    );
  }
  const { dtype, limits } = flags;
  if (phase === "train") checkTrained(flags);
  const { decoder } = target.kind === "checkpoint"
    ? target.checkpoint.published
    : target.configuration.published;
  return {
    target,
    machine,
    phase,
    objective,
    files: io.files,
    context: flags.maxContext ?? Math.min(CONTEXT, decoder.maxPositions),
    experts: await expertLoad(io, flags.experts),
    ...flags.maxStep === undefined ? {} : { goal: flags.maxStep / 1000 },
    compile: {
      ...dtype === undefined ? {} : { dtype },
      ...limits === undefined ? {} : { limits },
      ...given(flags, SEARCH_NUMERICS),
    },
  };
}

/** Throws UsageError for flags that do not apply to training. */
function checkTrained({ dtype, ...flags }: SearchFlags): void {
  if (dtype !== undefined) trainedFlag(dtype);
  refuseFlags(
    {
      "--wire": flags.wire,
      "--operands": flags.operands,
      "--kv-cache-dtype": flags.kvCacheDtype,
    },
    "with --phase train: a training step computes and exchanges in f32, and has no cache. Leave it out",
  );
}

/** Returns the flags that plan one replica of a search result. */
function planFlags(
  { mesh, strategy, step }: Found,
  maxContext: number,
  flags: SearchFlags,
): ViewCommandFlags {
  const { target, experts, dtype, limits, phase } = flags;
  const { zero, recompute, ...sent } = strategy;
  return {
    mesh: replicaMesh(mesh),
    target,
    maxContext,
    ...given(flags, SEARCH_NUMERICS),
    ...sent,
    maxTokens: step.tokens,
    maxSequences: step.sequences,
    ...experts === undefined ? {} : { experts },
    ...phase === "train" ? { train: true, dtype: "bf16" } : {},
    ...zero === undefined ? {} : { zero },
    ...recompute === undefined ? {} : { recompute },
    ...dtype === undefined ? {} : { dtype },
    ...limits === undefined ? {} : { limits },
  };
}
