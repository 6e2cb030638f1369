/** Rules that other rules depend on: the mesh, the order of sums, values per rank, and references. */

import { buffersOf } from "../plan/accesses.ts";
import { type MeshAxis, rankCount, rankSetText } from "../mesh.ts";
import { type PerRank, ranksGiven } from "../per_rank.ts";
import type { Plan, Program } from "../plan/plan.ts";
import { MAX_RANKS } from "../limits.ts";
import type { Size } from "../size.ts";
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

function duplicates(names: readonly string[]): string[] {
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

/** Checks that names are unique and that every used name is declared. */
export function checkReferences(plan: Plan, report: Report): void {
  const buffers = new Map(Object.entries(plan.buffers));
  const kernels = new Set(Object.keys(plan.kernels));
  const mesh = new Set(plan.mesh.map((axis) => axis.name));
  const counts = new Set(plan.counts);
  const isMesh = (over: readonly string[], what: string, at?: NamedStep) => {
    for (const name of over) {
      if (!mesh.has(name)) {
        report(
          `place ${what} over '${name}'`,
          `the mesh has no axis of that name`,
          at,
        );
      }
    }
    for (const name of duplicates(over)) {
      report(`place ${what} over '${name}'`, "it is named twice", at);
    }
  };
  const isBuffer = (name: string, at: NamedStep) => {
    if (!buffers.has(name)) {
      report(`use buffer '${name}'`, "the plan has no such buffer", at);
    }
  };
  const isKernel = (name: string, at: NamedStep) => {
    if (!kernels.has(name)) {
      report(`launch kernel '${name}'`, "the plan has no such kernel", at);
    }
  };
  const isSize = (size: Size, at: NamedStep): void => {
    if (typeof size === "number") return;
    if ("count" in size) {
      if (!counts.has(size.count)) {
        report(
          `use the length of '${size.count}'`,
          "it is no dynamic axis of the plan",
          at,
        );
      }
      isMesh(size.over ?? [], `the length of '${size.count}'`, at);
    } else if ("ceilDiv" in size) isSize(size.ceilDiv[0], at);
    else {
      const parts = "mul" in size
        ? size.mul
        : "add" in size
        ? size.add
        : "min" in size
        ? size.min
        : "upTo" in size
        ? size.upTo
        : size.above;
      for (const part of parts) isSize(part, at);
    }
  };

  const isAxis = (axis: string, op: string, at?: NamedStep) => {
    if (!Object.hasOwn(plan.axes, axis)) {
      report(`${op} '${axis}'`, "the plan has no such axis", at);
    }
  };

  for (const [name, axis] of Object.entries(plan.axes)) {
    isMesh(axis.over ?? [], `axis '${name}'`);
    if (axis.of !== undefined) isAxis(axis.of, `let '${name}' be a part of`);
    if (
      axis.assignment?.by === "blocks" && axis.assignment.within !== undefined
    ) {
      isAxis(axis.assignment.within, `assignment '${name}' in blocks of`);
    }
    if (axis.assignment?.by === "keys") {
      const { sequence, context } = axis.assignment;
      isAxis(sequence, `assignment '${name}' by keys of sequences of`);
      isAxis(context, `assignment '${name}' by keys along`);
    }
    if (axis.assignment && "of" in axis.assignment) {
      const { by, of } = axis.assignment;
      isAxis(of, `assignment '${name}' by ${by} of`);
    }
  }
  for (const [key, buffer] of buffers) {
    if (buffer.name !== key) {
      report(`use buffer '${key}'`, `it calls itself '${buffer.name}'`);
    }
    if (buffer.sentFrom !== undefined && !buffers.has(buffer.sentFrom)) {
      report(
        `receive buffer '${key}'`,
        `the plan has no buffer '${buffer.sentFrom}'`,
      );
    }
    if (buffer.unreduced) isMesh(buffer.unreduced, `a sum in buffer '${key}'`);
    if (buffer.assignment) {
      const { axis, of, over } = buffer.assignment;
      isAxis(axis, `let '${key}' say how to find`);
      if (of !== undefined) isAxis(of, `let '${key}' say how to find in`);
      if (over) isMesh(over, `buffer '${key}'`);
    }
    if (buffer.data && "groupRank" in buffer.data) {
      isMesh(buffer.data.groupRank, `buffer '${key}'`);
    }
    if (buffer.allocation >= plan.allocations.length) {
      report(
        `use buffer '${key}'`,
        `there is no allocation ${buffer.allocation}`,
      );
    }
  }
  for (const weight of plan.weights) {
    if (!buffers.has(weight.buffer)) {
      report(
        `load weight '${weight.source}'`,
        `the plan has no buffer '${weight.buffer}'`,
      );
    }
  }
  for (const name of duplicates(plan.programs.map((p) => p.name))) {
    report("use the programs", `two are named '${name}'`);
  }
  for (const program of plan.programs) {
    const ports = { ...program.inputs, ...program.outputs };
    for (const [name, port] of Object.entries(ports)) {
      if (!buffers.has(port.buffer)) {
        report(
          `use '${name}' of program '${program.name}'`,
          `the plan has no buffer '${port.buffer}'`,
        );
      }
      if (port.indexes !== undefined) {
        isAxis(port.indexes, `let '${name}' number items of`);
      }
    }
  }
  for (const at of stepsOf(plan)) {
    const { step } = at;
    for (const name of buffersOf(step)) isBuffer(name, at);
    if (step.op === "launch") {
      isKernel(step.kernel, at);
      for (const size of step.workgroups) isSize(size, at);
    }
    if (step.op === "rounds") isMesh(step.over, "the rounds", at);
    if (isCollective(step)) {
      isMesh(step.over, "the exchange", at);
      if (step.op !== "allToAll" && step.rows) {
        isAxis(step.rows.axis, "gather rows of", at);
      }
      if (step.op === "allToAll") isSize(step.pairRows, at);
    }
  }
}
