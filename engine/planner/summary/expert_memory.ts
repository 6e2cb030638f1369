/** Memory of streamed experts on a rank, and plans that stream them. */

import {
  largestExpert,
  streamableBytes,
} from "../../../runtime/weights/mapped.ts";
import { SPARE } from "../../../runtime/native/mod.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { ExpertMemory } from "../../../spec/plan_summary.ts";
import type { Problem } from "../../../spec/problems.ts";
import { sizeText } from "../../../spec/size_text.ts";
import { MIN_EXPERTS } from "../../expert_bytes.ts";

/** Maximum memory of experts in a process in bytes; `auto`: as much as the device has left. */
export type ExpertLimit = number | "auto";

/** A rank, and its device. */
export interface RankMemory {
  readonly rank: number;
  /** Bytes of the rank with all experts in memory. */
  readonly total: number;
  /** Bytes of its share of the device. Absent: unknown. */
  readonly limit?: number | undefined;
  /** Number of ranks that share the device. */
  readonly sharing: number;
}

/** Memory of the experts of a rank, as of `--expert-memory` in a run. */
export function expertMemoryOf(
  plan: Plan,
  { rank, total, limit = Infinity, sharing }: RankMemory,
  { expertMemory, times }: {
    readonly expertMemory: ExpertLimit;
    readonly times: (name: string) => number;
  },
): ExpertMemory {
  const all = streamableBytes(plan, rank, times);
  const bytes = expertMemory === "auto"
    ? (1 - SPARE) * limit - (total - all)
    : expertMemory / sharing;
  return { bytes: Math.max(0, Math.floor(Math.min(all, bytes))), all };
}

/** Memory that cannot contain the experts of one launch. */
export function expertMemoryProblems(
  plan: Plan,
  { bytes, all }: ExpertMemory,
): Problem[] {
  const min = Math.min(all, MIN_EXPERTS * largestExpert(plan, 0));
  return bytes >= min ? [] : [{
    kind: "experts",
    what: `experts have ${
      sizeText(bytes)
    } of memory, and ${MIN_EXPERTS} of a layer need ${sizeText(min)}`,
    fix: `--expert-memory ${min}, on devices with that much left`,
  }];
}
