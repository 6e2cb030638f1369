/** The order of the steps of a routing. */

import { locationOf, type Report, type StepFacts } from "../plan/facts.ts";
import { type RoutingFacts, titleOf, valuesOf } from "../plan/routing_parts.ts";

/** Steps of which the first is before the second. */
type Pair = readonly [early: StepFacts, late: StepFacts];

/** Whether a routing exchanges anything. */
export function isFar({ gather, forward, back }: RoutingFacts): boolean {
  return gather.length + forward.length + back.length > 0;
}

/** The chunks of each value that a routing sends. Each of its rounds sends the values that it needs. */
export function sentValues({ rounds, forward }: RoutingFacts): StepFacts[][] {
  const sent = valuesOf(forward);
  return rounds.length === 0
    ? sent
    : sent.filter(([at], i) =>
      i === sent.findIndex(([other]) => other!.step.from === at!.step.from)
    );
}

/** Checks the order of the steps of a routing with all parts. */
export function checkOrder(routing: RoutingFacts, report: Report): void {
  const order = [
    ...localOrder(routing),
    ...isFar(routing) ? exchangeOrder(routing) : [],
  ];
  for (const [early, late] of order) {
    if (early.index < late.index) continue;
    report(
      titleOf(routing),
      `'${early.step.part!.part}' in ${locationOf(early)} must come first`,
      late,
    );
  }
}

function localOrder(routing: RoutingFacts): Pair[] {
  const { permute, regroup, combine } = routing;
  const counted = routing.count.at(-1)!;
  const last = lastRegroup(routing);
  return [
    [counted, combine[0]!],
    ...permute.slice(0, 1).map((at): Pair => [counted, at]),
    ...regroup.slice(0, 1).map((at): Pair => [counted, at]),
    ...last ? [[last, combine[0]!] as const] : [],
  ];
}

function exchangeOrder(routing: RoutingFacts): Pair[] {
  const { count, permute, gather, forward, regroup, back, combine } = routing;
  const gathered = gather.at(-1)!;
  return [
    [count.at(-1)!, gather[0]!],
    [gathered, forward[0]!],
    [gathered, regroup[0]!],
    [lastRegroup(routing)!, back[0]!],
    ...routing.rounds.length > 0 ? pairs(regroup, back) : [],
    ...routing.indices.flatMap((at): Pair[] => [
      [gathered, at],
      [at, regroup.at(-1)!],
    ]),
    // A routing may have several values, one after another.
    [forward[0]!, back[0]!],
    ...pairs(permute, sentValues(routing).map((chunks) => chunks[0]!)),
    ...pairs(valuesOf(back).map((chunks) => chunks.at(-1)!), combine),
  ];
}

/** The regroup before results return: rounds regroup once for each returned value, others regroup everything first. */
function lastRegroup({ rounds, regroup }: RoutingFacts): StepFacts | undefined {
  return rounds.length > 0 ? regroup[0] : regroup.at(-1);
}

/** Pairs of steps that belong together. */
function pairs(
  early: readonly StepFacts[],
  late: readonly StepFacts[],
): Pair[] {
  return early.slice(0, late.length).map((at, i) => [at, late[i]!]);
}
