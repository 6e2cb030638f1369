/** The data flow of some steps as a graph: the values that they read and write, with axes and shardings. */

import {
  type CollectiveStep,
  onRank,
  type PlanBuffer,
} from "../spec/plan/plan.ts";
import { sizeText } from "../spec/size_text.ts";
import { typeText } from "../spec/text/parts.ts";
import { isCollective } from "../spec/plan/members.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";
import type { Role } from "./roles.ts";
import { shortened } from "./pictures/figure.ts";
import { nameOfStep, shortType } from "./step_detail.ts";
import type { Traffic } from "./traffic.ts";

/** A step of the graph. */
export interface FlowStep {
  readonly kind: "step";
  readonly key: string;
  readonly index: number;
  readonly role: Role;
  readonly name: string;
  /** Its kernel. For a collective: the mesh axes, and the bytes that leave a rank in a full step. */
  readonly how: string;
  /** Weights, constants and states that only this step uses. */
  readonly uses: readonly FlowValue[];
}

/** A value of the graph. */
export interface FlowValue {
  readonly kind: "value";
  readonly key: string;
  /** Its buffer, without the name of the layer. */
  readonly name: string;
  readonly buffer: PlanBuffer;
  /** Dtype, axes with their sharding, and partial sums. */
  readonly type: string;
  readonly size: string;
}

/** A node of the graph. */
export type FlowNode = FlowStep | FlowValue;

/** An edge between nodes. `through`: the values between two steps that are not nodes. */
export interface FlowEdge {
  readonly from: string;
  readonly to: string;
  readonly through?: readonly string[];
}

/** A graph with steps in program order. */
export interface Flow {
  readonly nodes: readonly FlowNode[];
  readonly edges: readonly FlowEdge[];
}

/** The selection of values that are nodes. */
export interface FlowOptions {
  /** The collectives among the steps. */
  readonly traffic: readonly Traffic[];
  /** Show weights, constants and states as nodes instead of parts of their steps. */
  readonly weights: boolean;
  /**
   * Show integer tables, such as those of a routing, as nodes. Otherwise steps that share a table are connected
   * directly.
   */
  readonly tables: boolean;
}

/** Names of collectives. */
const COLLECTIVES: { readonly [O in CollectiveStep["op"]]: string } = {
  allToAll: "all-to-all",
  allGather: "all-gather",
  send: "send",
};

/** Maximum number of steps in a graph. */
export const MAX_STEPS = 120;

/** Returns the graph of the steps from `start` to before `end`, at most `MAX_STEPS`. */
export function flowOf(
  view: PlanView,
  program: ProgramView,
  { start, end, traffic, weights, tables }: FlowOptions & {
    readonly start: number;
    readonly end: number;
  },
): Flow {
  const sent = new Map(traffic.map((one) => [one.at.index, one]));
  const steps = new Map<string, FlowStep & { readonly uses: FlowValue[] }>();
  const nodes: FlowNode[] = [];
  const values = new Map<string, Value>();
  // A state that is read and then written counts as two values.
  const versions = new Map<string, { version: number; read: boolean }>();
  const valueAt = (name: string, writes: boolean): Value => {
    const at = versions.get(name) ?? { version: 0, read: false };
    versions.set(name, at);
    if (writes && at.read) [at.version, at.read] = [at.version + 1, false];
    if (!writes) at.read = true;
    const key = `${name}@${at.version}`;
    const known = values.get(key) ?? { key, name, from: [], to: [] };
    values.set(key, known);
    return known;
  };
  for (const at of program.steps.slice(start, end).slice(0, MAX_STEPS)) {
    const { index, step, reads, writes } = at;
    const key = `step ${index}`;
    const bytes = sent.get(index)?.perRank;
    steps.set(key, {
      kind: "step",
      key,
      uses: [],
      index,
      role: program.roles[index]!,
      name: nameOfStep(at),
      how: isCollective(step)
        ? `${COLLECTIVES[step.op]} over ${step.over.join(", ")}${
          bytes === undefined ? "" : `, ${sizeText(Math.round(bytes))}`
        }`
        : step.op === "launch"
        ? shortened(step.kernel, LONGEST)
        : step.op,
    });
    for (const name of new Set(reads)) valueAt(name, false).to.push(key);
    for (const name of new Set(writes)) valueAt(name, true).from.push(key);
  }
  const edges: FlowEdge[] = [];
  const joined = new Map<string, string[]>();
  for (const { key, name, from, to } of values.values()) {
    const buffer = view.facts.buffers.get(name)!;
    if (!tables && isTable(buffer)) {
      for (const a of from) {
        for (const b of to) {
          const pair = `${a}\n${b}`;
          joined.set(pair, [...joined.get(pair) ?? [], shortName(name)]);
        }
      }
      continue;
    }
    const value: FlowValue = {
      kind: "value",
      key,
      name: shortName(name),
      buffer,
      type: shortType(typeText(view.plan, buffer)),
      size: sizeText(onRank(buffer.bytes, 0)),
    };
    const users = new Set([...from, ...to]);
    if (GIVEN.has(buffer.kind) || buffer.kind === "state" && users.size === 1) {
      for (const user of weights ? users : []) {
        const { uses } = steps.get(user)!;
        if (uses.every((known) => known.buffer !== buffer)) uses.push(value);
      }
      continue;
    }
    nodes.push(value);
    edges.push(
      ...from.map((step) => ({ from: step, to: key })),
      ...to.map((step) => ({ from: key, to: step })),
    );
  }
  for (const [pair, through] of joined) {
    const [from, to] = pair.split("\n") as [string, string];
    edges.push({ from, to, through });
  }
  return { nodes: [...steps.values(), ...nodes], edges };
}

/** A value, and the steps that write and read it. */
interface Value {
  readonly key: string;
  readonly name: string;
  readonly from: string[];
  readonly to: string[];
}

/** Kinds of buffers that no step computes. */
const GIVEN: ReadonlySet<PlanBuffer["kind"]> = new Set([
  ...["weight", "const", "rope"] as const,
]);

function isTable({ dtype, kind }: PlanBuffer): boolean {
  return kind !== "state" && kind !== "weight" && /^[iu]/.test(dtype);
}

/** Shortens `model.layers.3.self_attn.q_proj.weight` to `self_attn.q_proj.weight`. */
export function shortName(name: string): string {
  return name.replace(/^.*\blayers\.\d+\./, "");
}

/** Maximum length of a kernel's name. */
const LONGEST = 36;
