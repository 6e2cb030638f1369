/**
 * Rules of returned rows: returned by the experts that received them, and pre-summed only if the order of sums is free.
 */

import { expertRanges, movesTokens } from "../plan/bytes.ts";
import type { AllToAllStep } from "../plan/plan.ts";
import { sameList } from "./axes.ts";
import type { Facts, Report, StepFacts } from "../plan/facts.ts";
import {
  type RoutingFacts,
  type StepOf,
  titleOf,
  valuesOf,
} from "../plan/routing_parts.ts";

/** Checks that the chunks of a value cover every expert once, and that each returns the experts that it sent. */
export function checkChunks(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const title = titleOf(routing);
    const { forward, back, indices, lists } = routing;
    const values = [forward, back, indices, lists].flatMap(valuesOf);
    for (const chunks of values) {
      const { splits } = chunks[0]!.step;
      const experts = chunks.map(({ step }) => expertRanges(step));
      for (const [p, start] of splits.slice(0, -1).entries()) {
        const local = experts.map((pairs) => pairs[p] ?? [0, 0] as const)
          .filter(([first, end]) => first < end)
          .sort(([a], [b]) => a - b);
        const end = local.reduce(
          (at, [first, end]) => first === at ? end : NaN,
          start,
        );
        if (end === splits[p + 1]) continue;
        report(
          title,
          `experts ${start} to ${
            splits[p + 1]
          } of group rank ${p} are sent as [${
            local.map((pair) => pair.join(" to ")).join(", ")
          }]`,
          chunks.at(-1),
        );
        break;
      }
    }
    for (const chunks of valuesOf(back)) {
      const order = [...chunks].sort((a, b) => start(a.step) - start(b.step));
      for (const at of chunks) {
        if (!at.step.experts) continue;
        if (!cameSo(routing, at, order.indexOf(at))) {
          report(title, `'${at.step.from}' did not come by these experts`, at);
        }
      }
    }
  }
}

/** The first expert of a chunk at some group rank, by which chunks are ordered. */
function start(step: AllToAllStep): number {
  return expertRanges(step).reduce((sum, [first]) => sum + first, 0);
}

/** Whether returned rows match the dispatched ones: same expert, same chunk, same choice. */
function cameSo(
  routing: RoutingFacts,
  at: StepOf<AllToAllStep>,
  chunk: number,
): boolean {
  const flows = (other: StepOf<AllToAllStep>) =>
    flowsTo(routing.steps.slice(other.index + 1), [other.step.to], [at]);
  const ofExperts = (other: StepOf<AllToAllStep>) =>
    sameExperts(other.step, at.step) && flows(other);
  if (movesTokens(at.step)) {
    return routing.lists.some(ofExperts) && routing.forward.some(flows);
  }
  return routing.forward.some((other) =>
    movesTokens(other.step)
      ? expertRanges(other.step)[0]![0] === other.step.splits[0]! + chunk &&
        flows(other) &&
        routing.indices.some(ofExperts)
      : ofExperts(other)
  );
}

function sameExperts(a: AllToAllStep, b: AllToAllStep): boolean {
  return sameList(expertRanges(a).flat(), expertRanges(b).flat());
}

/** Checks that rows are pre-summed only if the order of sums is free, by lists that were sent once. */
export function checkSums(
  { plan }: Facts,
  routing: RoutingFacts,
  report: Report,
): void {
  const { indices, lists, sums, back } = routing;
  const title = titleOf(routing);
  const [first] = [...lists, ...sums];
  if (first && plan.numerics.class !== "fast") {
    report(
      title,
      `it adds up rows before they return, and numerics are '${plan.numerics.class}'`,
      first,
    );
  }
  if (first && (indices.length === 0 || valuesOf(lists).length !== 1)) {
    report(
      title,
      `it says ${valuesOf(lists).length} times which rows are added up${
        indices.length === 0 ? ", of tokens that are not sent once" : ""
      }`,
      first,
    );
  }
  for (const at of back) {
    const { step, index } = at;
    const summed = sums.some((sum) =>
      sum.index < index && sum.writes.includes(step.from)
    );
    if (summed === movesTokens(step)) continue;
    report(
      title,
      summed
        ? `'${step.from}' has a row for each token and is returned by choices`
        : `'${step.from}' is returned by tokens and nothing adds up its rows`,
      at,
    );
  }
}

/** Whether data in some buffers flows to one of the steps `ends`. */
export function flowsTo(
  steps: readonly StepFacts[],
  from: readonly string[],
  ends: readonly StepFacts[],
): boolean {
  const touched = new Set(from);
  for (const at of steps) {
    const { step } = at;
    // The exchange of a wait was followed at its start.
    if (step.op === "wait") continue;
    const sources = step.op === "allToAll" ? [step.from] : at.reads;
    if (!sources.some((name) => touched.has(name))) continue;
    if (ends.includes(at)) return true;
    const results = step.op === "allToAll" ? [step.to] : at.writes;
    for (const name of results) touched.add(name);
  }
  return false;
}
