/**
 * Allocate: give every buffer memory. Buffers that keep their contents have an allocation each; scratch buffers whose
 * lives do not meet share one. Holds after it: at any step, no two live buffers share an allocation.
 */

import { startedBy } from "../../spec/handles.ts";
import {
  type Allocation,
  type AllToAllStep,
  onRank,
  perRank,
  type PlanBuffer,
  type Step,
} from "../../spec/plan.ts";
import type { BufferDraft } from "./lower/context.ts";

/** Buffers with memory, and the memory. */
export interface Allocated {
  readonly allocations: readonly Allocation[];
  readonly buffers: { readonly [name: string]: PlanBuffer };
}

/** The buffers that a step reads or writes; for a wait those of the exchange that it ends. */
function buffersOf(
  step: Step,
  started: ReadonlyMap<string, AllToAllStep>,
): string[] {
  switch (step.op) {
    case "launch":
      return Object.values(step.bindings);
    case "copy":
      return [step.from, step.to];
    case "allGather":
      return [
        ...[step.from, step.to],
        ...step.rows ? [step.rows.counts] : [],
        ...step.blocks ? [step.blocks.position] : [],
      ];
    case "allToAll":
      return [step.from, step.to, step.counts, step.position, step.moved];
    case "wait":
      return buffersOf(started.get(step.handle)!, started);
  }
}

/** First and last step of every buffer that steps use. */
function lives(
  steps: readonly Step[],
): Map<string, { first: number; last: number }> {
  const result = new Map<string, { first: number; last: number }>();
  const started = startedBy(steps);
  steps.forEach((step, i) => {
    for (const buffer of buffersOf(step, started)) {
      const life = result.get(buffer);
      if (life) life.last = Math.max(life.last, i);
      else result.set(buffer, { first: i, last: i });
    }
    // How much moved is read after the program.
    if (step.op === "allToAll") result.get(step.moved)!.last = steps.length;
  });
  return result;
}

/** Assign memory: the smallest free allocation that is large enough, else the largest free one grown, else a new one. */
export function allocate(
  drafts: ReadonlyMap<string, BufferDraft>,
  steps: readonly Step[],
  ranks: number,
): Allocated {
  const bytes: number[][] = [];
  const assigned = new Map<string, number>();
  const life = lives(steps);
  const sizesOf = (draft: BufferDraft) =>
    Array.from({ length: ranks }, (_, rank) => onRank(draft.bytes, rank));
  const scratch: string[] = [];
  for (const [name, draft] of drafts) {
    if (draft.kind === "scratch" && life.has(name)) scratch.push(name);
    else if (draft.kind !== "scratch") {
      assigned.set(name, bytes.length);
      bytes.push(sizesOf(draft));
    }
  }
  scratch.sort((a, b) => life.get(a)!.first - life.get(b)!.first);
  const free: number[] = [];
  const busy: { allocation: number; last: number }[] = [];
  for (const name of scratch) {
    const { first, last } = life.get(name)!;
    for (let i = busy.length - 1; i >= 0; i--) {
      if (busy[i]!.last < first) {
        free.push(...busy.splice(i, 1).map((b) => b.allocation));
      }
    }
    const need = sizesOf(drafts.get(name)!);
    const index = chooseFree(free, bytes, need);
    let allocation: number;
    if (index === undefined) {
      allocation = bytes.length;
      bytes.push(need);
    } else {
      allocation = free.splice(index, 1)[0]!;
      bytes[allocation] = bytes[allocation]!.map((size, rank) =>
        Math.max(size, need[rank]!)
      );
    }
    assigned.set(name, allocation);
    busy.push({ allocation, last });
  }
  const buffers: { [name: string]: PlanBuffer } = {};
  for (const [name, draft] of drafts) {
    const allocation = assigned.get(name);
    if (allocation !== undefined) buffers[name] = { ...draft, allocation };
  }
  return {
    allocations: bytes.map((sizes) => ({ bytes: perRank(sizes) })),
    buffers,
  };
}

/** The index in `free` that wastes or grows least: never a small buffer in a far larger allocation if a closer one is free. */
function chooseFree(
  free: readonly number[],
  bytes: readonly (readonly number[])[],
  need: readonly number[],
): number | undefined {
  let best: number | undefined;
  let bestCost = Infinity;
  const total = (sizes: readonly number[]) =>
    sizes.reduce((n, size) => n + size, 0);
  free.forEach((allocation, i) => {
    const size = bytes[allocation]!;
    const growth = total(need.map((n, rank) => Math.max(0, n - size[rank]!)));
    const cost = growth * 4 + Math.abs(total(size) - total(need));
    if (cost < bestCost) {
      best = i;
      bestCost = cost;
    }
  });
  return best;
}
