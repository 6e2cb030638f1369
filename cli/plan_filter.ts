/** Restricts a plan's text and summary to one layer or one rank. */

import { layersOf } from "../engine/mod.ts";
import type { Plan, PlanSummary } from "../spec/mod.ts";
import { buffersOf } from "../spec/plan/accesses.ts";
import { DataError } from "../spec/errors.ts";

/** The restriction. Undefined: no restriction. */
export interface Shown {
  readonly layer?: number | undefined;
  readonly rank?: number | undefined;
}

/** Restricts the summary to the class of one layer. Throws DataError if the layer does not exist. */
export function filterSummary(
  summary: PlanSummary,
  { layer }: Shown,
): PlanSummary {
  // In a saved plan, only the steps refer to layers.
  if (layer === undefined || summary.layers.length === 0) return summary;
  const found = summary.layers.find(({ layers }) => hasNumber(layers, layer));
  if (found === undefined) throw noLayer(layer);
  return { ...summary, layers: [{ ...found, count: 1, layers: `${layer}` }] };
}

function noLayer(layer: number): DataError {
  return new DataError(
    `Cannot show layer ${layer}: the model has no such layer. Leave --layer out to see all`,
  );
}

function hasNumber(ranges: string, layer: number): boolean {
  return ranges.split(", ").some((range) => {
    const [first, last = first] = range.split("-").map(Number);
    return first !== undefined && first <= layer && layer <= last!;
  });
}

/** Returns the lines of a plan's text for a layer and a rank. */
export function filterPlanText(
  text: string,
  plan: Plan,
  { layer, rank }: Shown,
): string {
  const keep = layer === undefined ? undefined : linesOfLayer(plan, layer);
  let title: readonly string[] = [];
  return text.split("\n").filter((line) => {
    if (/^\S/.test(line)) title = line.split(" ");
    if (!line.startsWith("  ")) return true;
    if (title[0] === "memory" && rank !== undefined) {
      const [first] = line.trim().split(/\s+/);
      return first === "rank" || first === `${rank}`;
    }
    return keep?.(title, line) ?? true;
  }).join("\n");
}

/** Returns whether an axis line belongs to a layer. An axis of a block belongs only to the layer of the block. */
function hasAxis(line: string, layer: number): boolean {
  const [, low, high = low] =
    /\.(?:(\d+)|\{(\d+)\.\.(\d+)\})[./]/.exec(line)?.filter((group) =>
      group !== undefined
    ) ?? [];
  return low === undefined ||
    Number(low) <= layer && layer <= Number(high);
}

/** Returns the lines of a section for a layer: its steps, and the buffers and kernels that they use. */
function linesOfLayer(
  plan: Plan,
  layer: number,
): (title: readonly string[], line: string) => boolean {
  const names = new Set<string>();
  const steps = new Map<string, Set<number>>();
  for (const program of plan.programs) {
    const layers = layersOf(plan, program);
    const wanted = layers.names.indexOf(`layer ${layer}`);
    const shown = new Set<number>();
    for (const [i, step] of program.steps.entries()) {
      if (wanted < 0 || layers.of[i] !== wanted) continue;
      shown.add(i);
      if (step.op === "launch") names.add(step.kernel);
      for (const name of buffersOf(step)) names.add(name);
    }
    steps.set(program.name, shown);
  }
  if ([...steps.values()].every((shown) => shown.size === 0)) {
    throw noLayer(layer);
  }
  return ([section = "", program = ""], line) => {
    if (section === "axes") return hasAxis(line, layer);
    if (section === "bytes") {
      const [, name, index] = /(\S+)\[(\d+)\]/.exec(line) ?? [];
      return name === undefined || steps.get(name)!.has(Number(index));
    }
    if (section === "program") {
      const [, index] = /^\s*%(\d+) /.exec(line) ?? [];
      return index === undefined || steps.get(program)!.has(Number(index));
    }
    if (
      section === "buffers" || section === "weights" || section === "kernels"
    ) {
      const name = line.trim().split(/ {2,}/)[0]!;
      return names.has(name);
    }
    return true;
  };
}
