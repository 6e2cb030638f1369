/** Search in a plan: steps, layers, buffers, kernels, ranks and experts. */

import type { StepFacts } from "../spec/plan/facts.ts";
import { heldOn, heldText } from "./pictures/house.ts";
import { stepLink } from "./links.ts";
import { type PlanView, type ProgramView, stepsOf } from "./plan_view.ts";
import { rangeOf } from "./sections.ts";

/** A result, and its address on the page. */
export interface Found {
  readonly kind: "step" | "buffer" | "kernel" | "rank";
  readonly text: string;
  readonly link: string;
}

/** Maximum number of results. */
const MAX_ROWS = 20;

/**
 * Finds everything with all words of a query in its name. `layers.30` is a layer, and further words are searched only
 * among its steps. `experts.3` is the rank that holds the expert, and `rank 5` is a rank.
 */
export function search(view: PlanView, query: string): Found[] {
  const words = query.toLowerCase().split(/[\s/]+/).filter((w) => w !== "");
  if (words.length === 0) return [];
  const text = words.join(" ");
  const layer = /(?:^|[ .])layers?[. ](\d+)/.exec(text);
  if (layer) {
    const rest = words.filter((w) =>
      !/^layers?(\.\d+)?$/.test(w) && w !== layer[1]
    );
    return view.programs.flatMap((program) =>
      stepsOfLayer(program, Number(layer[1])).map((at) =>
        foundStep(program, at)
      )
    ).filter(matches(rest)).slice(0, MAX_ROWS);
  }
  const rank = /^ranks?[. ](\d+)$/.exec(text);
  if (rank) return foundRanks(view, [Number(rank[1])]);
  const expert = /^experts?[. ](\d+)$/.exec(text);
  if (expert) {
    const ranks = Array.from({ length: view.plan.ranks }, (_, r) => r);
    return foundRanks(
      view,
      ranks.filter((r) =>
        heldOn(view.plan, r).some(({ experts }) =>
          experts.includes(Number(expert[1]))
        )
      ),
    );
  }
  return [...everything(view)].filter(matches(words)).slice(0, MAX_ROWS);
}

/** Returns the steps of a layer of the model. */
function stepsOfLayer(
  program: ProgramView,
  layer: number,
): readonly StepFacts[] {
  return program.sections.flatMap((section) => {
    const k = section.layers.indexOf(layer);
    return k < 0 ? [] : program.steps.slice(...rangeOf(section, k));
  });
}

function matches(words: readonly string[]): (found: Found) => boolean {
  return ({ kind, text }) => {
    const hay = `${kind} ${text.toLowerCase()}`;
    return words.every((word) => hay.includes(word));
  };
}

function foundRanks(view: PlanView, ranks: readonly number[]): Found[] {
  return ranks.filter((rank) => rank < view.plan.ranks).slice(0, MAX_ROWS)
    .map((rank) => ({
      kind: "rank",
      text: `${rank}, experts ${
        heldText(view.plan, rank) || "none of its own"
      }`,
      link: `rank/${rank}`,
    }));
}

function foundStep(program: ProgramView, at: StepFacts): Found {
  return {
    kind: "step",
    text: stepText(at),
    link: stepLink(program, at.index),
  };
}

/** Formats a step: `12 dispatch: permute permute_512`. */
function stepText({ step, index }: StepFacts): string {
  const what = step.part
    ? `${step.part.op}: ${step.part.part}`
    : step.label ?? "";
  const how = step.op === "launch"
    ? step.kernel
    : step.op === "allToAll"
    ? "all-to-all"
    : step.op === "allGather"
    ? "all-gather"
    : step.op;
  return `${index} ${what} ${how}`;
}

/** Yields steps of shown layers, kernels and buffers, each once. */
function* everything({ programs }: PlanView): Generator<Found> {
  for (const program of programs) {
    for (const section of program.sections) {
      for (const at of stepsOf(program.steps, section)) {
        yield foundStep(program, at);
      }
    }
  }
  const seen = new Set<string>();
  for (const program of programs) {
    for (const { step, index, reads, writes } of program.steps) {
      const link = stepLink(program, index);
      if (step.op === "launch" && !seen.has(`kernel ${step.kernel}`)) {
        seen.add(`kernel ${step.kernel}`);
        yield { kind: "kernel", text: step.kernel, link };
      }
      for (const text of [...writes, ...reads]) {
        if (seen.has(text)) continue;
        seen.add(text);
        yield { kind: "buffer", text, link };
      }
    }
  }
}
