/** The details of a step in words and numbers. */

import { onRank } from "../spec/plan/plan.ts";
import { formatSize } from "../spec/size.ts";
import { sizeText } from "../spec/size_text.ts";
import { typeText } from "../spec/text/parts.ts";
import type { StepFacts } from "../spec/plan/facts.ts";
import type { PlanView } from "./plan_view.ts";
import { opOf, partName } from "./roles.ts";

/** A buffer that a step uses. */
export interface UsedBuffer {
  readonly name: string;
  readonly kind: string;
  /** Dtype, axes with their sharding, and partial sums. */
  readonly type: string;
  readonly size: string;
}

/** The details of a step on a page. */
export interface StepDetail {
  /** The op of the model, or the part of a dispatch. */
  readonly name: string;
  /** Type of its result: `f32[token/ep<=4096 embed:512]`. */
  readonly result: string;
  /** `over ep` */
  readonly over: string;
  readonly kernel: string | undefined;
  readonly workgroups: string | undefined;
  readonly reads: readonly UsedBuffer[];
  readonly writes: readonly UsedBuffer[];
}

/** Describes a step. Sizes are those of rank 0. */
export function describeStep(view: PlanView, at: StepFacts): StepDetail {
  const { step } = at;
  const used = (names: readonly string[]) =>
    [...new Set(names)].map((name) => usedBuffer(view, name));
  const writes = used(at.writes);
  return {
    name: nameOfStep(at),
    result: writes.toSorted((a, b) => rank(a) - rank(b))[0]?.type ?? "",
    over: step.op === "allToAll" || step.op === "allGather"
      ? `over ${step.over.join(", ")}`
      : "",
    kernel: step.op === "launch" ? step.kernel : undefined,
    workgroups: step.op === "launch"
      ? step.workgroups.slice(
        0,
        Math.max(1, step.workgroups.findLastIndex((n) => n !== 1) + 1),
      ).map(formatSize).join(" × ")
      : undefined,
    reads: used(at.reads),
    writes,
  };
}

/** Sorts floating-point results before integer tables. */
function rank({ type }: UsedBuffer): number {
  return /^[iu]/.test(type) ? 1 : 0;
}

/** Formats a step's name: `dot over embed`, `dispatch: permute`, `all-gather`. */
export function nameOfStep({ step }: StepFacts): string {
  if (step.part) {
    const { op, part } = step.part;
    const name = partName(part);
    return `${op}: ${name === part ? part : `exchange ${name}`}`;
  }
  const label = step.label?.replace(/ : .*$/s, "") ?? "";
  return label !== "" ? label : opOf(step) || step.op;
}

function usedBuffer({ plan, facts }: PlanView, name: string): UsedBuffer {
  const buffer = facts.buffers.get(name)!;
  return {
    name,
    kind: buffer.kind,
    type: typeText(plan, buffer),
    size: sizeText(onRank(buffer.bytes, 0)),
  };
}

/** The block of a layer in an axis name. */
const SCOPE = /\b(\w+\.)*layers\.\d+\.(\w+\.)*/g;

/** Removes blocks from the axes of a type: `f32[token ffn:768]` for `f32[token model.layers.0.mlp.ffn:768]`. */
export function shortType(type: string): string {
  return type.replace(SCOPE, "");
}
