/** Files that a page shows beside a plan: source lines, traces and recorded choices. */

import path from "node:path";
import {
  type FileSystem,
  type HostTensor,
  readTensors,
} from "../engine/mod.ts";
import { modelAxis } from "../spec/axis_parts.ts";
import { layerOf } from "../spec/plan/layers.ts";
import { DataError } from "../spec/errors.ts";
import type { Plan } from "../spec/mod.ts";
import { JsonError, parseJson } from "../spec/parse_json.ts";
import type { LayerChoices, TraceEvent } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./package_file.ts";

/**
 * Reads the source lines of steps by `file:line`, as far as the files exist. An `untrusted` plan gets only lines of the
 * package's models and of files in the working directory that it names by relative paths.
 */
export async function readSources(
  { files }: CliIo,
  plan: Plan,
  { untrusted }: { readonly untrusted: boolean },
): Promise<{ readonly [place: string]: string }> {
  const wanted = new Map<string, Set<number>>();
  for (const { span } of plan.programs.flatMap(({ steps }) => steps)) {
    if (!span || !span.file.endsWith(".ts")) continue;
    const lines = wanted.get(span.file) ?? new Set();
    wanted.set(span.file, lines.add(span.line));
  }
  const sourceOf = async (file: string): Promise<string | undefined> => {
    if (!untrusted) {
      return await readSource(file, files) ??
        await readSource(packageFile(file), files);
    }
    if (path.isAbsolute(file)) return undefined;
    return await readSource(file, files, ".") ??
      await readSource(packageFile(file), files, packageFile("models"));
  };
  const found: [string, string][] = [];
  for (const [file, lines] of wanted) {
    const text = (await sourceOf(file))?.split("\n");
    for (const line of text ? lines : []) {
      found.push([`${file}:${line}`, text![line - 1] ?? ""]);
    }
  }
  return Object.fromEntries(found);
}

/**
 * Reads the text of a regular file inside a folder, if one is given, after resolving symbolic links. Undefined for
 * anything else.
 */
async function readSource(
  file: string,
  files: FileSystem,
  inside?: string,
): Promise<string | undefined> {
  const resolved = await files.resolve(file);
  if (resolved === undefined) return undefined;
  if (inside !== undefined) {
    const folder = await files.resolve(inside);
    const way = folder && path.relative(folder, resolved);
    if (!way || /^\.\.(?=[/\\]|$)/.test(way) || path.isAbsolute(way)) {
      return undefined;
    }
  }
  try {
    return await files.readText(resolved);
  } catch (error) {
    // The page omits the source of a folder, a pipe or an unreadable file.
    if (error instanceof DataError) return undefined;
    throw error;
  }
}

/** Returns one row per item of the second-to-last axis. */
function rowsOf({ shape, data }: HostTensor): number[][] {
  const k = shape.at(-1)!;
  return Array.from(
    { length: data.length / k },
    (_, token) => [...data.subarray(token * k, (token + 1) * k)],
  );
}

/** Reads the events of a trace from `run --trace`. Throws DataError for another file. */
export async function readTrace(
  { files }: CliIo,
  file: string,
): Promise<TraceEvent[]> {
  const refuse = (state: string) =>
    new DataError(
      `Cannot show trace '${file}': ${state}. Give a file that 'run --trace' wrote`,
    );
  let document: unknown;
  try {
    document = parseJson(await files.readText(file));
  } catch (error) {
    if (error instanceof JsonError) throw refuse(`it ${error.state}`);
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
 * Reads the experts that a run chose for its tokens, and their weights if present. They are `layer{N}.topk_idx` and
 * `layer{N}.topk_weight`, or the plan's outputs with choices. Padding is omitted.
 */
export async function readChoices(
  { files }: CliIo,
  file: string,
  plan: Plan,
): Promise<LayerChoices[]> {
  const local = localChoices(plan);
  const tensors = await readTensors(file, files, {
    wanted: (name) => NAMED_CHOICES.test(name) || local.has(name),
  });
  const named = Object.keys(tensors).flatMap((name) => {
    const layer = /^layer(\d+)\.topk_idx$/.exec(name)?.[1];
    return layer === undefined ? [] : [[name, Number(layer)] as const];
  });
  const found = named.length > 0
    ? named
    : Object.keys(tensors).map((name) => [name, local.get(name)!] as const);
  const layers = found.flatMap(([name, layer]): LayerChoices[] => {
    const all = rowsOf(tensors[name]!);
    const weights = tensors[name.replace(/idx$/, "weight")];
    // Padding has no choices; a run records it as -1.
    const isToken = (_: unknown, i: number) => all[i]!.every((e) => e >= 0);
    return [{
      layer,
      output: name,
      chosen: all.filter(isToken),
      ...weights?.dtype !== "f32"
        ? {}
        : { weights: rowsOf(weights).filter(isToken) },
    }];
  }).sort((a, b) => a.layer - b.layer);
  if (layers.length > 0) return layers;
  throw new DataError(
    `Cannot show choices of '${file}': it has no output of the model with the experts of each token. Return 'routing.index' from the model, and give a file that 'run --outputs' wrote`,
  );
}

/** Names of chosen experts and their weights in built-in families. */
const NAMED_CHOICES = /^layer\d+\.topk_(idx|weight)$/;

/**
 * Returns the outputs of a plan with choices of experts, and their layers. Such an output is i32 along the axis of
 * choices.
 */
function localChoices(plan: Plan): Map<string, number> {
  const outputs = plan.programs.flatMap(({ outputs }) =>
    Object.entries(outputs)
  ).filter(([, { dtype, axes }]) =>
    dtype === "i32" && axes.length > 1 &&
    modelAxis(plan, axes.at(-1)!) === "choice"
  );
  return new Map(outputs.map(([name], i) => [name, layerOf(name) ?? i]));
}
