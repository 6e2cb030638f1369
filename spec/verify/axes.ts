/** Rules of axes: placement tables, dynamic lengths, axes of buffers, and ports of programs. */

import { partBounds, partLengths } from "../axis_parts.ts";
import { groupRankOf, groupSizeOf } from "../mesh.ts";
import { EXACT } from "../numerics.ts";
import {
  type KeysAxis,
  onRank,
  type PlanAxis,
  type Port,
} from "../plan/plan.ts";
import { perRankText } from "../per_rank.ts";
import { type Facts, type Report, width } from "../plan/facts.ts";

/** Whether numbers are 0, 1, … n - 1, in any order. */
function isPartition(ids: readonly number[], n: number): boolean {
  if (ids.length !== n) return false;
  const seen = new Set(ids);
  return seen.size === n && ids.every((id) => id < n);
}

/** Whether two lists are the same. */
export function sameList<T>(a: readonly T[], b: readonly T[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

/** Checks that placed fixed axes have a table with each index once, and that dynamic axes are assigned and counted. */
export function checkPlacement(facts: Facts, report: Report): void {
  const { plan } = facts;
  const ending = endingAxes(plan);
  for (const [name, axis] of Object.entries(plan.axes)) {
    const fail = (because: string) => report(`place axis '${name}'`, because);
    if (axis.dynamic && axis.table) fail("a dynamic axis has a table");
    const placed = axis.over ?? axis.assignment?.by === "keys";
    if (axis.assignment && !(axis.dynamic && placed)) {
      fail("only a placed dynamic axis is assigned");
    }
    if (axis.exact && !axis.assignment) {
      fail("'exact' is for axes that are assigned");
    }
    if (axis.of !== undefined) {
      const all = plan.axes[axis.of]!;
      const free = axis.dynamic && !axis.exact;
      if (
        !axis.over || all.over || all.size !== axis.size ||
        (all.dynamic ?? false) !== (free ?? false)
      ) {
        fail(`it is no part of '${axis.of}'`);
      }
    }
    if (
      axis.assignment?.by === "blocks" && axis.assignment.within !== undefined
    ) {
      const within = plan.axes[axis.assignment.within]!;
      const outer = within.over ?? [];
      if (
        !within.assignment || within.of !== axis.of ||
        !outer.every((m, i) => m === axis.over?.[i])
      ) {
        fail(
          `'${axis.assignment.within}' is not assigned over the first of its mesh axes`,
        );
      }
      if (outer.length >= (axis.over?.length ?? 0)) {
        fail(
          `'${axis.assignment.within}' is not over fewer mesh axes`,
        );
      }
    }
    if (axis.assignment?.by === "group") {
      const of = plan.axes[axis.assignment.of]!;
      const common = of.over?.filter((name) => axis.over?.includes(name));
      if (
        !of.assignment || of.of !== axis.of ||
        !sameList(common ?? [], axis.over ?? [])
      ) {
        fail(`'${axis.assignment.of}' is not assigned over its mesh axes too`);
      }
    }
    if (axis.dynamic && axis.over && !axis.assignment) {
      fail("it is not said how its items are assigned to ranks");
    }
    if (
      !axis.dynamic && (axis.table === undefined) !== (axis.over === undefined)
    ) {
      fail("'over' and 'table' belong together");
    }
    if (axis.dynamic && !plan.counts.includes(name)) {
      fail("its dynamic length is not counted. Add it to 'counts'");
    }
    if (typeof axis.table === "object" && axis.over) {
      const groupSize = groupSizeOf(plan.mesh, axis.over);
      if (axis.table.length !== groupSize) {
        fail(
          `its table has ${axis.table.length} lists for groups of ${groupSize} ranks`,
        );
      }
      if (!isPartition(axis.table.flat(), axis.size)) {
        fail(
          `its table does not hold each of 0 to ${axis.size - 1} exactly once`,
        );
      }
    }
    const { assignment } = axis;
    if (!ending.has(name)) fail("it is assigned as itself");
    if (assignment?.by === "sequence") {
      checkSequence(facts, name, assignment.input, fail);
    }
    if (assignment?.by === "items") checkItems(facts, name, fail);
    if (assignment?.by === "keys") checkKeys(facts, axis, assignment, fail);
  }
  for (const name of new Set(plan.counts)) {
    const axis = Object.hasOwn(plan.axes, name) ? plan.axes[name] : undefined;
    if (!axis?.dynamic) {
      report(`count axis '${name}'`, "it is no dynamic axis of the plan");
    }
    if (plan.counts.indexOf(name) !== plan.counts.lastIndexOf(name)) {
      report(`count axis '${name}'`, "it is counted twice");
    }
  }
}

function checkSequence(
  { plan }: Facts,
  axis: string,
  input: string,
  fail: (because: string) => void,
): void {
  for (const { name, inputs } of plan.programs) {
    const uses = Object.values(inputs).some((p) => p.axes.includes(axis));
    if (!uses) continue;
    const port = Object.hasOwn(inputs, input) ? inputs[input] : undefined;
    if (!port || port.dtype === "f32" || !sameList(port.axes, [axis])) {
      fail(
        `program '${name}' has no integer input '${input}' over it alone, by which it is assigned`,
      );
    }
  }
}

/** Axes whose chain of assignments ends with an axis that follows none. */
function endingAxes({ axes }: Facts["plan"]): ReadonlySet<string> {
  const ending = new Map<string, boolean>();
  for (const axis of Object.keys(axes)) {
    const followed: string[] = [];
    let at: string | undefined = axis;
    while (at !== undefined && !ending.has(at)) {
      ending.set(at, false);
      followed.push(at);
      const { assignment }: PlanAxis = axes[at]!;
      at = assignment && "of" in assignment
        ? assignment.of
        : assignment?.by === "blocks"
        ? assignment.within
        : undefined;
    }
    const ends = at === undefined || ending.get(at)!;
    for (const name of followed) ending.set(name, ends);
  }
  return new Set(Object.keys(axes).filter((axis) => ending.get(axis)));
}

/** Items are on the ranks of the items of a placed axis that an input numbers. */
function checkItems(
  { plan }: Facts,
  axis: string,
  fail: (because: string) => void,
): void {
  const { assignment, over } = plan.axes[axis]!;
  if (assignment?.by !== "items") return;
  const of = plan.axes[assignment.of]!;
  if (
    !of.assignment && !of.table || !sameList(of.over ?? [], over ?? [])
  ) {
    fail(`'${assignment.of}' is not assigned over the same mesh axes`);
  }
  if (assignment.each !== undefined && !of.table) {
    fail(`'${assignment.of}' has no table, and its items are bounded`);
  }
  for (const { name, inputs } of plan.programs) {
    const uses = Object.values(inputs).some((p) => p.axes.includes(axis));
    if (!uses) continue;
    const port = Object.hasOwn(inputs, assignment.input)
      ? inputs[assignment.input]
      : undefined;
    if (port?.indexes !== assignment.of || !sameList(port.axes, [axis])) {
      fail(
        `program '${name}' has no input '${assignment.input}' over it alone that numbers items of '${assignment.of}'`,
      );
    }
  }
}

/** Keys are along a context in blocks, and read for tokens whose sequence and position are inputs. */
function checkKeys(
  { plan }: Facts,
  { over = [] }: PlanAxis,
  { part, of, input, position, sequence, context }: KeysAxis,
  fail: (because: string) => void,
): void {
  const { over: shared = [], table, size } = plan.axes[context]!;
  const ranks = groupSizeOf(plan.mesh, shared);
  const { over: tokens = [] } = plan.axes[of]!;
  if (table !== "block" || size % (ranks * EXACT.block) !== 0) {
    fail(`the positions of '${context}' are not on ranks in complete blocks`);
  }
  if (!sameList(over, part === "past" ? [...tokens, ...shared] : tokens)) {
    fail(`it is not over the mesh axes of '${of}'`);
  }
  if (!sameList(plan.axes[sequence]!.over ?? [], tokens)) {
    fail(`'${sequence}' is not over the mesh axes of '${of}'`);
  }
  for (const { name, inputs } of plan.programs) {
    for (const given of [input, position]) {
      const port = Object.hasOwn(inputs, given) ? inputs[given] : undefined;
      if (port?.dtype === "i32" && sameList(port.axes, [of])) continue;
      fail(`program '${name}' has no i32 input '${given}' over '${of}'`);
    }
  }
}

/** The legal lengths of an axis on the ranks: global everywhere, or each rank's part. */
function legalSizes(
  { plan, everyRank }: Facts,
  name: string,
  ending: ReadonlySet<string>,
): { all: number; part: readonly number[] | undefined } {
  const axis = plan.axes[name]!;
  const { over, table, assignment, size } = axis;
  const bounded = ending.has(name) && (assignment?.by === "blocks" ||
    assignment?.by === "keys" ||
    assignment?.by === "items" && assignment.each !== undefined);
  if (!over || (!table && !bounded)) {
    return { all: size, part: undefined };
  }
  const lengths = partBounds(plan, axis);
  return {
    all: size,
    part: everyRank.map((rank) => lengths[groupRankOf(plan.mesh, rank, over)]!),
  };
}

/** Checks that known axes of buffers have their length, or the length of each rank's part. */
export function checkAxes(facts: Facts, report: Report): void {
  const ending = endingAxes(facts.plan);
  const axes = new Map(
    Object.entries(facts.plan.axes).map(([name, axis]) =>
      [name, { axis, legal: legalSizes(facts, name, ending) }] as const
    ),
  );
  for (const [name, buffer] of facts.buffers) {
    const known = buffer.kind === "input" || buffer.kind === "output" ||
      buffer.kind === "weight" || buffer.kind === "state";
    for (const { axis, size, dynamic } of buffer.axes) {
      const entry = axes.get(axis);
      const fail = (because: string) =>
        report(`lay out axis '${axis}' of buffer '${name}'`, because);
      if (!entry) {
        if (known) fail("the plan has no such axis");
        continue;
      }
      const { all, part } = entry.legal;
      const isReplicated = facts.everyRank.every((r) =>
        onRank(size, r) === all
      );
      const isPart = part?.every((n, i) =>
        onRank(size, facts.everyRank[i]!) === n
      ) ?? false;
      // Parts of a fixed axis have the length of its table; if parts are bounded by blocks, the global length is legal
      // too.
      if (!isPart && !(isReplicated && !entry.axis.table)) {
        fail(
          `its length is ${perRankText(size)} and the axis has ${all}${
            part ? `, in parts ${part}` : ""
          }`,
        );
      }
      if ((dynamic ?? false) !== (entry.axis.dynamic ?? false)) {
        fail("axis and buffer disagree on whether its length is fixed");
      }
    }
  }
}

/** Checks that ports name distinct input and output buffers with the same axes and dtype. */
export function checkPorts(facts: Facts, report: Report): void {
  const { buffers } = facts;
  for (const { program } of facts.programs) {
    for (const kind of ["input", "output"] as const) {
      const ports = Object.entries(
        kind === "input" ? program.inputs : program.outputs,
      );
      for (const [name, port] of ports) {
        const because = portFault(facts, port, kind);
        if (because !== undefined) {
          report(
            `use ${kind} '${name}' of program '${program.name}'`,
            because,
          );
        }
      }
      const names = ports.map(([, port]) => port.buffer);
      for (const name of new Set(names)) {
        if (names.indexOf(name) !== names.lastIndexOf(name)) {
          report(
            `use the ${kind}s of program '${program.name}'`,
            `two of them are buffer '${name}'`,
          );
        }
      }
    }
  }
  const ported = new Set(
    facts.programs.flatMap(({ program }) =>
      [...Object.values(program.inputs), ...Object.values(program.outputs)]
        .map((port) => port.buffer)
    ),
  );
  for (const [name, { kind }] of buffers) {
    if ((kind === "input" || kind === "output") && !ported.has(name)) {
      report(`use buffer '${name}'`, `no program has it as ${kind}`);
    }
  }
}

function portFault(
  { buffers, plan }: Facts,
  port: Port,
  kind: "input" | "output",
): string | undefined {
  const buffer = buffers.get(port.buffer)!;
  if (buffer.kind !== kind) {
    return `buffer '${port.buffer}' is of kind '${buffer.kind}'`;
  }
  if (buffer.dtype !== port.dtype) {
    return `it is ${port.dtype} and buffer '${port.buffer}' is ${buffer.dtype}`;
  }
  const axes = buffer.axes.map((axis) => axis.axis);
  if (!sameList(axes, port.axes) || buffer.rowStride !== undefined) {
    return `it has axes '${
      port.axes.join(" ")
    }' and buffer '${port.buffer}' has '${axes.join(" ")}'`;
  }
  const bounded = port.below !== undefined || port.indexes !== undefined;
  if (bounded && (kind === "output" || port.dtype === "f32")) {
    return `only integer inputs have a bound, and it is ${kind} ${port.dtype}`;
  }
  const { dynamic, table } = plan.axes[port.indexes ?? ""] ?? {};
  if (port.indexes !== undefined && !dynamic && !table) {
    return `it numbers items of '${port.indexes}', which ranks have no parts of`;
  }
  return undefined;
}

/** Local lengths of each axis placed by a table over these mesh axes (ignoring mesh axes of size 1). */
export function heldOver(
  facts: Facts,
  over: readonly string[],
): (readonly number[])[] {
  return Object.values(facts.plan.axes).flatMap((axis) => {
    const real = (axis.over ?? []).filter((name) => width(facts, [name]) > 1);
    const lengths = partLengths(facts.plan, axis);
    return lengths && sameList(real, over) ? [lengths] : [];
  });
}
