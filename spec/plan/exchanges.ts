/** Bytes that the exchanges of dispatches and combines send per token, for evenly chosen experts. */

import {
  expectedDestinations,
  expertRanges,
  movedExperts,
  movesTokens,
  shareOfExperts,
  unitEnds,
} from "./bytes.ts";
import { groupSizeOf } from "../mesh.ts";
import {
  type AllToAllStep,
  onRank,
  type Plan,
  type PlanBuffer,
  type Program,
  type StepPart,
} from "./plan.ts";

/** An exchange of rows and its bytes. */
export interface ExpectedExchange {
  /** Index of its step. */
  readonly index: number;
  readonly step: AllToAllStep;
  readonly op: StepPart["op"];
  /** Bytes per token, to all ranks of the group. */
  readonly bytes: number;
  /** The fractions sent to each group rank, with sum 1. */
  readonly shares: readonly number[];
  /** The axis of the tokens. */
  readonly tokens: string | undefined;
}

/** The exchanges of a program's dispatches and combines, in order. */
export function expectedExchanges(
  plan: Plan,
  program: Program,
): ExpectedExchange[] {
  const indices = sentWhere(plan, program);
  const experts = expertSplits(program);
  return program.steps.flatMap((step, index): ExpectedExchange[] => {
    if (step.op !== "allToAll" || !step.part) return [];
    const { op, routing, part } = step.part;
    if (!part.startsWith("exchange")) return [];
    const where = indices.get(step.part.within ?? routing)?.axes ?? [];
    const choices = where.length > 0 ? onRank(where.at(-1)!.size, 0) : 0;
    const base = { index, step, op, tokens: where[0]?.axis };
    const held = expertRanges(step).map(([first, end]) => end - first);
    const all = movedExperts(step);
    const shares = held.map((n) => n / all);
    // With deduplicated dispatch, a word per choice contains the index of its token.
    if (part === "exchange indices") {
      return [{ ...base, bytes: choices * 4, shares }];
    }
    const ends = experts.get(routing) ?? step.splits;
    const rows = movesTokens(step)
      ? expectedDestinations(ends, choices)
      : choices;
    const bytes = rows * step.rowBytes * shareOfExperts(step);
    return [{ ...base, bytes, shares }];
  });
}

/** Bytes of a token that leave a rank, of those sent to the group. */
export function toOthers(
  { mesh }: Pick<Plan, "mesh">,
  { bytes, step }: Pick<ExpectedExchange, "bytes" | "step">,
): number {
  const groupSize = groupSizeOf(mesh, step.over);
  return bytes * (groupSize - 1) / groupSize;
}

/**
 * The end of the experts of each group rank and chunk, by routing, from the exchange with a row per choice: token
 * indices, or combine.
 */
function expertSplits(program: Program): Map<number, readonly number[]> {
  const chunks = new Map<string, AllToAllStep[]>();
  const ends = new Map<number, readonly number[]>();
  for (const step of program.steps) {
    if (step.op !== "allToAll" || !step.part) continue;
    const { op, part, routing } = step.part;
    if (op !== "combine" && part !== "exchange indices") continue;
    if (op === "combine" && chunks.has(`indices ${routing}`)) continue;
    const key = `${op === "combine" ? "back" : "indices"} ${routing}`;
    const known = [...chunks.get(key) ?? [], step];
    chunks.set(key, known);
    ends.set(routing, unitEnds(known));
  }
  return ends;
}

/** The buffers with the send row of each choice, by routing. u32 [token, choice] */
function sentWhere(plan: Plan, program: Program): Map<number, PlanBuffer> {
  const found = new Map<number, PlanBuffer>();
  for (const step of program.steps) {
    if (step.op !== "launch" || step.part?.part !== "count") continue;
    for (const name of Object.values(step.bindings)) {
      const buffer = plan.buffers[name]!;
      const last = buffer.axes.at(-1)!;
      if (buffer.axes.length < 2 || buffer.dtype !== "u32" || last.dynamic) {
        continue;
      }
      found.set(step.part.routing, buffer);
    }
  }
  return found;
}
