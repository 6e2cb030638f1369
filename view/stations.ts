/** The stations of a section on the tracks: work as stations, row exchanges as switches, and gathers as ties. */

import type { AllToAllStep, Step } from "../spec/plan/plan.ts";
import { sizeText } from "../spec/size_text.ts";
import type { StepFacts } from "../spec/plan/facts.ts";
import { type ProgramView, stepsOf } from "./plan_view.ts";
import { opOf, partName, type Role } from "./roles.ts";
import type { Section } from "./sections.ts";

/** Steps that are drawn as one. */
export interface Station {
  /**
   * station: work on each rank. switch: rows change tracks. tie: every rank receives the data of all ranks of a group.
   */
  readonly kind: "station" | "switch" | "tie";
  readonly role: Role;
  readonly title: string;
  /** One or two lines below the title. */
  readonly details: readonly string[];
  readonly steps: readonly StepFacts[];
  /** Mesh axes of an exchange. */
  readonly over: readonly string[];
}

/** Returns the stations of one layer of a section. */
export function stationsOf(program: ProgramView, section: Section): Station[] {
  const groups: { role: Role; steps: StepFacts[] }[] = [];
  const roles = stepsOf(program.roles, section);
  for (const [i, at] of stepsOf(program.steps, section).entries()) {
    const last = groups.at(-1);
    const role = roles[i]!;
    if (
      last?.role === role && !isExchange(at.step) &&
      !isExchange(last.steps[0]!.step)
    ) last.steps.push(at);
    else groups.push({ role, steps: [at] });
  }
  return groups.map(({ role, steps }) => stationOf(role, steps, section));
}

function isExchange({ op }: Step): boolean {
  return op === "allToAll" || op === "allGather";
}

/** Ops that only change the sharding of a value. */
const MOVES: ReadonlySet<string> = new Set([
  "allGather",
  "allReduce",
  "allSlice",
  "reduceScatter",
]);

function stationOf(
  role: Role,
  steps: readonly StepFacts[],
  section: Section,
): Station {
  const [{ step }] = steps as readonly [StepFacts];
  const base = { role, steps };
  if (step.op === "allToAll") {
    return {
      ...base,
      kind: "switch",
      over: step.over,
      title: step.part?.part === "exchange indices"
        ? partName(step.part.part)
        : role,
      details: [`all-to-all over ${step.over.join(", ")}`, rowText(step)],
    };
  }
  if (step.op === "allGather") {
    return {
      ...base,
      kind: "tie",
      over: step.over,
      title: step.part ? partName(step.part.part) : "all-gather",
      details: [],
    };
  }
  const count = steps.length;
  const sends = steps.flatMap(({ step }) =>
    step.op === "send" ? step.over : []
  );
  return {
    ...base,
    kind: "station",
    over: [],
    title: titleOf(role, steps, section),
    details: [
      count === 1 ? "1 step" : `${count} steps`,
      ...sends.length > 0
        ? [`${sends.length} sent over ${[...new Set(sends)].join(", ")}`]
        : [],
    ],
  };
}

function rowText({ rowBytes, experts }: AllToAllStep): string {
  return `${sizeText(rowBytes)} a row${experts ? ", a chunk" : ""}`;
}

function titleOf(
  role: Role,
  steps: readonly StepFacts[],
  { times, name }: Section,
): string {
  const parts = steps.flatMap(({ step }) => step.part?.part ?? []);
  if (role === "dispatch") {
    if (parts.includes("permute")) return "permute";
    return parts.includes("regroup") ? "group" : parts[0] ?? "dispatch";
  }
  if (role === "combine") {
    return parts.includes("combine") ? "weighted sum" : parts[0] ?? "combine";
  }
  if (role !== "dense") return role;
  const ops = [...new Set(steps.map(({ step }) => opOf(step)))]
    .filter((op) => op !== "");
  const moves = ops.length > 0 && ops.every((op) => MOVES.has(op));
  if (!moves && (times > 1 || /^layer/.test(name))) return "feed-forward";
  return ops.slice(0, 2).join(", ") || "steps";
}
