/** Facts about the launches of a plan that do not depend on a workload. */

import { cachedIn } from "../../../spec/bounded_cache.ts";
import { groupSizeOf } from "../../../spec/mesh.ts";
import type {
  LaunchStep,
  Plan,
  PlanBuffer,
  Step,
} from "../../../spec/plan/plan.ts";

/** Facts about the launches of a plan's first program. */
export interface LaunchFacts {
  /** Routings of buffers. */
  readonly routed: ReadonlyMap<string, Routed>;
  /** Group ranks with separate sequences. */
  readonly owners: number;
  /** Inputs of the plan. */
  readonly inputs: readonly PlanBuffer[];
  /** Class of a launch: equal for launches with the same work in each workload, such as those of equal layers. */
  classOf(step: LaunchStep): number;
}

/** The routing of a buffer, its number of chunks, and whether the buffer lists received rows. */
export interface Routed {
  readonly routing: number;
  readonly chunks: number;
  readonly afterwards: boolean;
}

function routedBuffers({ buffers, programs }: Plan): Map<string, Routed> {
  const { steps } = programs[0]!;
  const found = new Map<string, Routed>();
  const chunks = new Map<number, Set<string>>();
  const tilesOf = (step: Step) =>
    step.op === "launch"
      ? Object.values(step.bindings).filter((name) =>
        buffers[name]!.routing === "tiles"
      )
      : [];
  // For local rows, the counting launch lists them too.
  const lists = (step: Step) =>
    step.part?.part === "regroup" || step.part?.lists === true;
  for (const step of steps) {
    if (!lists(step) || !step.part) continue;
    const tiles = cachedIn(chunks, step.part.routing, {
      create: () => new Set<string>(),
    });
    for (const name of tilesOf(step)) tiles.add(name);
  }
  for (const step of steps) {
    if (!step.part) continue;
    const { routing } = step.part;
    const afterwards = lists(step);
    const names = step.op === "launch"
      ? Object.values(step.bindings)
      : step.op === "allGather"
      ? [step.to]
      : step.op === "allToAll"
      ? [step.counts]
      : [];
    for (const name of names) {
      const { kind, dtype, routing: says = "counts" } = buffers[name]!;
      // Experts of choices are i32.
      const isInteger = dtype === "u32" || dtype === "i32";
      if (kind !== "scratch" && kind !== "output" || !isInteger) continue;
      if (found.get(name)?.afterwards) continue;
      found.set(name, {
        routing,
        chunks: Math.max(1, chunks.get(routing)?.size ?? 1),
        afterwards: afterwards && says !== "counts",
      });
    }
  }
  return found;
}

/** Whether a buffer has weights of experts. */
export function isExpert(plan: Plan, { kind, axes }: PlanBuffer): boolean {
  return kind === "weight" && axes.length > 0 &&
    plan.axes[axes[0]!.axis]?.experts === true;
}

/** Group ranks with separate sequences. */
function sequenceOwners({ axes, mesh }: Plan): number {
  const sequenceAxis = Object.values(axes).find(({ of, assignment }) =>
    of === "sequence" || assignment?.by === "sequence"
  );
  return groupSizeOf(mesh, sequenceAxis?.over ?? []);
}

const known = new WeakMap<Plan, LaunchFacts>();

/** The facts of a plan, found once for all its workloads. */
export function launchFacts(plan: Plan): LaunchFacts {
  const found = known.get(plan) ?? findFacts(plan);
  known.set(plan, found);
  return found;
}

function findFacts(plan: Plan): LaunchFacts {
  const routed = routedBuffers(plan);
  const classes = new Map<string, number>();
  const steps = new Map<LaunchStep, number>();
  return {
    routed,
    owners: sequenceOwners(plan),
    inputs: Object.values(plan.buffers).filter(({ kind }) => kind === "input"),
    classOf: (step) =>
      cachedIn(steps, step, {
        create: () =>
          cachedIn(classes, classKey(plan, step, routed), {
            create: () => classes.size,
          }),
      }),
  };
}

/** All that the work of a launch depends on, besides the workload. */
function classKey(
  plan: Plan,
  { kernel, workgroups, bindings, part }: LaunchStep,
  routed: LaunchFacts["routed"],
): string {
  const buffers = plan.kernels[kernel]!.tree.bindings.map(({ name }) => {
    const buffer = plan.buffers[bindings[name]!]!;
    const { kind, dtype, axes, bytes, assignment, routing } = buffer;
    const { chunks, afterwards } = routed.get(buffer.name) ?? {};
    return [
      // Their contents are known.
      kind === "counts" || kind === "const" || kind === "input"
        ? buffer.name
        : kind,
      dtype,
      // The names of other axes differ between layers.
      axes.map(({ axis, size, dynamic }) =>
        dynamic || kind === "state" ? [axis, size] : size
      ),
      bytes,
      assignment,
      routing,
      chunks,
      afterwards,
      isExpert(plan, buffer),
    ];
  });
  return JSON.stringify([kernel, workgroups, part?.part, buffers]);
}
