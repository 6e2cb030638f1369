/** The steps of each routing, by part of dispatch or combine. */

import { movedExperts, movesTokens, unitEnds } from "./bytes.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  RoundsStep,
  Step,
  StepPart,
} from "./plan.ts";
import { sum } from "../sum.ts";
import type { ProgramFacts, StepFacts } from "./facts.ts";

/** The facts of a step of one kind. */
export interface StepOf<S extends Step> extends StepFacts {
  readonly step: S;
}

/** The parts of one routing in one program, each in the order of steps. */
export interface RoutingFacts {
  readonly number: number;
  /** The routing between nodes, if this one is within a node. */
  readonly within?: RoutingFacts;
  readonly program: string;
  /** Every step of the program. */
  readonly steps: readonly StepFacts[];
  readonly all: readonly StepFacts[];
  readonly count: readonly StepFacts[];
  readonly permute: readonly StepFacts[];
  readonly gather: readonly StepOf<AllGatherStep>[];
  /** Starts of rounds: one for each returned value, or none. */
  readonly rounds: readonly StepOf<RoundsStep>[];
  /** For a deduplicated dispatch: the token indices of choices. */
  readonly indices: readonly StepOf<AllToAllStep>[];
  /** With pre-summing: the rows of each token, and the sums. */
  readonly lists: readonly StepOf<AllToAllStep>[];
  readonly sums: readonly StepFacts[];
  readonly forward: readonly StepOf<AllToAllStep>[];
  readonly regroup: readonly StepFacts[];
  readonly back: readonly StepOf<AllToAllStep>[];
  readonly combine: readonly StepFacts[];
}

function isPart(
  at: StepFacts,
  op: StepPart["op"],
  part: StepPart["part"],
): boolean {
  return at.step.part?.op === op && at.step.part.part === part;
}

function isGather(at: StepFacts): at is StepOf<AllGatherStep> {
  return at.step.op === "allGather";
}

/** Whether a step starts rounds. */
export function isRounds(at: StepFacts): at is StepOf<RoundsStep> {
  return at.step.op === "rounds";
}

function isExchange(at: StepFacts): at is StepOf<AllToAllStep> {
  return at.step.op === "allToAll";
}

/** The routings of a plan by program. */
export function routingsOf(
  programs: readonly ProgramFacts[],
): RoutingFacts[] {
  const routings: RoutingFacts[] = [];
  for (const { program, steps } of programs) {
    const byNumber = new Map<number, StepFacts[]>();
    for (const at of steps) {
      const number = at.step.part?.routing;
      if (number === undefined) continue;
      const known = byNumber.get(number);
      if (known) known.push(at);
      else byNumber.set(number, [at]);
    }
    for (const [number, all] of byNumber) {
      const of = (op: StepPart["op"], part: StepPart["part"]) =>
        all.filter((at) => isPart(at, op, part));
      routings.push({
        number,
        program: program.name,
        steps,
        all,
        count: of("dispatch", "count"),
        permute: of("dispatch", "permute"),
        gather: of("dispatch", "exchange counts").filter(isGather),
        rounds: of("dispatch", "rounds").filter(isRounds),
        indices: of("dispatch", "exchange indices").filter(isExchange),
        lists: of("dispatch", "exchange rows").filter(isExchange),
        sums: of("combine", "sum"),
        forward: of("dispatch", "exchange").filter(isExchange),
        regroup: of("dispatch", "regroup"),
        back: of("combine", "exchange").filter(isExchange),
        combine: of("combine", "combine"),
      });
    }
  }
  return routings.map((routing) => {
    const number = routing.all[0]!.step.part!.within;
    const within = routings.find((other) =>
      other.number === number && other.program === routing.program &&
      other !== routing
    );
    return within ? { ...routing, within } : routing;
  });
}

/** The mesh axes over which rows of a routing are sent: between nodes and within a node, or at once. */
export function sentOver({ within, gather }: RoutingFacts): readonly string[] {
  return [within, { gather }].flatMap((routing) =>
    routing?.gather[0]?.step.over ?? []
  );
}

/**
 * The exchanges of each value of a routing in one direction: one, or one per chunk. They share the buffer with its rows
 * by destination, and together cover every expert.
 */
export function valuesOf(
  exchanges: readonly StepOf<AllToAllStep>[],
): StepOf<AllToAllStep>[][] {
  const values: StepOf<AllToAllStep>[][] = [];
  const open = new Map<string, StepOf<AllToAllStep>[]>();
  for (const at of exchanges) {
    const { direction, from, to, splits } = at.step;
    const unchunked = direction === "forward" ? from : to;
    const chunks = open.get(unchunked) ?? [];
    if (chunks.length === 0) values.push(chunks);
    chunks.push(at);
    open.set(unchunked, chunks);
    const moved = sum(chunks.map(({ step }) => movedExperts(step)));
    if (moved >= splits.at(-1)! - splits[0]!) open.delete(unchunked);
  }
  return values;
}

/**
 * The buffers with the send row of each choice. Count writes them; every combine and permute reads them. Exceptions:
 * deduplicated steps use other rows of count, and steps that add pre-summed rows use none. Within a node, the buffers
 * have the rows that were received from other nodes.
 */
export function permutationsOf(routing: RoutingFacts): string[] {
  const made = routing.within?.regroup ?? routing.count;
  const written = new Set(made.flatMap((at) => at.writes));
  const byTokens = (at: StepFacts) =>
    routing.indices.length > 0 && at.reads.some((name) => written.has(name));
  const bySums = (at: StepFacts) =>
    routing.back.some(({ step }) =>
      movesTokens(step) && at.reads.includes(step.to)
    );
  return [...written].filter((name) =>
    routing.combine.every((at) => at.reads.includes(name) || bySums(at)) &&
    routing.permute.every((at) => at.reads.includes(name) || byTokens(at))
  );
}

/** The end of the experts of each group rank and chunk, for exchanges by choices. */
export function expertEnds({ indices, back }: RoutingFacts): number[] {
  const byChoices = indices.length > 0 ? indices : back;
  return unitEnds(byChoices.map(({ step }) => step));
}

/** The name of a routing in messages. */
export function titleOf(routing: RoutingFacts): string {
  return `route by routing ${routing.number} of program '${routing.program}'`;
}
