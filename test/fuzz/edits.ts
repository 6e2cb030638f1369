/** Edits of a plan that preserve its results: order of independent steps, names, and addresses of buffers. */

import fc from "fast-check";
import { startedBy } from "../../spec/plan/handles.ts";
import { type Expr, isReadOnly, type Kernel } from "../../spec/kernel/tree.ts";
import { mapRanks, maxOverRanks, type PerRank } from "../../spec/per_rank.ts";
import type {
  AllToAllStep,
  Plan,
  PlanBuffer,
  Step,
} from "../../spec/plan/plan.ts";

/** An edit. Numbers are taken modulo the number of choices, so all edits apply to all plans. */
export interface Edit {
  readonly kind: keyof typeof EDITS;
  /** Index of the place to edit. */
  readonly at: number;
  /** Amount or distance. */
  readonly by: number;
}

/** Applies an edit at one of its places. */
type Apply = (plan: Plan, at: number, by: number) => Plan;

const EDITS = {
  reorder,
  "rename buffer": renameBuffer,
  "rename kernel": renameKernel,
  "copy kernel": copyKernel,
  "rename exchange": renameExchange,
  "move allocation": moveAllocation,
  "separate allocation": separateAllocation,
  "swap operands": swapOperands,
  "reverse lists": reverseLists,
  "remove labels": removeLabels,
} as const satisfies { readonly [kind: string]: Apply };

/** Mostly reorders steps, which may cause races. */
export const edits: fc.Arbitrary<readonly Edit[]> = fc.array(
  fc.record({
    kind: fc.oneof(
      { arbitrary: fc.constant("reorder" as const), weight: 8 },
      {
        arbitrary: fc.constantFrom(
          ...Object.keys(EDITS) as (keyof typeof EDITS)[],
        ),
        weight: 10,
      },
    ),
    at: fc.nat({ max: 1 << 20 }),
    by: fc.nat({ max: 40 }),
  }),
  { minLength: 1, maxLength: 8 },
);

/** Applies edits in order. The result shares unchanged parts with the original. */
export function edit(plan: Plan, changes: readonly Edit[]): Plan {
  return changes.reduce(
    (changed, { kind, at, by }) => EDITS[kind](changed, at, by),
    plan,
  );
}

function pick<T>(list: readonly T[], at: number): T | undefined {
  return list[at % Math.max(1, list.length)];
}

/** Moves a step up to `by` + 1 places later, while it is independent of the next step. */
function reorder(plan: Plan, at: number, by: number): Plan {
  const used = plan.programs.map(({ steps }) => {
    const started = startedBy(steps);
    return steps.map((step) => usedBy(plan, step, started));
  });
  const candidates = used.flatMap((steps, p) =>
    steps.slice(1).flatMap((next, i) =>
      independent(steps[i]!, next) ? [{ p, i }] : []
    )
  );
  const candidate = pick(candidates, at);
  if (!candidate) return plan;
  const steps = [...used[candidate.p]!];
  for (let i = candidate.i, n = 0; n <= by && i + 1 < steps.length; i++, n++) {
    if (!independent(steps[i]!, steps[i + 1]!)) break;
    [steps[i], steps[i + 1]] = [steps[i + 1]!, steps[i]!];
  }
  return {
    ...plan,
    programs: plan.programs.map((program, p) =>
      p === candidate.p
        ? { ...program, steps: steps.map(({ step }) => step) }
        : program
    ),
  };
}

/** A step with the buffers that it uses. */
interface Used {
  readonly step: Step;
  readonly all: readonly PlanBuffer[];
  readonly written: readonly PlanBuffer[];
}

function usedBy(
  plan: Plan,
  step: Step,
  started: ReadonlyMap<string, AllToAllStep>,
): Used {
  const { all, written } = namesOf(plan, step, started);
  const buffers = (names: readonly string[]) =>
    names.map((name) => plan.buffers[name]!);
  return { step, all: buffers(all), written: buffers(written) };
}

function namesOf(
  plan: Plan,
  step: Step,
  started: ReadonlyMap<string, AllToAllStep>,
): { readonly all: readonly string[]; readonly written: readonly string[] } {
  switch (step.op) {
    case "launch": {
      const { bindings } = plan.kernels[step.kernel]!.tree;
      const written = bindings.filter((binding) => !isReadOnly(binding));
      return {
        all: Object.values(step.bindings),
        written: written.map(({ name }) => step.bindings[name]!),
      };
    }
    case "copy":
      return { all: [step.from, step.to], written: [step.to] };
    case "allGather": {
      const { rows, blocks } = step;
      const read = [rows?.counts, blocks?.groupRank].flatMap((name) =>
        name === undefined ? [] : [name]
      );
      return { all: [step.from, step.to, ...read], written: [step.to] };
    }
    case "allToAll":
      return {
        all: [
          step.from,
          step.to,
          step.counts,
          step.groupRank,
          step.receivedCounts,
        ],
        written: [step.to, step.receivedCounts],
      };
    case "send":
      return {
        all: [step.from, step.to, ...step.rows ? [step.rows.counts] : []],
        written: [step.to],
      };
    case "rounds":
      return { all: [step.counts, step.to], written: [step.to] };
    case "wait":
      return namesOf(plan, started.get(step.handle)!, started);
    default:
      return step satisfies never;
  }
}

/** Whether no step writes memory that the other uses. Collectives and waits keep their order. */
function independent(a: Used, b: Used): boolean {
  if (a.step.op !== "launch" && b.step.op !== "launch") return false;
  const touches = (one: Used, other: Used) =>
    one.written.some((from) => other.all.some((to) => overlap(from, to)));
  return !touches(a, b) && !touches(b, a);
}

function overlap(a: PlanBuffer, b: PlanBuffer): boolean {
  return a.allocation === b.allocation &&
    a.offset < b.offset + maxOverRanks(b.bytes) &&
    b.offset < a.offset + maxOverRanks(a.bytes);
}

/** Replaces the name of a buffer in a step. */
function withBuffer(step: Step, from: string, to: string): Step {
  const change = (value: unknown): unknown =>
    value === from
      ? to
      : typeof value === "object" && value !== null && !Array.isArray(value)
      ? Object.fromEntries(
        Object.entries(value).map(([key, inner]) => [key, change(inner)]),
      )
      : value;
  const { ranks, part, span, ...rest } = step;
  const fixed = {
    op: step.op,
    ranks,
    ...part && { part },
    ...span && { span },
  };
  return {
    ...change(rest) as Step,
    ...fixed,
    ..."kernel" in step ? { kernel: step.kernel } : {},
    ..."handle" in step ? { handle: step.handle } : {},
  } as Step;
}

function mapSteps(plan: Plan, change: (step: Step) => Step): Plan {
  return {
    ...plan,
    programs: plan.programs.map((program) => ({
      ...program,
      steps: program.steps.map(change),
    })),
  };
}

function renameBuffer(plan: Plan, at: number, by: number): Plan {
  const scratch = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "scratch");
  const buffer = pick(scratch, at);
  const to = `${buffer?.name}_${by}`;
  if (!buffer || to in plan.buffers) return plan;
  const buffers = Object.fromEntries(
    Object.entries(plan.buffers).map(([name, value]) =>
      name === buffer.name ? [to, { ...value, name: to }] : [name, value]
    ),
  );
  return mapSteps(
    { ...plan, buffers },
    (step) => withBuffer(step, buffer.name, to),
  );
}

function named(tree: Kernel, name: string): Kernel {
  return { ...tree, name };
}

function renameKernel(plan: Plan, at: number, by: number): Plan {
  const from = pick(Object.keys(plan.kernels), at);
  const to = `${from}_${by}`;
  if (from === undefined || to in plan.kernels) return plan;
  const kernels = Object.fromEntries(
    Object.entries(plan.kernels).map(([name, kernel]) =>
      name === from
        ? [to, { ...kernel, tree: named(kernel.tree, to) }]
        : [name, kernel]
    ),
  );
  return mapSteps(
    { ...plan, kernels },
    (step) =>
      step.op === "launch" && step.kernel === from
        ? { ...step, kernel: to }
        : step,
  );
}

/** Gives one launch a separate kernel. */
function copyKernel(plan: Plan, at: number, by: number): Plan {
  const launches = plan.programs.flatMap(({ steps }) =>
    steps.flatMap((step) => step.op === "launch" ? [step] : [])
  );
  const launch = pick(launches, at);
  const to = `${launch?.kernel}_of_${by}`;
  if (!launch || to in plan.kernels) return plan;
  if (
    launches.every(({ kernel }, i) =>
      launches[i] === launch || kernel !== launch.kernel
    )
  ) {
    return renameKernel(plan, at, by);
  }
  const kernel = plan.kernels[launch.kernel]!;
  const kernels = {
    ...plan.kernels,
    [to]: { ...kernel, tree: named(kernel.tree, to) },
  };
  return mapSteps(
    { ...plan, kernels },
    (step) => step === launch ? { ...launch, kernel: to } : step,
  );
}

function renameExchange(plan: Plan, at: number, by: number): Plan {
  const handles = plan.programs.flatMap(({ steps }) =>
    steps.flatMap((step) => step.op === "wait" ? [step.handle] : [])
  );
  const from = pick(handles, at);
  const to = `${from}_${by}`;
  if (from === undefined || handles.includes(to)) return plan;
  return mapSteps(
    plan,
    (step) =>
      "handle" in step && step.handle === from ? { ...step, handle: to } : step,
  );
}

/** Moves the buffers of an allocation to higher offsets, and enlarges the allocation. */
function moveAllocation(plan: Plan, at: number, by: number): Plan {
  const moved = at % plan.allocations.length;
  const more = 256 * by;
  const enlarged = (bytes: PerRank) => mapRanks([bytes], ([n]) => n! + more);
  const { maxBufferSize = 0 } = plan.requiredLimits;
  return {
    ...plan,
    allocations: plan.allocations.map(({ bytes }, i) => ({
      bytes: i === moved ? enlarged(bytes) : bytes,
    })),
    buffers: Object.fromEntries(
      Object.entries(plan.buffers).map(([name, buffer]) => [
        name,
        buffer.allocation === moved
          ? { ...buffer, offset: buffer.offset + more }
          : buffer,
      ]),
    ),
    peakBytes: enlarged(plan.peakBytes),
    requiredLimits: {
      ...plan.requiredLimits,
      maxBufferSize: maxBufferSize + more,
    },
  };
}

/** Moves a buffer that shares an allocation to a separate one. */
function separateAllocation(plan: Plan, at: number): Plan {
  const all = Object.values(plan.buffers);
  const sharing = all.filter(({ name, allocation }) =>
    all.some((other) => other.name !== name && other.allocation === allocation)
  );
  const buffer = pick(sharing, at);
  if (!buffer) return plan;
  const { bytes } = buffer;
  return {
    ...plan,
    allocations: [...plan.allocations, { bytes }],
    buffers: {
      ...plan.buffers,
      [buffer.name]: {
        ...buffer,
        allocation: plan.allocations.length,
        offset: 0,
      },
    },
    peakBytes: mapRanks([plan.peakBytes, bytes], ([n, more]) => n! + more!),
  };
}

/**
 * Gives each buffer a separate allocation, except inputs in the allocation of the lengths, which kernels read through
 * these.
 */
export function unaliased(plan: Plan): Plan {
  const all = Object.values(plan.buffers);
  const lengths = all.find(({ kind }) => kind === "counts")!.allocation;
  const apart = all.filter(({ allocation }) => allocation !== lengths);
  const sizes = [plan.allocations[lengths]!, ...apart]
    .map(({ bytes }) => bytes);
  const alone = apart.map((buffer, i) => ({
    ...buffer,
    allocation: i + 1,
    offset: 0,
  }));
  const together = all.filter(({ allocation }) => allocation === lengths)
    .map((buffer) => ({ ...buffer, allocation: 0 }));
  return {
    ...plan,
    allocations: sizes.map((bytes) => ({ bytes })),
    buffers: Object.fromEntries(
      [...together, ...alone].map((buffer) => [buffer.name, buffer]),
    ),
    peakBytes: mapRanks(sizes, (list) => list.reduce((a, b) => a + b, 0)),
  };
}

/** Operators whose operands commute bit by bit. */
const COMMUTATIVE = ["add", "mul", "and", "or", "xor", "eq", "ne"];

/** Swaps the operands of one operator in one kernel. */
function swapOperands(plan: Plan, at: number, by: number): Plan {
  const name = pick(Object.keys(plan.kernels), at);
  if (name === undefined) return plan;
  const kernel = plan.kernels[name]!;
  const found: Expr[] = [];
  walk(kernel.tree.body, (e) => {
    if (e.op === "binary" && COMMUTATIVE.includes(e.fn)) found.push(e);
    return e;
  });
  const chosen = pick(found, by + at);
  const body = walk(
    kernel.tree.body,
    (e) => e === chosen && e.op === "binary" ? { ...e, a: e.b, b: e.a } : e,
  );
  return {
    ...plan,
    kernels: {
      ...plan.kernels,
      [name]: {
        ...kernel,
        tree: { ...kernel.tree, body: body as Kernel["body"] },
      },
    },
  };
}

/** Replaces expressions of a tree, outermost first. */
function walk(value: unknown, change: (e: Expr) => Expr): unknown {
  if (Array.isArray(value)) return value.map((inner) => walk(inner, change));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(change(value as Expr))
      .map(([key, inner]) => [key, walk(inner, change)]),
  );
}

/** Reverses the list of buffers or of kernels. */
function reverseLists(plan: Plan, at: number): Plan {
  const reversed = <T>(object: { readonly [name: string]: T }) =>
    Object.fromEntries(Object.entries(object).reverse());
  return at % 2 === 0
    ? { ...plan, kernels: reversed(plan.kernels) }
    : { ...plan, buffers: reversed(plan.buffers) };
}

function removeLabels(plan: Plan): Plan {
  return mapSteps(plan, (step) => {
    const { label: _, span: __, ...rest } = step;
    return rest as Step;
  });
}
