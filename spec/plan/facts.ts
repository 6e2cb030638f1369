/** Facts for the rules of the verifier: a plan with resolved references, and its steps' reads and writes. */

import { type Accesses, accessesOf } from "./accesses.ts";
import { boundOf } from "./bytes.ts";
import type { Span } from "../errors.ts";
import { startedBy } from "./handles.ts";
import type { KernelFacts } from "../kernel/verify/tree.ts";
import { type RoutingFacts, routingsOf } from "./routing_parts.ts";
import { rankClasses } from "./rank_classes.ts";
import { readTree } from "../kernel/verify/tree.ts";
import { isCollective, sidesOf } from "./members.ts";
import {
  groupRankOf,
  groupSizeOf,
  isIn,
  type Mesh,
  type RankSet,
} from "../mesh.ts";
import type {
  CollectiveStep,
  LaunchStep,
  Plan,
  PlanBuffer,
  PlanKernel,
  Program,
  Step,
} from "./plan.ts";

import { oneLine } from "../shown.ts";
import type { Size } from "../size.ts";

/** Reports a violation: `Cannot <cannot> in <step>: <because>`. */
export type Report = (
  cannot: string,
  because: string,
  step?: NamedStep,
) => void;

/** One rule: checks the facts and reports violations. */
export type Check = (facts: Facts, report: Report) => void;

/** A step and its name in messages. */
export interface NamedStep {
  readonly step: Step;
  /** `main[12]` */
  readonly name: string;
}

/** A step with its position, one rank per class that executes it, and the buffers that it reads and writes. */
export interface StepFacts extends NamedStep {
  readonly index: number;
  readonly ranks: readonly number[];
  /** Classes of the ranks that read its operands. */
  readonly readers: readonly number[];
  /** Classes of the ranks that write its results. */
  readonly writers: readonly number[];
  readonly reads: readonly string[];
  readonly writes: readonly string[];
}

/** A program with its steps' facts. */
export interface ProgramFacts {
  readonly program: Program;
  readonly steps: readonly StepFacts[];
}

/** A kernel of the plan and the facts of its tree. */
export interface KernelEntry {
  readonly name: string;
  readonly kernel: PlanKernel;
  readonly facts: KernelFacts;
}

/** A plan as the rules see it. Uses maps, so that no name of the plan refers to a property of Object. */
export interface Facts {
  readonly plan: Plan;
  /** One rank per class of equal ranks: its facts hold for all of its class. */
  readonly everyRank: readonly number[];
  /** The ranks by class: the ranks of a class have equal values and execute the same steps. */
  readonly classes: readonly (readonly number[])[];
  readonly buffers: ReadonlyMap<string, PlanBuffer>;
  readonly kernels: ReadonlyMap<string, KernelEntry>;
  readonly programs: readonly ProgramFacts[];
  readonly routings: readonly RoutingFacts[];
  /** The maximum of a size. */
  bound(size: Size): number;
  /** Groups of ranks over mesh axes, in group rank order; one of each set of equal groups. */
  groups(over: readonly string[]): readonly (readonly number[])[];
}

/** `main[12] (layer.ts:9:16)` */
export function locationOf(step: NamedStep): string {
  const { span } = step.step;
  return span ? `${step.name} (${formatSpan(span)})` : step.name;
}

/** `layer.ts:9:16`: the last part of the path suffices next to the name of the step. */
function formatSpan(span: Span): string {
  const file = span.file.split(/[/\\]/).at(-1);
  return oneLine(`${file}:${span.line}:${span.column}`);
}

/** The collectives among the steps of all programs. */
export function* collectives(
  facts: Facts,
): Generator<{ step: CollectiveStep; at: StepFacts }> {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      if (isCollective(at.step)) yield { step: at.step, at };
    }
  }
}

/** Groups of ranks over mesh axes, in group rank order. */
function groupsOver(
  mesh: Mesh,
  ranks: number,
  over: readonly string[],
): number[][] {
  const groups = new Map<string, number[]>();
  const rest = mesh.map((axis) => axis.name).filter((n) => !over.includes(n));
  for (let rank = 0; rank < ranks; rank++) {
    const key = String(groupRankOf(mesh, rank, rest));
    const group = groups.get(key) ?? [];
    group[groupRankOf(mesh, rank, over)] = rank;
    groups.set(key, group);
  }
  return [...groups.values()];
}

/** The first of all groups with the same sequence of rank classes. */
function differentGroups(
  groups: readonly number[][],
  classOf: readonly number[],
): number[][] {
  const found = new Map<string, number[]>();
  for (const group of groups) {
    const key = group.map((rank) => classOf[rank]).join();
    if (!found.has(key)) found.set(key, group);
  }
  return [...found.values()];
}

/** Collects the facts of a plan with a valid structure. */
export function collectFacts(plan: Plan): Facts {
  const classOf = rankClasses(plan);
  const classes: number[][] = [];
  for (const [rank, of] of classOf.entries()) (classes[of] ??= []).push(rank);
  const everyRank = classes.map(([first]) => first!);
  const kernels = new Map(
    Object.entries(plan.kernels).map(([name, kernel]) =>
      [name, { name, kernel, facts: readTree(kernel.tree) }] as const
    ),
  );
  const classesIn = (set: RankSet) =>
    [...classes.keys()].filter((c) => isIn(set, plan.mesh, everyRank[c]!));
  const programs: ProgramFacts[] = plan.programs.map((program) => {
    const started = startedBy(program.steps);
    return {
      program,
      steps: program.steps.map((step, index) => ({
        step,
        index,
        name: `${program.name}[${index}]`,
        ranks: classesIn(step.ranks).map((c) => everyRank[c]!),
        readers: classesIn(sidesOf(step).reads),
        writers: classesIn(sidesOf(step).writes),
        ...accessesOf(step, started, {
          launched: (launch) => launched(launch, kernels),
        }),
      })),
    };
  });
  const cache = new Map<string, number[][]>();
  return {
    plan,
    everyRank,
    classes,
    buffers: new Map(Object.entries(plan.buffers)),
    kernels,
    programs,
    routings: routingsOf(programs),
    bound: (size) => boundOf(size, plan),
    groups(over) {
      const key = JSON.stringify(over);
      const known = cache.get(key) ??
        differentGroups(groupsOver(plan.mesh, plan.ranks, over), classOf);
      cache.set(key, known);
      return known;
    },
  };
}

/** The reads and writes of a launch, by the facts of its kernel's tree. */
function launched(
  { kernel, bindings }: LaunchStep,
  kernels: ReadonlyMap<string, KernelEntry>,
): Accesses {
  const { needs, stores } = kernels.get(kernel)!.facts;
  const of = (names: { has(name: string): boolean }) =>
    Object.keys(bindings).filter((name) => names.has(name))
      .map((name) => bindings[name]!);
  return { reads: of(needs), writes: of(stores) };
}

/** Size of a group over mesh axes of a plan. */
export function width(facts: Facts, over: readonly string[]): number {
  return groupSizeOf(facts.plan.mesh, over);
}
