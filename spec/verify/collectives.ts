/** Rules of collectives: participation of groups, and matching shapes. */

import { countsPerRank, expertRanges } from "../plan/bytes.ts";
import { STORED_BYTES } from "../dtype.ts";
import { storedElementsOf } from "../layout.ts";
import { isIn } from "../mesh.ts";
import { sidesOf } from "../plan/members.ts";
import {
  type AllGatherStep,
  type AllToAllStep,
  type CollectiveStep,
  onRank,
  type PlanBuffer,
  type RoundsStep,
  type SendStep,
} from "../plan/plan.ts";
import { isRounds, type StepOf } from "../plan/routing_parts.ts";
import { sameList } from "./axes.ts";
import {
  collectives,
  type Facts,
  type Report,
  type StepFacts,
  width,
} from "../plan/facts.ts";

function titleOf(step: CollectiveStep): string {
  return step.op === "send"
    ? `send '${step.from}' to '${step.to}'`
    : step.op === "allGather"
    ? `gather '${step.from}' into '${step.to}'`
    : `exchange '${step.from}' into '${step.to}'`;
}

/** Checks that all ranks of a group execute a collective, or none; steps are one list, so the order is the same. */
export function checkGroups(facts: Facts, report: Report): void {
  for (const { step, at } of collectives(facts)) {
    if (step.ranks === "all" || step.op === "send") continue;
    for (const group of facts.groups(step.over)) {
      const missing = group.filter((rank) =>
        !isIn(step.ranks, facts.plan.mesh, rank)
      );
      if (missing.length > 0 && missing.length < group.length) {
        report(
          titleOf(step),
          `ranks [${missing.join(", ")}] of group [${
            group.join(", ")
          }] do not take part, and the others would wait for ever`,
          at,
        );
      }
    }
  }
}

/** Checks that buffers of collectives are long enough on every rank, and of one dtype. */
export function checkShapes(facts: Facts, report: Report): void {
  for (const at of facts.programs.flatMap(({ steps }) => steps)) {
    if (isRounds(at)) checkRoundShapes(facts, at, report);
  }
  for (const { step, at } of collectives(facts)) {
    const faults = step.op === "send"
      ? sendFaults(facts, step)
      : step.op === "allGather"
      ? gatherFaults(facts, step, at)
      : exchangeFaults(facts, step, at);
    for (const fault of faults) report(titleOf(step), fault, at);
  }
}

function gatherFaults(
  facts: Facts,
  step: AllGatherStep,
  at: StepFacts,
): string[] {
  if (step.rows) {
    return [
      ...rowFaults(facts, step, step.rows),
      ...step.blocks
        ? groupRankFaults(facts, step.over, step.blocks.groupRank)
        : [],
    ];
  }
  const faults: string[] = [];
  const from = facts.buffers.get(step.from)!;
  const to = facts.buffers.get(step.to)!;
  const total = step.bytes * width(facts, step.over);
  // With blocks, one per rank.
  const given = step.blocks ? total : step.bytes;
  if (from.dtype !== to.dtype) {
    faults.push(`one is ${from.dtype} and the other ${to.dtype}`);
  }
  if (step.bytes % 4 !== 0 || step.bytes === 0) {
    faults.push(`${step.bytes} bytes are no whole words`);
  }
  for (const rank of at.ranks) {
    const have = [from, to].map((buffer) => onRank(buffer.bytes, rank));
    if (have[0] !== given || have[1] !== total) {
      faults.push(
        `on rank ${rank} the buffers have ${have[0]} and ${
          have[1]
        } bytes, and it moves ${step.bytes} from each of the group, ${total}`,
      );
      break;
    }
  }
  if (step.blocks) {
    faults.push(...groupRankFaults(facts, step.over, step.blocks.groupRank));
  }
  return faults;
}

/** A send of a value to the buffer that is for it, with the axes of the value, on the ranks of another stage. */
function sendFaults(facts: Facts, step: SendStep): string[] {
  const { mesh, ranks } = facts.plan;
  const [from, to] = [step.from, step.to].map((n) => facts.buffers.get(n)!) as [
    PlanBuffer,
    PlanBuffer,
  ];
  const faults: string[] = [];
  if (to.sentFrom !== step.from) {
    faults.push(
      `'${step.to}' is for ${
        to.sentFrom === undefined ? "no sent value" : `'${to.sentFrom}'`
      }`,
    );
  }
  const layout = ({ dtype, axes, rowStride, unreduced }: PlanBuffer) =>
    JSON.stringify([dtype, axes, rowStride, unreduced]);
  if (layout(from) !== layout(to)) faults.push("they are laid out differently");
  if (step.over.length !== 1) faults.push("stages are along one mesh axis");
  if (step.bytes % 4 !== 0 || step.bytes === 0) {
    faults.push(`${step.bytes} bytes are no whole words`);
  }
  if (step.rows) faults.push(...rowFaults(facts, step, step.rows));
  const { reads, writes } = sidesOf(step);
  for (let rank = 0; rank < ranks; rank++) {
    const size = isIn(reads, mesh, rank)
      ? from
      : isIn(writes, mesh, rank)
      ? to
      : undefined;
    if (!size || step.rows) continue;
    const bytes = onRank(size.bytes, rank);
    if (bytes === step.bytes) continue;
    faults.push(
      `'${size.name}' has ${bytes} bytes on rank ${rank}, and it moves ${step.bytes}`,
    );
    break;
  }
  return faults;
}

/** A buffer with the group rank of each rank. */
function groupRankFaults(
  facts: Facts,
  over: readonly string[],
  name: string,
): string[] {
  const { kind, data } = facts.buffers.get(name)!;
  const real = over.filter((axis) => width(facts, [axis]) > 1);
  const said = data && "groupRank" in data
    ? data.groupRank.filter((axis) => width(facts, [axis]) > 1)
    : undefined;
  if (kind === "const" && said && sameList(said, real)) return [];
  return [`'${name}' must hold the rank's number over ${over.join("+")}`];
}

/**
 * A gather of rows: of the axis's items, by their numbers, with room for all of them. With blocks, of the items of all
 * ranks in the group, with room for each rank's own items.
 */
function rowFaults(
  facts: Facts,
  step: AllGatherStep | SendStep,
  rows: NonNullable<AllGatherStep["rows"]>,
): string[] {
  const faults: string[] = [];
  const [from, to, counts] = [step.from, step.to, rows.counts]
    .map((name) => facts.buffers.get(name)!) as [
      PlanBuffer,
      PlanBuffer,
      PlanBuffer,
    ];
  const axis = facts.plan.axes[rows.axis]!;
  if (from.dtype !== to.dtype) {
    faults.push(`one is ${from.dtype} and the other ${to.dtype}`);
  }
  if (!axis.dynamic) faults.push(`'${rows.axis}' is no dynamic axis`);
  const { assignment } = counts;
  // A send moves the rows of one rank.
  const over = step.op === "send" ? [] : step.over;
  const blocks = step.op === "allGather" && step.blocks !== undefined;
  if (
    assignment?.axis !== rows.axis || assignment.holds !== "counts" ||
    !sameList(assignment.over ?? [], over)
  ) {
    faults.push(
      `'${counts.name}' does not hold the counts of '${rows.axis}' over ${
        over.join("+")
      }`,
    );
  }
  const groupSize = width(facts, over);
  const [local, gathered] = blocks ? [to, from] : [from, to];
  const axes = blocks ? local.axes.slice(1) : local.axes;
  if (
    axes[0]?.axis !== rows.axis ||
    blocks && local.axes[0]?.size !== groupSize
  ) faults.push(`'${local.name}' does not begin with '${rows.axis}'`);
  const all = step.op === "send"
    ? undefined
    : facts.bound({ count: rows.axis, over });
  for (
    const [buffer, [outer, ...inner], length] of [
      [local, axes, undefined],
      [gathered, gathered.axes, all],
    ] as const
  ) {
    const bytes = inner.reduce(
      (n, { size, dynamic }) => dynamic ? NaN : n * onRank(size, 0),
      STORED_BYTES[buffer.dtype],
    );
    // Steps may write more rows after the gathered ones.
    const short = length !== undefined &&
      (buffer.writers === undefined
        ? outer?.size !== length
        : onRank(outer?.size ?? 0, 0) < length);
    if (bytes !== step.bytes || bytes % 4 !== 0 || short) {
      faults.push(
        `'${buffer.name}' does not have rows of ${step.bytes} bytes${
          length === undefined ? "" : `, ${length} of them`
        }`,
      );
    }
  }
  return faults;
}

function exchangeFaults(
  facts: Facts,
  step: AllToAllStep,
  at: StepFacts,
): string[] {
  const faults: string[] = [];
  const groupSize = width(facts, step.over);
  const { splits, rowBytes } = step;
  const from = facts.buffers.get(step.from)!;
  const to = facts.buffers.get(step.to)!;
  if (from.dtype !== to.dtype) {
    faults.push(`one is ${from.dtype} and the other ${to.dtype}`);
  }
  const ascending = splits.every((end, i) => i === 0 || end >= splits[i - 1]!);
  const perRank = countsPerRank(step);
  if (
    splits.length !== groupSize + 1 || !ascending || splits.at(-1)! > perRank
  ) {
    faults.push(
      `splits [${
        splits.join(", ")
      }] do not split experts for ${groupSize} ranks`,
    );
  }
  const chunk = expertRanges(step);
  if (
    chunk.length !== groupSize ||
    chunk.some(([first, end], p) =>
      first > end || first < splits[p]! || end > splits[p + 1]!
    )
  ) {
    faults.push(
      `experts [${
        chunk.map((pair) => pair.join(" to ")).join(", ")
      }] are not of ${groupSize} ranks whose experts are split at [${
        splits.join(", ")
      }]`,
    );
  }
  for (const buffer of [from, to]) {
    if (!isRowOf(buffer, rowBytes)) {
      faults.push(
        `${rowBytes} bytes are no row of '${buffer.name}'`,
      );
    }
  }
  faults.push(
    ...wordFaults(facts, at, [step.counts, groupSize * perRank]),
    ...wordFaults(facts, at, [step.receivedCounts, groupSize]),
  );
  faults.push(...groupRankFaults(facts, step.over, step.groupRank));
  return faults;
}

/** A buffer that must have a number of u32 on each rank. */
function wordFaults(
  facts: Facts,
  at: StepFacts,
  [name, words]: readonly [string, number],
): string[] {
  const buffer = facts.buffers.get(name)!;
  const rank = at.ranks.find((r) => storedElementsOf(buffer, r) !== words);
  return buffer.dtype !== "u32" || rank !== undefined
    ? [`'${name}' must hold ${words} u32`]
    : [];
}

function checkRoundShapes(
  facts: Facts,
  at: StepOf<RoundsStep>,
  report: Report,
): void {
  const { counts, to, splits, over } = at.step;
  const groupSize = width(facts, over);
  const experts = splits.at(-1)!;
  const ascending = splits.every((end, i) => end >= (splits[i - 1] ?? 0));
  const faults = splits.length !== groupSize + 1 || splits[0] !== 0 ||
      !ascending
    ? [`splits [${splits.join(", ")}] do not split experts for ${groupSize}`]
    : [
      ...wordFaults(facts, at, [counts, groupSize * experts]),
      ...wordFaults(facts, at, [to, groupSize * (experts + groupSize)]),
    ];
  for (const fault of faults) report(`count the rows of '${to}'`, fault, at);
}

/** Whether the inner axes of a buffer form a row of this many bytes. */
function isRowOf(buffer: PlanBuffer, rowBytes: number): boolean {
  if (buffer.rowStride !== undefined || rowBytes % 4 !== 0) return false;
  let bytes = STORED_BYTES[buffer.dtype];
  for (let i = buffer.axes.length - 1; i >= 0; i--) {
    if (bytes === rowBytes) return true;
    const { size } = buffer.axes[i]!;
    if (typeof size !== "number") return false;
    bytes *= size;
  }
  return false;
}
