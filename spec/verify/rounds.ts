/** Rules of rounds: what they repeat is complete, and nothing else depends on a single round. */

import { countsPerRank, movesTokens } from "../plan/bytes.ts";
import type { Facts, Report, StepFacts } from "../plan/facts.ts";
import type { AllToAllStep, RoundsStep } from "../plan/plan.ts";
import { loopsOf } from "../plan/rounds.ts";
import type { StepOf } from "../plan/routing_parts.ts";
import { sameList } from "./axes.ts";

/** Checks all rounds, and that only they have exchanges of a part of the rows. */
export function checkRounds(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    const loops = loopsOf(steps.map(({ step }) => step));
    const repeated = new Set<StepFacts>();
    for (const { first, last } of loops) {
      const body = steps.slice(first + 1, last + 1);
      for (const at of body) repeated.add(at);
      const others = [...steps.slice(0, first), ...steps.slice(last + 1)];
      checkLoop(facts, steps[first] as StepOf<RoundsStep>, {
        body,
        others,
        report,
      });
    }
    for (const at of steps) {
      if (at.step.op !== "allToAll" || !at.step.inRounds) continue;
      if (repeated.has(at)) continue;
      report(`exchange '${at.step.from}' in rounds`, "no rounds start", at);
    }
  }
}

function checkLoop(
  facts: Facts,
  { step: rounds, ...start }: StepOf<RoundsStep>,
  { body, others, report }: {
    readonly body: readonly StepFacts[];
    readonly others: readonly StepFacts[];
    readonly report: Report;
  },
): void {
  const title = `repeat the steps after ${start.name} in rounds`;
  const returns = body.filter((at): at is StepOf<AllToAllStep> =>
    at.step.op === "allToAll" && at.step.direction === "back" &&
    at.step.counts === rounds.to
  );
  if (!rounds.part || returns.length !== 1 || body.at(-1) !== returns[0]) {
    report(title, "they do not end with the only return of their rows", {
      step: rounds,
      ...start,
    });
    return;
  }
  const complete = new Set([returns[0]!.step.to]);
  const partial = new Set([rounds.to]);
  for (const at of body) {
    const fault = faultOf(facts, at, { rounds, complete });
    if (fault !== undefined) report(title, fault, at);
    const counted = at.step.op === "allToAll" ? at.step.receivedCounts : "";
    for (const name of at.writes) {
      if (!complete.has(name) && name !== counted) partial.add(name);
    }
  }
  for (const at of others) {
    const used = [...at.reads, ...at.writes].find((name) => partial.has(name));
    if (used === undefined) continue;
    report(title, `'${used}' has one round, and another step uses it`, at);
  }
}

/** The fault of a repeated step. */
function faultOf(
  { buffers }: Facts,
  { step, reads, writes }: StepFacts,
  { rounds, complete }: {
    readonly rounds: RoundsStep;
    /** Buffers that all rounds write a part of. */
    readonly complete: ReadonlySet<string>;
  },
): string | undefined {
  if (step.op === "rounds") return "they contain other rounds";
  if (step.op === "wait" || "handle" in step && step.handle !== undefined) {
    return "an exchange is asynchronous";
  }
  const early = reads.find((name) => complete.has(name));
  if (early !== undefined) return `'${early}' is read before the last round`;
  const lasting = writes.find((name) => buffers.get(name)!.kind !== "scratch");
  if (lasting !== undefined) return `'${lasting}' is written more than once`;
  if (step.op !== "allToAll") return undefined;
  if (step.counts !== rounds.to || !step.inRounds) {
    return `'${step.from}' is exchanged by other counts`;
  }
  const experts = rounds.splits.at(-1)!;
  const same = sameList(step.splits, rounds.splits) &&
    sameList(step.over, rounds.over) && !step.experts && !movesTokens(step) &&
    countsPerRank(step) === experts + rounds.splits.length - 1;
  return same ? undefined : `'${step.from}' is exchanged by other experts`;
}
