/**
 * Allocate: assigns memory to every buffer. Each persistent buffer has its own allocation. Scratch buffers are ranges
 * of an arena and share bytes if their live ranges are disjoint. Buffers read after the program are allocated
 * separately, so that they pin no scratch memory. Postcondition: buffers that are live at the same time do not overlap.
 */

import { buffersOf } from "../../spec/plan/accesses.ts";
import { barrierBindings } from "../../spec/plan/barrier_bindings.ts";
import { startedBy } from "../../spec/plan/handles.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import {
  isIn,
  type Mesh,
  rankCount,
  type RankSet,
  rankSetText,
} from "../../spec/mesh.ts";
import { mapRanks } from "../../spec/per_rank.ts";
import { sidesOf } from "../../spec/plan/members.ts";
import { liveInLoops, loopsOf } from "../../spec/plan/rounds.ts";
import {
  type Allocation,
  maxOverRanks,
  onRank,
  type PerRank,
  perRank,
  type PlanBuffer,
  type Step,
} from "../../spec/plan/plan.ts";
import { packArenas } from "./arena.ts";
import { type BufferDraft, LENGTHS } from "./lower/context.ts";

/** Buffers with offsets, and the allocations. */
export interface Allocated {
  readonly allocations: readonly Allocation[];
  readonly buffers: { readonly [name: string]: PlanBuffer };
}

/** Options of `allocate`. */
export interface AllocateOptions {
  readonly kernels: ReadonlyMap<string, Kernel>;
  readonly mesh: Mesh;
  /** Bytes of the longest allocation; a longer buffer has its own. */
  readonly maxBytes: number;
}

/** First and last step that use a buffer. */
interface Use {
  first: number;
  last: number;
}

/** The first and last use of each buffer. */
function usesOf(steps: readonly Step[]): Map<string, Use> {
  const result = new Map<string, Use>();
  const started = startedBy(steps);
  steps.forEach((step, i) => {
    // A wait uses the buffers of its exchange.
    const of = step.op === "wait" ? started.get(step.handle)! : step;
    for (const buffer of buffersOf(of)) {
      const use = result.get(buffer);
      if (use) use.last = i;
      else result.set(buffer, { first: i, last: i });
    }
  });
  const loops = loopsOf(steps);
  for (const use of result.values()) {
    Object.assign(use, liveInLoops(use, loops));
  }
  return result;
}

/**
 * Groups of buffers, each with its own arenas. All are in the first group, except the buffers on which a barrier
 * depends: the kernel must bind these as read-only storage, so their allocation must contain nothing that it writes.
 */
function groupsOf(
  names: readonly string[],
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): Map<string, number> {
  const groups = new Map(names.map((name) => [name, 0]));
  // The bindings of a kernel that are in a group in some launch. Finding the bindings that a barrier depends on is
  // slow.
  const grouped = new Map<string, Set<string>>();
  for (const step of steps) {
    if (step.op !== "launch") continue;
    const known = grouped.get(step.kernel) ?? new Set();
    grouped.set(step.kernel, known);
    for (const [binding, buffer] of Object.entries(step.bindings)) {
      if (groups.has(buffer)) known.add(binding);
    }
  }
  const readOnly = new Map(
    [...grouped].map(([name, bindings]) => [
      name,
      barrierBindings(kernels.get(name)!, (one) => bindings.has(one)),
    ]),
  );
  const apart = new Map<string, Set<string>>();
  for (const step of steps) {
    if (step.op !== "launch") continue;
    const written = kernels.get(step.kernel)!.bindings
      .filter(({ access }) => access !== "read")
      .map(({ name }) => step.bindings[name]!);
    for (const binding of readOnly.get(step.kernel)!) {
      const buffer = step.bindings[binding]!;
      if (!groups.has(buffer)) continue;
      apart.set(buffer, new Set([...apart.get(buffer) ?? [], ...written]));
    }
  }
  for (const [buffer, others] of apart) {
    for (const other of others) apart.get(other)?.add(buffer);
  }
  for (const [buffer, others] of apart) {
    const taken = [...others].map((other) => groups.get(other));
    let group = 0;
    while (taken.includes(group)) group++;
    groups.set(buffer, group);
  }
  return groups;
}

/** Allocations with their buffers. */
class Memory {
  readonly #ranks: number;
  readonly #tenants: PlanBuffer[][] = [];

  constructor(ranks: number) {
    this.#ranks = ranks;
  }

  /** The index of the next allocation. */
  get next(): number {
    return this.#tenants.length;
  }

  add(draft: BufferDraft, allocation: number, offset: number): PlanBuffer {
    const buffer = { ...draft, allocation, offset };
    (this.#tenants[allocation] ??= []).push(buffer);
    return buffer;
  }

  /** The length of each allocation is the end of its last buffer, on each rank. */
  get allocations(): Allocation[] {
    return this.#tenants.map((tenants) => {
      const equal = tenants.reduce(
        (end, { bytes, offset }) =>
          typeof bytes === "number" ? Math.max(end, offset + bytes) : end,
        0,
      );
      const others = tenants.filter(({ bytes }) => typeof bytes !== "number");
      if (others.length === 0) return { bytes: equal };
      const ends = Array.from(
        { length: this.#ranks },
        (_, rank) =>
          others.reduce((end, { bytes, offset }) => {
            const held = onRank(bytes, rank);
            return held === 0 ? end : Math.max(end, offset + held);
          }, equal),
      );
      return { bytes: perRank(ends) };
    });
  }
}

/**
 * Buffers with 0 bytes on ranks that do not use them, such as those of other stages. Inputs in the buffer of lengths
 * are on all ranks.
 */
function presentBuffers(
  drafts: ReadonlyMap<string, BufferDraft>,
  steps: readonly Step[],
  mesh: Mesh,
): Map<string, BufferDraft> {
  const ranks = Array.from({ length: rankCount(mesh) }, (_, rank) => rank);
  const users = new Map<string, ReadonlyMap<string, RankSet>>();
  const use = (name: string, set: RankSet) => {
    const known = users.get(name);
    const text = rankSetText(set);
    if (!known?.has(text)) {
      users.set(name, new Map([...known ?? [], [text, set]]));
    }
  };
  for (const step of steps) {
    if (step.op === "send") {
      const { reads, writes } = sidesOf(step);
      use(step.from, reads);
      use(step.to, writes);
      if (step.rows) use(step.rows.counts, writes);
    } else for (const name of buffersOf(step)) use(name, step.ranks);
  }
  return new Map(
    [...drafts].map(([name, draft]) => {
      const sets = [...users.get(name)?.values() ?? ["all" as const]];
      if (sets.includes("all") || draft.offset !== undefined) {
        return [name, draft];
      }
      const bytes = perRank(
        ranks.map((rank) =>
          sets.some((set) => isIn(set, mesh, rank))
            ? onRank(draft.bytes, rank)
            : 0
        ),
      );
      return [name, { ...draft, bytes }];
    }),
  );
}

/** The runs of ranks without a buffer: equal for buffers on the same ranks. */
function absences({ bytes }: BufferDraft): PerRank {
  return mapRanks([bytes], ([n]) => n === 0 ? 0 : 1);
}

/**
 * Assigns memory. Offsets are the same on every rank: a buffer has as many bytes as on the rank that needs the most.
 */
export function allocate(
  drafts: ReadonlyMap<string, BufferDraft>,
  steps: readonly Step[],
  { kernels, mesh, maxBytes }: AllocateOptions,
): Allocated {
  const memory = new Memory(rankCount(mesh));
  const made = new Map<string, PlanBuffer>();
  const uses = usesOf(steps);
  const persistent = new Set(
    steps.flatMap((step) =>
      step.op === "allToAll" ? [step.receivedCounts] : []
    ),
  );
  const scratch: string[] = [];
  const present = presentBuffers(drafts, steps, mesh);
  for (const [name, draft] of present) {
    if (draft.offset !== undefined) {
      const { allocation } = made.get(LENGTHS)!;
      made.set(name, memory.add(draft, allocation, draft.offset));
    } else if (draft.kind !== "scratch") {
      made.set(name, memory.add(draft, memory.next, 0));
    } else if (uses.has(name)) scratch.push(name);
  }
  const pack = (names: readonly string[], rangeOf: (use: Use) => Use) => {
    const base = memory.next;
    const slots = packArenas(
      names.map((name) => ({
        bytes: maxOverRanks(present.get(name)!.bytes),
        ...rangeOf(uses.get(name)!),
      })),
      maxBytes,
    );
    names.forEach((name, i) => {
      const { arena, offset } = slots[i]!;
      made.set(name, memory.add(present.get(name)!, base + arena, offset));
    });
  };
  const shared = scratch.filter((name) => !persistent.has(name));
  const groups = groupsOf(shared, steps, kernels);
  // Buffers of different ranks share no allocation: a rank allocates only its own.
  const ranksOf = (name: string) =>
    JSON.stringify(absences(present.get(name)!));
  for (let group = 0; group <= Math.max(...groups.values(), 0); group++) {
    const names = shared.filter((name) => groups.get(name) === group);
    for (const ranks of new Set(names.map(ranksOf))) {
      pack(names.filter((name) => ranksOf(name) === ranks), (use) => use);
    }
  }
  // These buffers are read after the program and are live until its end.
  const read = scratch.filter((name) => persistent.has(name));
  for (const ranks of new Set(read.map(ranksOf))) {
    pack(
      read.filter((name) => ranksOf(name) === ranks),
      () => ({ first: 0, last: 0 }),
    );
  }
  return {
    allocations: memory.allocations,
    buffers: Object.fromEntries(
      [...drafts.keys()].flatMap((name) =>
        made.has(name) ? [[name, made.get(name)!]] : []
      ),
    ),
  };
}
