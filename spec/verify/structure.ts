/** Rules that other rules depend on: the mesh, the order of sums, and values per rank. */

import { type MeshAxis, rankCount, rankSetText } from "../mesh.ts";
import { type PerRank, ranksGiven } from "../per_rank.ts";
import type { Plan, Program } from "../plan/plan.ts";
import { MAX_RANKS } from "../limits.ts";
import type { NamedStep, Report } from "../plan/facts.ts";
import { isCollective } from "../plan/members.ts";

/** A rule over a plan whose references may not resolve yet. */
export type StructureCheck = (plan: Plan, report: Report) => void;

/** Every step of a plan with its name. */
export function* stepsOf(
  plan: Plan,
): Generator<NamedStep & { program: Program }> {
  for (const program of plan.programs) {
    for (const [index, step] of program.steps.entries()) {
      yield { step, program, name: `${program.name}[${index}]` };
    }
  }
}

/** Names that a list contains more than once. */
export function duplicates(names: readonly string[]): string[] {
  const seen = new Set<string>();
  return names.filter((name) => seen.size === seen.add(name).size);
}

/** Checks that the mesh has as many ranks as the plan, that axis names are distinct, and that each axis is used. */
export function checkMesh(plan: Plan, report: Report): void {
  const count = rankCount(plan.mesh);
  if (count !== plan.ranks || count > MAX_RANKS) {
    report(
      "use the mesh",
      `it has ${count} ranks and the plan has ${plan.ranks}`,
    );
  }
  for (const name of duplicates(plan.mesh.map((axis) => axis.name))) {
    report("use the mesh", `two of its axes are named '${name}'`);
  }
  const used = new Set(
    Object.values(plan.axes).flatMap((axis) => axis.over ?? []),
  );
  for (const { step } of stepsOf(plan)) {
    if (isCollective(step)) { for (const name of step.over) used.add(name); }
  }
  const idle = (axis: MeshAxis) => axis.size > 1 && !used.has(axis.name);
  for (const { name, size } of plan.mesh.filter(idle)) {
    report(
      `use mesh axis '${name}'`,
      `it has ${size} ranks and nothing is placed over it. Place an axis over it or leave it out`,
    );
  }
}

/** Checks that the number of segments of a contraction can be halved, because halves are added as a tree. */
export function checkNumerics(
  { numerics: { segments } }: Plan,
  report: Report,
): void {
  if (Number.isInteger(Math.log2(segments))) return;
  report(
    "use the numerics",
    `contractions have up to ${segments} segments, which is no power of two`,
  );
}

/**
 * Checks that values per rank are given for a repeating part of the ranks, and that steps name existing
 * coordinates, once, in order.
 */
export function checkRanks(plan: Plan, report: Report): void {
  const given = (what: string, ranks: number) => {
    if (plan.ranks % ranks === 0) return;
    report(`use ${what}`, `it is given for ${ranks} ranks of ${plan.ranks}`);
  };
  const perRank = (what: string, value: PerRank) =>
    given(what, ranksGiven(value));
  for (const [i, allocation] of plan.allocations.entries()) {
    perRank(`the bytes of allocation ${i}`, allocation.bytes);
  }
  for (const [name, { bytes, axes, data }] of Object.entries(plan.buffers)) {
    perRank(`the bytes of buffer '${name}'`, bytes);
    for (const { axis, size } of axes) {
      perRank(`the length of '${axis}' in buffer '${name}'`, size);
    }
    if (data && "lists" in data) {
      const ranks = data.every * data.lists.length;
      given(`the data of buffer '${name}'`, ranks);
    }
  }
  perRank("the peak bytes", plan.peakBytes);
  perRank("the local staging", plan.staging.local);
  perRank("the host staging", plan.staging.host);
  for (const { step, name } of stepsOf(plan)) {
    if (step.op === "copy") perRank(`the bytes of ${name}`, step.bytes);
  }
  for (const at of stepsOf(plan)) {
    const { step } = at;
    const { ranks } = step;
    const sizeOf = (axis: string) =>
      plan.mesh.find(({ name }) => name === axis)?.size;
    const sets = ranks === "all" ? {} : ranks;
    const exist = Object.entries(sets).every(([axis, at]) =>
      isOrdered(at, sizeOf(axis))
    );
    const sent = step.op === "send" ? [...step.stages].sort(byNumber) : [];
    const sends = Object.entries(sets).some(([axis, at]) =>
      step.op === "send" && axis === step.over[0] && at.join() === sent.join()
    );
    if (exist && sends === (sent.length > 0)) continue;
    report(
      "use the ranks",
      `${
        rankSetText(ranks) || "all"
      } are not coordinates of mesh axes in order${
        sent.length > 0 ? `, those of a send between ${sent.join(" and ")}` : ""
      }`,
      at,
    );
  }
}

function byNumber(a: number, b: number): number {
  return a - b;
}

/** Whether coordinates are ascending and on a mesh axis of this size. */
function isOrdered(at: readonly number[], size: number | undefined): boolean {
  return size !== undefined && at.length > 0 &&
    at.every((one, i) => one < size && (i === 0 || one > at[i - 1]!));
}
