/** The exchanges of a section, with their bytes per token and per full step. */

import { modelAxis } from "../spec/axis_parts.ts";
import { boundOf } from "../spec/plan/bytes.ts";
import {
  type ExpectedExchange,
  expectedExchanges,
  toOthers,
} from "../spec/plan/exchanges.ts";
import { LINK_CLASSES, type LinkClass, linkClass } from "../spec/machine.ts";
import { groupRanks, groupSizeOf } from "../spec/mesh.ts";
import { executes, membersOf } from "../spec/plan/members.ts";
import type {
  AllGatherStep,
  Plan,
  SendStep,
  StepPart,
} from "../spec/plan/plan.ts";
import type { StepFacts } from "../spec/plan/facts.ts";
import type { HostPlacement } from "./page_data.ts";
import { type PlanView, type ProgramView, stepsOf } from "./plan_view.ts";
import type { Measured, Recorded } from "./recorded.ts";
import { partName } from "./roles.ts";
import type { Section } from "./sections.ts";
import { groupOfRanks } from "./tracks.ts";

/** A step that exchanges data between ranks. */
export interface Traffic {
  readonly at: StepFacts;
  readonly name: string;
  readonly over: readonly string[];
  /** Bytes that leave a rank per token of it, for evenly chosen experts. Undefined for a gather without tokens. */
  readonly perToken: number | undefined;
  /** The token axis, if the exchange sends data per token. */
  readonly tokens?: string | undefined;
  /** Bytes that leave a rank in a step with the maximum number of tokens. */
  readonly perRank: number;
  /** Maximum bytes from one rank to another. */
  readonly worstPair: number;
  /** Returns the bytes from one rank to another in such a step. */
  readonly between: (from: number, to: number) => number;
}

/** Returns the exchanges of a section, or of one of its layers. */
export function trafficOf(
  { plan }: PlanView,
  program: ProgramView,
  section: Pick<Section, "start" | "length">,
): Traffic[] {
  const expected = new Map(
    expectedExchanges(plan, program.program).map((one) => [one.index, one]),
  );
  return stepsOf(program.steps, section).flatMap((at): Traffic[] => {
    const { step, index } = at;
    if (step.op === "allGather") return [gathered(plan, at, step)];
    if (step.op === "send") return [sentTo(plan, at, step)];
    const exchange = expected.get(index);
    return exchange ? [exchanged(plan, at, exchange)] : [];
  });
}

function exchanged(
  plan: Plan,
  at: StepFacts,
  exchange: ExpectedExchange,
): Traffic {
  const { step, bytes, shares, tokens, op } = exchange;
  const axis = tokens === undefined ? undefined : plan.axes[tokens];
  // Tokens per rank in an even distribution.
  const count = (axis?.size ?? 0) / groupSizeOf(plan.mesh, axis?.over ?? []);
  const { over } = step;
  const { part } = step.part!;
  const joined = joinedBy(plan, over);
  const ranks = groupRanks(plan.mesh, over);
  const others = toOthers(plan, exchange);
  return {
    at,
    over,
    tokens,
    name: part === "exchange" ? op : `${op}: ${partName(part)}`,
    perToken: others,
    perRank: others * count,
    worstPair: boundOf(step.pairRows, plan) * step.rowBytes,
    between: (from, to) => {
      if (!joined(from, to)) return 0;
      // In a combine, the owner of the experts sends.
      const owner = step.direction === "forward" ? to : from;
      return count * bytes * shares[ranks[owner]!]!;
    },
  };
}

function gathered(plan: Plan, at: StepFacts, step: AllGatherStep): Traffic {
  const { over, bytes, rows, blocks } = step;
  const { count, max } = timesOf(plan, step);
  const others = groupSizeOf(plan.mesh, over) - 1;
  const joined = joinedBy(plan, over);
  return {
    at,
    over,
    name: step.part
      ? `${step.part.op}: ${partName(step.part.part)}`
      : blocks
      ? "reduce-scatter"
      : "all-gather",
    perToken: rows ? bytes * others : undefined,
    tokens: rows?.axis,
    perRank: bytes * count * others,
    worstPair: bytes * max,
    between: (from, to) => joined(from, to) ? bytes * count : 0,
  };
}

/** Rows of a rank in an even distribution, and at most; 1 for a step that sends no rows. */
function timesOf(
  plan: Plan,
  { rows }: Pick<AllGatherStep, "rows">,
): { readonly count: number; readonly max: number } {
  if (!rows) return { count: 1, max: 1 };
  const { size, over = [] } = plan.axes[rows.axis]!;
  return { count: size / groupSizeOf(plan.mesh, over), max: size };
}

function sentTo(plan: Plan, at: StepFacts, step: SendStep): Traffic {
  const { over, bytes, rows } = step;
  const { count, max } = timesOf(plan, step);
  const sends = (from: number, to: number) => {
    const [source, destination] = membersOf(plan.mesh, from, step);
    return executes(plan.mesh, from, step) && source === from &&
      destination === to;
  };
  return {
    at,
    over,
    name: "send",
    perToken: rows && bytes,
    tokens: rows?.axis,
    perRank: bytes * count,
    worstPair: bytes * max,
    between: (from, to) => sends(from, to) ? bytes * count : 0,
  };
}

/** Returns whether two ranks are in one group over mesh axes. */
function joinedBy(
  { mesh }: Plan,
  over: readonly string[],
): (a: number, b: number) => boolean {
  const groups = groupOfRanks(mesh, over);
  return (a, b) => groups[a] === groups[b];
}

/** Bytes per token that are sent to other ranks in all layers, for evenly chosen experts. */
export type SentPerToken = { readonly [V in StepPart["op"]]: number };

/** Returns the bytes of the dispatches and combines of the first program. */
export function sentPerToken(plan: Plan): SentPerToken {
  const exchanges = expectedExchanges(plan, plan.programs[0]!);
  const sum = (op: StepPart["op"]) =>
    exchanges.filter((one) => one.op === op)
      .reduce((bytes, one) => bytes + toOthers(plan, one), 0);
  return { dispatch: sum("dispatch"), combine: sum("combine") };
}

/** The bytes of a recorded run in an exchange. */
export interface MeasuredTraffic extends Measured {
  /** Expected bytes for the number of tokens of the run, for evenly chosen experts. Undefined if unknown. */
  readonly expected: number | undefined;
}

/** Returns the recorded bytes of exchanges. Undefined for runs of another plan. */
export function measuredTraffic(
  { plan }: PlanView,
  list: readonly Traffic[],
  recorded: Recorded,
): readonly (MeasuredTraffic | undefined)[] | undefined {
  const all = list.map(({ at, perToken, tokens }) => {
    const measured = recorded.sent(at.step, at.index);
    if (measured === undefined) return undefined;
    const count = tokens === undefined
      ? 0
      : recorded.sourceRanks(modelAxis(plan, tokens)).length;
    return {
      ...measured,
      expected: count > 0 && perToken !== undefined
        ? perToken * count
        : undefined,
    };
  });
  return all.some((one) => one) ? all : undefined;
}

/** Returns the bytes between ranks by class of link, for the classes in use. */
export function bytesByLink(
  { between }: Pick<Traffic, "between">,
  placements: readonly HostPlacement[],
): (readonly [link: LinkClass, bytes: number])[] {
  const bytes = new Map<LinkClass, number>();
  for (const [from, a] of placements.entries()) {
    for (const [to, b] of placements.entries()) {
      if (from === to) continue;
      const link = linkClass(a, b);
      bytes.set(link, (bytes.get(link) ?? 0) + between(from, to));
    }
  }
  return LINK_CLASSES.flatMap((link) => {
    const sum = bytes.get(link);
    return sum === undefined ? [] : [[link, sum] as const];
  });
}

/** Returns the initially shown exchange: the largest one. */
export function mainTraffic(list: readonly Traffic[]): Traffic | undefined {
  return list.toSorted((a, b) => b.perRank - a.perRank)[0];
}
