/**
 * Rules of dispatch and combine: all parts exist in order, with one permutation and transposed counts, and returned
 * rows are combined.
 */

import { expertsOfRows } from "../axis_parts.ts";
import { countsPerRank, expertRanges, movesTokens } from "../plan/bytes.ts";
import type { AllToAllStep, StepPart } from "../plan/plan.ts";
import { checkSums, flowsTo } from "./returns.ts";
import { checkOrder, isFar, sentValues } from "./routing_order.ts";
import {
  permutationsOf,
  type RoutingFacts,
  sentOver,
  type StepOf,
  titleOf,
  valuesOf,
} from "../plan/routing_parts.ts";
import { heldOver, sameList } from "./axes.ts";
import {
  type Facts,
  locationOf,
  type Report,
  type StepFacts,
} from "../plan/facts.ts";

/** The op of each part. */
const OPS: { readonly [part in StepPart["part"]]: StepFacts["step"]["op"] } = {
  "count": "launch",
  "permute": "launch",
  "exchange counts": "allGather",
  "rounds": "rounds",
  "exchange indices": "allToAll",
  "exchange": "allToAll",
  "list rows": "launch",
  "exchange rows": "allToAll",
  "wait": "wait",
  "regroup": "launch",
  "combine": "launch",
  "sum": "launch",
};

/** Checks that every routing counts, permutes, exchanges, regroups and combines, in that order, on the same ranks. */
export function checkParts(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    checkSteps(routing, report);
    if (!hasStages(routing, report)) continue;
    const title = titleOf(routing);
    const { gather } = routing;
    if (!isFar(routing) && !hasTerms(facts, routing)) {
      report(
        title,
        "its experts are on several ranks and it has no 'exchange'",
        routing.all[0],
      );
    }
    if (gather.length > 1) {
      report(title, "its counts are exchanged twice", gather[1]);
    }
    if (!hasIndices(routing, report)) continue;
    checkSums(facts, routing, report);
    checkValues(routing, report);
    checkOrder(routing, report);
  }
}

/** Checks that each step has the op of its part, the routing's ranks, and the direction of its part. */
function checkSteps(routing: RoutingFacts, report: Report): void {
  const title = titleOf(routing);
  const first = routing.all[0]!;
  for (const at of routing.all) {
    const { op, part } = at.step.part!;
    const legal = part === "exchange" || part === "wait" ||
      (part === "combine" || part === "sum") === (op === "combine");
    if (at.step.op !== OPS[part] || !legal) {
      report(title, `${at.step.op} is no '${part}' of a ${op}`, at);
    }
    if (!sameList(at.ranks, first.ranks)) {
      report(title, `'${part}' is not on the ranks of ${first.name}`, at);
    }
    if (
      at.step.op === "allToAll" &&
      (at.step.direction === "forward") !== (op === "dispatch")
    ) report(title, `a ${op} does not exchange ${at.step.direction}`, at);
  }
}

/** Checks that a routing has steps of all stages that it needs. Returns whether it has. */
function hasStages(routing: RoutingFacts, report: Report): boolean {
  const { count, permute, gather, forward, regroup, back, combine } = routing;
  const far = isFar(routing);
  const stages: readonly (readonly [string, readonly StepFacts[]])[] = [
    ["count", count],
    ["combine", combine],
    // A count that lists rows by expert: rows are local, and tokens are read in place.
    ...!far && count.some(({ step }) => step.part?.lists)
      ? []
      : [["permute", permute], ["regroup", regroup]] as const,
    ...far
      ? [
        ["exchange counts", gather],
        ["exchange", forward],
        ["exchange back", back],
      ] as const
      : [],
  ];
  const missing = stages.filter(([, steps]) => steps.length === 0);
  for (const [name] of missing) {
    report(titleOf(routing), `it has no '${name}'`, routing.all[0]);
  }
  return missing.length === 0;
}

/** Checks that tokens that are sent once are followed by the places of their choices. Returns whether they are. */
function hasIndices(routing: RoutingFacts, report: Report): boolean {
  const { indices, forward } = routing;
  const times = valuesOf(indices).length;
  const once = forward.some(({ step }) => movesTokens(step));
  if (times === (once ? 1 : 0)) return true;
  report(
    titleOf(routing),
    `it sends ${
      once ? "tokens once" : "rows of choices"
    } and says ${times} times where choices find tokens`,
    indices[0] ?? forward[0],
  );
  return false;
}

/** Checks that all permuted values are exchanged, and all returned ones combined. */
function checkValues(routing: RoutingFacts, report: Report): void {
  if (!isFar(routing)) return;
  const { permute, forward, back, combine } = routing;
  const [sent, returned] = [sentValues(routing), valuesOf(back)];
  const title = titleOf(routing);
  if (sent.length !== permute.length) {
    report(
      title,
      `${permute.length} values are permuted and ${sent.length} exchanged`,
      forward.at(-1),
    );
  }
  if (returned.length !== combine.length) {
    report(
      title,
      `${returned.length} values return and ${combine.length} are combined`,
      combine.at(-1),
    );
  }
}

/** Checks that exchanges outside a dispatch or combine use exchanged counts and splits of a routing. */
export function checkRoutings(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    const splitsOf = new Map<string, (readonly number[])[]>();
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "allToAll") continue;
      const known = splitsOf.get(step.counts) ?? [];
      if (step.part) splitsOf.set(step.counts, [...known, step.splits]);
      else if (!known.some((splits) => sameList(splits, step.splits))) {
        report(
          `exchange '${step.from}'`,
          `no dispatch before it has exchanged rows by '${step.counts}' by such experts`,
          at,
        );
      }
    }
  }
}

/**
 * Checks that all exchanges of a routing use its one counts matrix with its splits, transposed for the return.
 * Deduplicated tokens are sent by counts per rank and chunk, after those of experts.
 */
export function checkTransposed(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const title = titleOf(routing);
    const { forward, back, indices, lists, rounds } = routing;
    const exchanges = [...forward, ...lists, ...indices, ...back];
    const gather = routing.gather[0];
    const first = exchanges.find(({ step }) => !movesTokens(step));
    if (!first || !gather) continue;
    const model = first.step;
    for (const at of exchanges) {
      const step = at.step;
      const fail = (because: string) => report(title, because, at);
      const counts = countsAt(routing, at) ?? gather.step.to;
      if (step.counts !== counts) {
        fail(
          `its counts are '${counts}' and the exchange uses '${step.counts}'`,
        );
      }
      if (!sameList(step.over, gather.step.over)) {
        fail(
          `its counts are exchanged over '${
            gather.step.over.join("+")
          }' and its rows over '${step.over.join("+")}'`,
        );
      }
      if (countsPerRank(step) !== countsPerRank(model)) {
        fail(
          `its counts are ${countsPerRank(model)} of each rank, and here ${
            countsPerRank(step)
          }`,
        );
      }
      if (movesTokens(step)) checkTokens(routing, at, model, report);
      else if (!sameList(step.splits, model.splits)) {
        fail(
          `its dispatch splits experts at [${
            model.splits.join(", ")
          }] and here they are cut at [${step.splits.join(", ")}]`,
        );
      }
    }
    for (const at of rounds) {
      const { counts, over, splits } = at.step;
      if (
        counts === gather.step.to && sameList(over, gather.step.over) &&
        sameList(splits, model.splits)
      ) continue;
      report(title, "its rounds are of other counts or experts", at);
    }
    const lengths = model.splits.slice(1).map((end, p) =>
      end - model.splits[p]!
    );
    const levels = facts.routings.some(({ within }) =>
      within?.number === routing.number && within.program === routing.program
    );
    const nodes = routing.within?.forward[0]?.step.splits.length ?? 2;
    const all = new Array(nodes - 1).fill(lengths).flat();
    const held = heldOver(facts, sentOver(routing));
    if (!levels && !held.some((each) => sameList(each, all))) {
      report(
        title,
        `its experts are split into [${
          lengths.join(", ")
        }], and no axis is placed so over '${model.over.join("+")}'`,
        first,
      );
    }
    const counted = routing.count.some((at) =>
      at.writes.includes(gather.step.from)
    );
    if (!counted) {
      report(title, "the counts that are exchanged are not its own", gather);
    }
    if (routing.within) checkForwarded(routing, routing.within, report);
    const last = exchanges.reduce((a, b) => a.index > b.index ? a : b);
    onlyWriter(routing, gather.step.to, [gather], last, report);
  }
}

/** Checks that a routing within a node forwards the rows that the one between nodes received for its experts. */
function checkForwarded(
  { gather, count, permute, combine, forward, ...routing }: RoutingFacts,
  within: RoutingFacts,
  report: Report,
): void {
  const title = titleOf({
    gather,
    count,
    permute,
    combine,
    forward,
    ...routing,
  });
  const counts = within.gather[0]?.step.to ?? "";
  for (const at of count) {
    if (!at.reads.includes(counts)) {
      report(title, `it counts other rows than those by '${counts}'`, at);
    }
  }
  const experts = forward[0]?.step.splits.at(-1) ?? 0;
  const { splits } = within.back[0]?.step ?? { splits: [] };
  if (!splits.every((end, node) => end === node * experts)) {
    const fault = `its node has ${experts} experts, and nodes are split at [${
      splits.join(", ")
    }]`;
    report(title, fault, forward[0]);
  }
  const received = within.forward.map(({ step }) => step.to);
  for (const at of permute) {
    if (!at.reads.some((name) => received.includes(name))) {
      report(title, "it forwards rows that no node sent", at);
    }
  }
  const returned = within.back.map(({ step }) => step.from);
  for (const at of combine) {
    if (!at.writes.every((name) => returned.includes(name))) {
      report(title, "its rows do not return to their nodes", at);
    }
  }
}

/** The counts of the rounds that a step of a routing is repeated in. Undefined: it has none. */
function countsAt(
  { rounds }: RoutingFacts,
  { index }: StepFacts,
): string | undefined {
  return rounds.findLast((at) => at.index < index)?.step.to;
}

/** Deduplicated tokens have counts after those of experts: equally many per rank, one per chunk. */
function checkTokens(
  routing: RoutingFacts,
  at: StepOf<AllToAllStep>,
  { splits: experts }: AllToAllStep,
  report: Report,
): void {
  const { splits } = at.step;
  const [start, second] = splits as [number, number];
  if (
    start === experts.at(-1) && splits.at(-1) === countsPerRank(at.step) &&
    splits.every((end, p) => end === start + p * (second - start)) &&
    expertRanges(at.step).every(([first, end]) => end === first + 1)
  ) return;
  report(
    titleOf(routing),
    `it sends deduplicated tokens by counts split at [${
      splits.join(", ")
    }], which is not one per rank and chunk after those of ${
      experts.at(-1)
    } experts`,
    at,
  );
}

/** Checks that only `writers` write a buffer up to the last step that needs it. */
function onlyWriter(
  routing: RoutingFacts,
  buffer: string,
  writers: readonly StepFacts[],
  last: StepFacts,
  report: Report,
): void {
  for (const at of routing.steps.slice(writers[0]!.index, last.index)) {
    if (at.writes.includes(buffer) && !writers.includes(at)) {
      report(
        titleOf(routing),
        `it overwrites '${buffer}', which ${locationOf(last)} needs`,
        at,
      );
    }
  }
}

/** Checks that a dispatch and its combine use one permutation, which is not overwritten. */
export function checkPermutation(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const { count, permute, combine } = routing;
    if (!count.length || !combine.length) continue;
    const shared = permutationsOf(routing);
    if (shared.length === 0) {
      const written = count.flatMap((at) => at.writes);
      const lone = combine.find((at) =>
        !at.reads.some((name) =>
          written.includes(name)
        )
      ) ?? permute[0] ?? count[0];
      report(
        titleOf(routing),
        "its dispatch and its combine do not read one permutation that its count makes",
        lone,
      );
    }
    for (const name of shared) {
      const writers = routing.within?.regroup ?? count;
      onlyWriter(routing, name, writers, combine.at(-1)!, report);
    }
  }
}

/** Checks that every dispatched value is exchanged, and reaches a combine of its routing or a sum over its rows. */
export function checkReturns(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const title = titleOf(routing);
    const { permute, forward, back, combine } = routing;
    const ends = [
      ...combine,
      ...routing.steps.filter((at) => sumsRows(facts, at)),
    ];
    for (const at of permute) {
      const exchanges = valuesOf(forward).find(([other]) =>
        other!.index > at.index &&
        other!.reads.some((n) => at.writes.includes(n))
      );
      if (forward.length > 0 && !exchanges) {
        report(title, "what it permutes is not exchanged", at);
        continue;
      }
      for (const start of exchanges ?? [at]) {
        const { step } = start;
        const arrived = step.op === "allToAll" ? [step.to] : start.writes;
        if (!flowsTo(routing.steps.slice(start.index + 1), arrived, ends)) {
          report(title, `'${arrived.join("', '")}' reaches no combine`, start);
        }
      }
    }
    for (const at of back) {
      const { to } = at.step;
      if (!combine.some((c) => c.index > at.index && c.reads.includes(to))) {
        report(title, `what returns in '${to}' is not combined`, at);
      }
    }
  }
}

/** Whether a step sums rows: its result has a shape of the model, f32, without a token axis. */
function sumsRows({ plan, buffers }: Facts, { step, writes }: StepFacts) {
  return step.op === "launch" && !step.part && writes.every((name) => {
    const { dtype, axes } = buffers.get(name)!;
    return dtype === "f32" &&
      axes.every(({ axis, dynamic }) =>
        !dynamic && Object.hasOwn(plan.axes, axis)
      );
  });
}

/** Checks that a regroup reads the exchanged counts, or the counts themselves without an exchange. */
export function checkRegroup(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const { count, gather, regroup, forward } = routing;
    const all = gather.length > 0
      ? gather.flatMap((at) => at.writes)
      : count.flatMap((at) => at.writes);
    for (const at of regroup) {
      const now = countsAt(routing, at);
      const made = now === undefined ? all : [now];
      if (!at.reads.some((name) => made.includes(name))) {
        report(titleOf(routing), "it groups rows by other counts", at);
      }
      const exchange = forward[0]?.step;
      if (exchange && !at.reads.includes(exchange.groupRank)) {
        report(titleOf(routing), "it groups rows of another group rank", at);
      }
    }
  }
}

/**
 * Whether the combine of a routing without an exchange is complete: no experts are sharded, or its results are terms of
 * a sum over the mesh axes of the experts, which only `fast` numerics allow.
 */
function hasTerms(
  { plan, buffers }: Facts,
  { permute, combine }: RoutingFacts,
): boolean {
  const rows = [
    ...permute.flatMap(({ writes }) => writes),
    ...combine.flatMap(({ reads }) => reads),
  ];
  const over = rows.flatMap((name) =>
    expertsOfRows(plan, buffers.get(name))?.over ?? []
  );
  return over.length === 0 || plan.numerics.class === "fast" &&
      combine.every(({ writes }) =>
        writes.every((name) => {
          const terms = buffers.get(name)!.unreduced ?? [];
          return over.every((axis) => terms.includes(axis));
        })
      );
}
