/** References of a plan by name: each resolves, and names are unique. */

import { buffersOf } from "../plan/accesses.ts";
import type { NamedStep, Report } from "../plan/facts.ts";
import { isCollective } from "../plan/members.ts";
import type { Plan, PlanAxis, PlanBuffer, Program } from "../plan/plan.ts";
import type { Size } from "../size.ts";
import { duplicates, stepsOf } from "./structure.ts";

/** Checks that names are unique and that every used name is declared. */
export function checkReferences(plan: Plan, report: Report): void {
  const names = namesOf(plan, report);
  for (const [name, axis] of Object.entries(plan.axes)) {
    checkAxis(name, axis, names);
  }
  for (const [key, buffer] of Object.entries(plan.buffers)) {
    checkBuffer(key, buffer, names);
  }
  for (const { source, buffer } of plan.weights) {
    names.buffer(buffer, { to: `load weight '${source}'` });
  }
  for (const name of duplicates(plan.programs.map((p) => p.name))) {
    report("use the programs", `two are named '${name}'`);
  }
  for (const program of plan.programs) checkPorts(program, names);
  for (const at of stepsOf(plan)) checkStep(at, names);
}

/** A use of a name, as reported. */
interface Use {
  readonly to: string;
  readonly at?: NamedStep;
}

/** Checks of the names of a plan. Each reports a name that the plan does not declare. */
interface Names {
  readonly plan: Plan;
  readonly report: Report;
  /** `to`: what needs the buffer. */
  buffer(name: string, use: Use): void;
  kernel(name: string, at: NamedStep): void;
  /** `to`: the start of the report, which ends with the name. */
  axis(name: string, use: Use): void;
  /** Mesh axes, none of them twice. `to`: the value that is placed over them. */
  mesh(over: readonly string[], use: Use): void;
  /** The dynamic axes of a size. */
  size(size: Size, at: NamedStep): void;
}

function namesOf(plan: Plan, report: Report): Names {
  const meshAxes = new Set(plan.mesh.map(({ name }) => name));
  const counts = new Set(plan.counts);
  const names: Names = {
    plan,
    report,
    buffer: (name, { to, at }) => {
      if (Object.hasOwn(plan.buffers, name)) return;
      report(to, `the plan has no buffer '${name}'`, at);
    },
    kernel: (name, at) => {
      if (Object.hasOwn(plan.kernels, name)) return;
      report(`launch kernel '${name}'`, "the plan has no such kernel", at);
    },
    axis: (name, { to, at }) => {
      if (Object.hasOwn(plan.axes, name)) return;
      report(`${to} '${name}'`, "the plan has no such axis", at);
    },
    mesh: (over, { to, at }) => {
      for (const name of over) {
        if (meshAxes.has(name)) continue;
        report(
          `place ${to} over '${name}'`,
          "the mesh has no axis of that name",
          at,
        );
      }
      for (const name of duplicates(over)) {
        report(`place ${to} over '${name}'`, "it is named twice", at);
      }
    },
    size: (size, at) => {
      if (typeof size === "number") return;
      if (!("count" in size)) {
        for (const part of operandsOf(size)) names.size(part, at);
        return;
      }
      const length = `the length of '${size.count}'`;
      if (!counts.has(size.count)) {
        report(`use ${length}`, "it is no dynamic axis of the plan", at);
      }
      names.mesh(size.over ?? [], { to: length, at });
    },
  };
  return names;
}

/** The sizes that an operation combines. */
function operandsOf(
  size: Exclude<Size, number | { readonly count: string }>,
): readonly Size[] {
  if ("ceilDiv" in size) return [size.ceilDiv[0]];
  if ("mul" in size) return size.mul;
  if ("add" in size) return size.add;
  if ("min" in size) return size.min;
  return "upTo" in size ? size.upTo : size.above;
}

function checkAxis(
  name: string,
  { over = [], of, assignment }: PlanAxis,
  names: Names,
): void {
  names.mesh(over, { to: `axis '${name}'` });
  if (of !== undefined) names.axis(of, { to: `let '${name}' be a part of` });
  const to = `assignment '${name}' by`;
  if (assignment?.by === "blocks" && assignment.within !== undefined) {
    names.axis(assignment.within, { to: `assignment '${name}' in blocks of` });
  }
  if (assignment?.by === "keys") {
    names.axis(assignment.sequence, { to: `${to} keys of sequences of` });
    names.axis(assignment.context, { to: `${to} keys along` });
  }
  if (assignment && "of" in assignment) {
    names.axis(assignment.of, { to: `${to} ${assignment.by} of` });
  }
}

function checkBuffer(key: string, buffer: PlanBuffer, names: Names): void {
  const { report } = names;
  const { sentFrom, unreduced, assignment, data, allocation } = buffer;
  if (buffer.name !== key) {
    report(`use buffer '${key}'`, `it calls itself '${buffer.name}'`);
  }
  if (sentFrom !== undefined) {
    names.buffer(sentFrom, { to: `receive buffer '${key}'` });
  }
  if (unreduced) names.mesh(unreduced, { to: `a sum in buffer '${key}'` });
  if (assignment) {
    const { axis, of, over = [] } = assignment;
    names.axis(axis, { to: `let '${key}' say how to find` });
    if (of !== undefined) {
      names.axis(of, { to: `let '${key}' say how to find in` });
    }
    names.mesh(over, { to: `buffer '${key}'` });
  }
  if (data && "groupRank" in data) {
    names.mesh(data.groupRank, { to: `buffer '${key}'` });
  }
  if (allocation >= names.plan.allocations.length) {
    report(`use buffer '${key}'`, `there is no allocation ${allocation}`);
  }
}

function checkPorts({ name, inputs, outputs }: Program, names: Names): void {
  for (const [port, of] of Object.entries({ ...inputs, ...outputs })) {
    names.buffer(of.buffer, { to: `use '${port}' of program '${name}'` });
    if (of.indexes !== undefined) {
      names.axis(of.indexes, { to: `let '${port}' number items of` });
    }
  }
}

function checkStep(at: NamedStep, names: Names): void {
  const { step } = at;
  for (const name of buffersOf(step)) {
    if (Object.hasOwn(names.plan.buffers, name)) continue;
    names.report(`use buffer '${name}'`, "the plan has no such buffer", at);
  }
  if (step.op === "launch") {
    names.kernel(step.kernel, at);
    for (const size of step.workgroups) names.size(size, at);
  }
  if (step.op === "rounds") names.mesh(step.over, { to: "the rounds", at });
  if (!isCollective(step)) return;
  names.mesh(step.over, { to: "the exchange", at });
  if (step.op === "allToAll") names.size(step.pairRows, at);
  else if (step.rows) {
    names.axis(step.rows.axis, { to: "gather rows of", at });
  }
}
