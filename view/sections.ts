/**
 * Divides a program into sections. Layers with the same steps form one section, even if other layers are between them.
 */

import { layersOf } from "../spec/plan/layers.ts";
import type { Plan, Program, Step } from "../spec/plan/plan.ts";

/** Consecutive steps that belong together. */
export interface Section {
  /** Display name, unique in the program: `layers 3–60`, `before the layers`. */
  readonly name: string;
  readonly phase: "forward" | "backward" | "update";
  /** Number of layers with these steps. */
  readonly times: number;
  /** The first step of the first layer. */
  readonly start: number;
  /** The first step of each layer. */
  readonly starts: readonly number[];
  /** Number of steps of one layer. */
  readonly length: number;
  /** The model's number of each of these layers. Empty for steps outside of layers. */
  readonly layers: readonly number[];
}

interface Run {
  readonly layer: string;
  readonly phase: Section["phase"];
  readonly start: number;
  length: number;
}

/** Returns the sections of a program in order. */
export function sectionsOf(plan: Plan, program: Program): Section[] {
  const { names, of } = layersOf(plan, program);
  const runs: Run[] = [];
  for (const [i, step] of program.steps.entries()) {
    const { phase = "forward" } = step;
    const layer = names[of[i]!]!;
    const last = runs.at(-1);
    if (last?.layer === layer && last.phase === phase) last.length++;
    else runs.push({ layer, phase, start: i, length: 1 });
  }
  const folded: Run[][] = [];
  // The last group for each sequence of steps.
  const groups = new Map<string, Run[]>();
  for (const run of runs) {
    const { start, length, layer, phase } = run;
    const steps = program.steps.slice(start, start + length);
    const key = `${phase} ${steps.map(shapeOf).join()}`;
    const group = groups.get(key);
    // A layer that has the same steps twice is in two groups.
    const folds = /\d/.test(layer) && group !== undefined &&
      /\d/.test(group[0]!.layer) && group.every((one) => one.layer !== layer);
    if (folds) group.push(run);
    else {
      const made = [run];
      groups.set(key, made);
      folded.push(made);
    }
  }
  const called = distinct(folded.map(nameOf));
  return folded.map((group, i) => ({
    name: called[i]!,
    phase: group[0]!.phase,
    times: group.length,
    start: group[0]!.start,
    starts: group.map(({ start }) => start),
    length: group[0]!.length,
    layers: numbersOf(group),
  }));
}

/** Returns the properties that must be equal in the steps of two layers. */
function shapeOf(step: Step): string {
  const part = step.part ? `${step.part.op} ${step.part.part}` : "";
  return `${step.op} ${step.op === "launch" ? step.kernel : ""} ${part}`;
}

function numbersOf(group: readonly Run[]): number[] {
  return group.flatMap(({ layer }) => /\d+/.exec(layer)?.map(Number) ?? []);
}

function nameOf(group: readonly Run[]): string {
  const numbers = numbersOf(group);
  const [{ layer, phase }] = group as [Run];
  const name = numbers.length === 0
    ? WORDS[layer] ?? layer
    : `${numbers.length === 1 ? "layer" : "layers"} ${layersText(numbers)}`;
  return phase === "forward" ? name : `${name}, ${phase}`;
}

/** Maximum number of named ranges of layers. */
const RANGES = 3;

/** Formats layers in execution order: `3–60`, `0, 2, 4, … 22`. */
export function layersText(layers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const layer of layers.toSorted((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && layer === last[1] + 1) last[1] = layer;
    else ranges.push([layer, layer]);
  }
  const texts = ranges.map(([from, to]) =>
    from === to ? `${from}` : `${from}–${to}`
  );
  return texts.length <= RANGES + 1
    ? texts.join(", ")
    : `${texts.slice(0, RANGES).join(", ")}, … ${texts.at(-1)}`;
}

/** Makes names unique by numbering equal ones. A layer has several sections if other steps are in the middle of it. */
function distinct(names: readonly string[]): string[] {
  return names.map((name, i) => {
    const same = names.flatMap((other, j) => other === name ? [j] : []);
    return same.length === 1
      ? name
      : `${name} (${same.indexOf(i) + 1} of ${same.length})`;
  });
}

const WORDS: { readonly [name: string]: string } = {
  begin: "before the layers",
  end: "after the layers",
  all: "all steps",
};

/** Returns the initially shown section: the one with the most exchanges, otherwise the most frequent one. */
export function mainSection(
  program: Program,
  sections: readonly Section[],
): Section {
  const weight = ({ start, length, times }: Section) =>
    times +
    (program.steps.slice(start, start + length)
        .some(({ part }) => part !== undefined)
      ? 1e6
      : 0);
  return sections.reduce((best, section) =>
    weight(section) > weight(best) ? section : best
  );
}

/** Returns the first step and the end of the k-th layer of a section. */
export function rangeOf(
  { starts, length }: Section,
  k: number,
): [from: number, to: number] {
  const start = starts[k]!;
  return [start, start + length];
}

/** Returns the index of the section's layer that contains a step. Undefined if there is none. */
export function layerOfStep(
  { starts, length }: Section,
  step: number,
): number | undefined {
  const k = starts.findIndex((start) => step >= start && step < start + length);
  return k < 0 ? undefined : k;
}
