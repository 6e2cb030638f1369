/** A program in sections: layers that take the same steps are one, with how often they come. */

import { layersOf } from "../spec/plan/layers.ts";
import type { Plan, Program, Step } from "../spec/plan/plan.ts";

/** Steps that follow each other and belong together. */
export interface Section {
  /** What people call it, and nothing else of the program: `layers 3–60`, `before the layers`. */
  readonly name: string;
  readonly phase: "forward" | "backward" | "update";
  /** How many layers take these steps, one after another. */
  readonly times: number;
  /** The first step of the first of them. */
  readonly start: number;
  /** Steps of one. */
  readonly length: number;
  /** The number of each of these layers in the model; none of steps that no layer has. */
  readonly layers: readonly number[];
}

interface Run {
  readonly layer: string;
  readonly phase: Section["phase"];
  readonly start: number;
  length: number;
}

/** The sections of a program, in order. */
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
  let before = "";
  for (const run of runs) {
    const { start, length, layer, phase } = run;
    const steps = program.steps.slice(start, start + length);
    const key = `${phase} ${/\d/.test(layer)} ${steps.map(shapeOf).join()}`;
    const group = folded.at(-1);
    if (group && key === before && /\d/.test(layer)) group.push(run);
    else folded.push([run]);
    before = key;
  }
  const called = distinct(folded.map(nameOf));
  return folded.map((group, i) => ({
    name: called[i]!,
    phase: group[0]!.phase,
    times: group.length,
    start: group[0]!.start,
    length: group[0]!.length,
    layers: numbersOf(group),
  }));
}

/** What two layers have the same of where they take the same steps. */
function shapeOf(step: Step): string {
  const part = step.part ? `${step.part.op} ${step.part.part}` : "";
  return `${step.op} ${step.op === "launch" ? step.kernel : ""} ${part}`;
}

function numbersOf(group: readonly Run[]): number[] {
  return group.flatMap(({ layer }) => /\d+/.exec(layer)?.map(Number) ?? []);
}

function nameOf(group: readonly Run[]): string {
  const numbers = numbersOf(group);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const [{ layer, phase }] = group as [Run];
  const name = numbers.length === 0
    ? WORDS[layer] ?? layer
    : low === high
    ? `layer ${low}`
    : `layers ${low}–${high}`;
  return phase === "forward" ? name : `${name}, ${phase}`;
}

/** Names that several have, such as of a layer that other steps come in between, with which of them it is. */
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

/** The section that people want to see first: that which exchanges most often, else which comes most often. */
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
