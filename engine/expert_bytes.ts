/** Memory of experts in a process, as limited by `--expert-memory`. */

import { CPU_LIMITS } from "../runtime/cpu/mod.ts";
import { largestExpert, streamableBytes } from "../runtime/weights/mapped.ts";
import type { MpiWorld } from "../runtime/mpi/mod.ts";
import { availableMemory } from "../runtime/native/mod.ts";
import { MachineError } from "../spec/errors.ts";
import { onRank, type Plan } from "../spec/plan/plan.ts";
import { sizeText } from "../spec/size_text.ts";
import { sum } from "../spec/sum.ts";
import type { HostKind } from "./devices.ts";

/** Bytes of the ranks, and of their expert weights. */
export function rankBytes(
  plan: Plan,
  ranks: readonly number[],
): { readonly all: number; readonly experts: number } {
  return {
    all: sum(ranks.map((rank) => onRank(plan.peakBytes, rank))),
    experts: sum(ranks.map((rank) => streamableBytes(plan, rank))),
  };
}

/** Number of experts per layer that must be in memory at once, for two launches. */
export const MIN_EXPERTS = 2;

/** The ranks of a plan in this process. */
export function ranksHere(plan: Plan, world: MpiWorld | undefined): number[] {
  return world
    ? [world.rank]
    : Array.from({ length: plan.ranks }, (_, rank) => rank);
}

/**
 * Memory limit of experts on a kind of CPU device or on GPUs, checked against the requirement of a launch. Undefined if
 * there is none, or if all experts fit. In bytes. On CPU devices, at most the available memory; a notice states the
 * reduction.
 */
export function expertBytesFor(
  plan: Plan,
  {
    kind,
    ranks,
    expertMemory,
    available = kind === "cpu" ? CPU_LIMITS.memory : availableMemory(),
    sharing = 1,
    notice,
  }: {
    readonly kind?: HostKind;
    readonly ranks: readonly number[];
    readonly expertMemory: number | "auto" | undefined;
    /** Bytes that the processes of this host may use. Default: the available memory. */
    readonly available?: number;
    /** Number of processes that share the memory of this host. */
    readonly sharing?: number | undefined;
    readonly notice?: ((text: string) => void) | undefined;
  },
): number | undefined {
  if (expertMemory === undefined) return undefined;
  if (expertMemory === "auto" && kind === undefined) {
    throw new MachineError(
      "Cannot use --expert-memory auto on a GPU: its memory is unknown. Give bytes, such as 8GiB",
    );
  }
  const { all, experts } = rankBytes(plan, ranks);
  const share = Math.floor(available / sharing);
  const left = kind === undefined ? Infinity : share - (all - experts);
  if (expertMemory === "auto" && left >= experts) return undefined;
  const min = MIN_EXPERTS * Math.max(
    ...ranks.map((rank) => largestExpert(plan, rank)),
  );
  const bytes = expertMemory === "auto"
    ? left
    : Math.min(expertMemory, Math.max(left, min));
  if (expertMemory !== "auto" && bytes < Math.min(expertMemory, experts)) {
    notice?.(
      `Experts have ${sizeText(bytes)} of memory instead of ${
        sizeText(expertMemory)
      }: the rest of the plan needs ${sizeText(all - experts)} of ${
        sizeText(share)
      } that are available`,
    );
  }
  if (bytes >= min) return bytes;
  throw new MachineError(
    `Cannot keep experts in ${
      Math.max(0, bytes)
    } bytes of memory: ${MIN_EXPERTS} of a layer need ${min}. Give --expert-memory at least that`,
  );
}
