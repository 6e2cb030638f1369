/** Files that a page shows beside a plan: source lines, traces, recorded choices. */

import { type HostTensor, readTensors } from "../engine/mod.ts";
import { DataError } from "../spec/errors.ts";
import type { Plan } from "../spec/mod.ts";
import type { LayerChoices, TraceEvent } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./places.ts";

/** The lines of source that steps come from, by `file:line`, as far as their files are here. */
export async function readSources(
  { files }: CliIo,
  plan: Plan,
): Promise<{ readonly [place: string]: string }> {
  const wanted = new Map<string, Set<number>>();
  for (const { span } of plan.programs.flatMap(({ steps }) => steps)) {
    if (!span || !span.file.endsWith(".ts")) continue;
    const lines = wanted.get(span.file) ?? new Set();
    wanted.set(span.file, lines.add(span.line));
  }
  const found: [string, string][] = [];
  for (const [file, lines] of wanted) {
    for (const path of [file, packageFile(file)]) {
      if (await files.stat(path) === undefined) continue;
      const text = (await files.readText(path)).split("\n");
      for (const line of lines) {
        found.push([`${file}:${line}`, text[line - 1] ?? ""]);
      }
      break;
    }
  }
  return Object.fromEntries(found);
}

/** A row for each item of the last axis but one. */
function rowsOf({ shape, data }: HostTensor): number[][] {
  const k = shape.at(-1)!;
  return Array.from(
    { length: data.length / k },
    (_, token) => [...data.subarray(token * k, (token + 1) * k)],
  );
}

/** The events of a trace that `run --trace` wrote. Throws DataError where a file is no such trace. */
export async function readTrace(
  { files }: CliIo,
  path: string,
): Promise<TraceEvent[]> {
  const refuse = (state: string) =>
    new DataError(
      `Cannot show trace '${path}': ${state}. Give a file that 'run --trace' wrote`,
    );
  let document: unknown;
  try {
    document = JSON.parse(await files.readText(path));
  } catch (error) {
    if (error instanceof SyntaxError) throw refuse("it is no JSON");
    throw error;
  }
  const { traceEvents } = (document ?? {}) as { traceEvents?: unknown };
  if (!Array.isArray(traceEvents) || !traceEvents.every(isEvent)) {
    throw refuse("it has no list of events");
  }
  return traceEvents;
}

function isEvent(event: unknown): event is TraceEvent {
  if (typeof event !== "object" || event === null) return false;
  const { name, ph, pid, tid, ts, args } = event as Partial<TraceEvent>;
  return typeof name === "string" && typeof ph === "string" &&
    typeof pid === "number" && typeof tid === "number" &&
    typeof ts === "number" &&
    typeof args === "object" && args !== null;
}

/**
 * The experts that the tokens of a run chose, of the tensors `layer{N}.topk_idx` among its outputs, and with what weights,
 * of `layer{N}.topk_weight` where they are there. Padding is left out.
 */
export async function readChoices(
  { files }: CliIo,
  path: string,
): Promise<LayerChoices[]> {
  const tensors = await readTensors(
    path,
    files,
    { wanted: (name) => /^layer\d+\.topk_(idx|weight)$/.test(name) },
  );
  const layers = Object.keys(tensors).flatMap((name): LayerChoices[] => {
    const layer = /^layer(\d+)\.topk_idx$/.exec(name)?.[1];
    if (layer === undefined) return [];
    const all = rowsOf(tensors[name]!);
    const weights = tensors[`layer${layer}.topk_weight`];
    // Padding chooses nothing, which a run records as -1.
    const isToken = (_: unknown, i: number) => all[i]!.every((e) => e >= 0);
    return [{
      layer: Number(layer),
      chosen: all.filter(isToken),
      ...weights === undefined
        ? {}
        : { weights: rowsOf(weights).filter(isToken) },
    }];
  }).sort((a, b) => a.layer - b.layer);
  if (layers.length > 0) return layers;
  throw new DataError(
    `Cannot show choices of '${path}': it has no tensor 'layer{N}.topk_idx'. Give one that 'run --outputs' wrote`,
  );
}
