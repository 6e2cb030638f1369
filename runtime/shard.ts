/** Assignment of axis items to ranks, and splitting and joining of global tensors. */

import { modelAxis, partBounds } from "../spec/axis_parts.ts";
import { DataError } from "../spec/errors.ts";
import {
  blockSizes,
  groupRankOf,
  groupRanks,
  groupSizeOf,
} from "../spec/mesh.ts";
import type {
  KeysAxis,
  Plan,
  PlanAxis,
  PlanBuffer,
  Program,
} from "../spec/plan/plan.ts";
import { contextBlocks } from "../spec/shared_keys.ts";
import { tableIds } from "../spec/table.ts";
import {
  assignKeys,
  type GatheredKeys,
  gatheredKeys,
} from "./exchange/gathered_keys.ts";
import type { HostTensor } from "./host_tensor.ts";

/** Global indices of each group rank over an axis's mesh axes, in local order. */
export type Assigned = readonly Int32Array[];

/** Ranks of sequences, persistent between runs, by axis. */
export type SequenceRanks = Map<number, number>;

/** Contiguous blocks; the first `n mod parts` have one item more. */
export function assignBlocks(n: number, parts: number): Assigned {
  let next = 0;
  return blockSizes(n, parts).map((size) => {
    const block = Int32Array.from({ length: size }, (_, i) => next + i);
    next += size;
    return block;
  });
}

/**
 * Assigns entire sequences, longest first, to the group rank with the fewest items; ties go to the lower group rank and
 * the lower sequence. A sequence with a rank stays there; new ones are added.
 */
export function assignSequences(
  sequences: ArrayLike<number>,
  parts: number,
  rankOf: SequenceRanks,
): Assigned {
  const lengths = new Map<number, number>();
  for (let i = 0; i < sequences.length; i++) {
    lengths.set(sequences[i]!, (lengths.get(sequences[i]!) ?? 0) + 1);
  }
  const loads = new Array<number>(parts).fill(0);
  for (const [sequence, length] of lengths) {
    const to = rankOf.get(sequence);
    if (to !== undefined) loads[to]! += length;
  }
  const fresh = [...lengths].filter(([sequence]) => !rankOf.has(sequence))
    .sort(([a, m], [b, n]) => n - m || a - b);
  for (const [sequence, length] of fresh) {
    const to = loads.indexOf(Math.min(...loads));
    rankOf.set(sequence, to);
    loads[to]! += length;
  }
  const assigned = loads.map((load) => new Int32Array(load));
  const filled = new Array<number>(parts).fill(0);
  for (let i = 0; i < sequences.length; i++) {
    const to = rankOf.get(sequences[i]!)!;
    assigned[to]![filled[to]!++] = i;
  }
  return assigned;
}

/** Lengths and assignments of all axes in one run. */
export interface RunAxes {
  /** Global length of an axis. */
  length(axis: string): number;
  /** Global indices on a rank, in local order. Undefined: all. */
  local(axis: string, rank: number): Int32Array | undefined;
  /** Global indices on each group rank of a placed axis. Undefined for others. */
  assigned(axis: string): Assigned | undefined;
  /** For each global index of a placed axis, its local index on its rank. Undefined for others. */
  numbers(axis: string): Int32Array | undefined;
  /** Whether ranks have different items of a buffer's axis. */
  split(buffer: PlanBuffer, i: number): boolean;
  /** The keys that a rank gathers, for a `KeysAxis`. Undefined: none. */
  gathered(axis: string, rank: number): GatheredKeys | undefined;
}

/** Whether ranks have different items of a buffer's axis. */
export function isSplit(plan: Plan, buffer: PlanBuffer, i: number): boolean {
  const { axis } = buffer.axes[i]!;
  return (plan.axes[axis]?.over?.length ?? 0) > 0;
}

/** State that persists between runs. */
export interface LastingAxes {
  /** Ranks of sequences, by axis. */
  readonly sequenceRanks: Map<string, SequenceRanks>;
  /** Axes with a table: the items of each group rank. */
  readonly tables: Map<string, Assigned>;
  /** The same axes: the local index of each item on its group rank. */
  readonly numbers: Map<string, Int32Array>;
}

/** Initial state. */
export function lastingAxes(): LastingAxes {
  return { sequenceRanks: new Map(), tables: new Map(), numbers: new Map() };
}

/** Assigns every placed axis of the plan, given the lengths of this run. */
export function assignAxes(
  plan: Plan,
  lengths: ReadonlyMap<string, number>,
  inputs: { readonly [name: string]: HostTensor },
  lasting = lastingAxes(),
): RunAxes {
  const { sequenceRanks } = lasting;
  const assigned = new Map<string, Assigned>();
  const length = (axis: string) => {
    const name = modelAxis(plan, axis);
    return lengths.get(name) ??
      (plan.axes[name]?.dynamic && !plan.axes[name]?.exact
        ? 0
        : plan.axes[name]?.size ?? 0);
  };
  const partsOf = (name: string): Assigned => {
    const axis = plan.axes[name]!;
    const made = axis.table ? lasting.tables : assigned;
    const known = made.get(name);
    if (known) return known;
    const parts = shard(name, axis);
    made.set(name, parts);
    return parts;
  };
  const shard = (name: string, axis: PlanAxis): Assigned => {
    const { over = [], table, assignment, size } = axis;
    const parts = groupSizeOf(plan.mesh, over);
    if (table) {
      return Array.from(
        { length: parts },
        (_, at) => Int32Array.from(tableIds({ size, table }, parts, at)),
      );
    }
    switch (assignment?.by) {
      case "items": {
        const key = keyOf(inputs, { name, input: assignment.input, length });
        const items = assignItems(
          key,
          partsOf(assignment.of),
          length(assignment.of),
        );
        const bounds = partBounds(plan, axis);
        const full = items.findIndex((local, at) => local.length > bounds[at]!);
        if (full < 0) return items;
        throw new DataError(
          `Cannot assign axis '${name}' to ranks: group rank ${full} has ${
            items[full]!.length
          } items, and room for ${
            bounds[full]
          }. Give each item of '${assignment.of}' at most ${assignment.each}`,
        );
      }
      case "sequence": {
        const key = keyOf(inputs, { name, input: assignment.input, length });
        const rankOf = sequenceRanks.get(name) ?? new Map<number, number>();
        sequenceRanks.set(name, rankOf);
        return assignSequences(key, parts, rankOf);
      }
      case "keys":
        return assignKeys(assignment, tokensOf(assignment), {
          groups: keysOf(assignment),
          ranks: contextBlocks(plan, assignment).ranks,
        });
      case "group": {
        const apart = plan.axes[assignment.of]!.over ?? [];
        const mesh = apart.map((name) =>
          plan.mesh.find((axis) => axis.name === name)!
        );
        const held: number[][] = Array.from({ length: parts }, () => []);
        partsOf(assignment.of).forEach((items, groupRank) =>
          held[groupRankOf(mesh, groupRank, over)]!.push(...items)
        );
        return held.map((items) => Int32Array.from(items));
      }
      default: {
        if (assignment?.within === undefined) {
          return assignBlocks(length(name), parts);
        }
        const outer = partsOf(assignment.within);
        return outer.flatMap((items) => blocksOf(items, parts / outer.length));
      }
    }
  };
  const placed = (name: string): Assigned | undefined =>
    plan.axes[name]?.over?.length || plan.axes[name]?.assignment
      ? partsOf(name)
      : undefined;
  const numbered = new Map<string, Int32Array>();
  const numbers = (axis: string) => {
    const made = plan.axes[axis]?.table ? lasting.numbers : numbered;
    const known = made.get(axis);
    const parts = known ? undefined : placed(axis);
    if (parts) made.set(axis, numbersIn(parts, length(axis)));
    return known ?? made.get(axis);
  };
  const tokensOf = ({ of }: KeysAxis) =>
    placed(of) ?? assignBlocks(length(of), 1);
  const gathered = new Map<string, (GatheredKeys | undefined)[]>();
  const keysOf = (axis: KeysAxis) => {
    const key = JSON.stringify({ ...axis, part: undefined });
    const known = gathered.get(key);
    if (known) return known;
    const local = numbers(axis.sequence);
    const made = gatheredKeys(plan, axis, {
      parts: tokensOf(axis),
      inputs,
      numberOf: (sequence) => local?.[sequence] ?? sequence,
    });
    gathered.set(key, made);
    return made;
  };
  return {
    length,
    assigned: placed,
    numbers,
    split: (buffer, i) => isSplit(plan, buffer, i),
    local(name, rank) {
      const over = plan.axes[name]?.over;
      return placed(name)?.[groupRankOf(plan.mesh, rank, over ?? [])];
    },
    gathered(name, rank) {
      const { assignment } = plan.axes[name]!;
      if (assignment?.by !== "keys") return undefined;
      const { over = [] } = plan.axes[assignment.of]!;
      return keysOf(assignment)[groupRankOf(plan.mesh, rank, over)];
    },
  };
}

/**
 * The rank of each item of a program's inputs, the first of those that share it: `{ "rank of each token": "0 0 1" }`.
 * Replicated axes are omitted.
 */
export function itemRanks(
  plan: Plan,
  { inputs }: Program,
  axes: RunAxes,
): { readonly [what: string]: string } {
  const names = new Set(
    Object.values(inputs).flatMap((port) => port.axes.slice(0, 1)),
  );
  return Object.fromEntries([...names].flatMap((name) => {
    const assigned = axes.assigned(name);
    if (assigned === undefined) return [];
    const { over = [] } = plan.axes[name]!;
    const ranks = groupRanks(plan.mesh, over);
    const ranksOfItems = new Int32Array(axes.length(name));
    assigned.forEach((items, groupRank) => {
      const rank = ranks.indexOf(groupRank);
      for (const item of items) ranksOfItems[item] = rank;
    });
    return [[`rank of each ${modelAxis(plan, name)}`, ranksOfItems.join(" ")]];
  }));
}

/** The values that determine the assignment of an axis; not needed if it is empty. */
function keyOf(
  inputs: { readonly [name: string]: HostTensor },
  { name, input, length }: {
    readonly name: string;
    readonly input: string;
    readonly length: (axis: string) => number;
  },
): ArrayLike<number> {
  const key = inputs[input];
  if (key) return key.data;
  if (length(name) === 0) return [];
  throw new DataError(
    `Cannot assign axis '${name}' to ranks: there is no input '${input}' that assigns its items. Give it`,
  );
}

/** Items in contiguous blocks. */
function blocksOf(items: Int32Array, parts: number): Int32Array[] {
  let next = 0;
  return blockSizes(items.length, parts).map((size) =>
    items.subarray(next, next += size)
  );
}

/** Assigns each item to the group rank of the item of another axis that it numbers. */
function assignItems(
  numbers: ArrayLike<number>,
  parts: Assigned,
  length: number,
): Assigned {
  const to = new Int32Array(length);
  parts.forEach((part, groupRank) => {
    for (const item of part) to[item] = groupRank;
  });
  const assigned: number[][] = parts.map(() => []);
  for (let i = 0; i < numbers.length; i++) {
    assigned[to[numbers[i]!]!]!.push(i);
  }
  return assigned.map((items) => Int32Array.from(items));
}

/** For each global index, its local index on its group rank. */
function numbersIn(parts: Assigned, length: number): Int32Array {
  const numbers = new Int32Array(length);
  for (const part of parts) part.forEach((item, i) => numbers[item] = i);
  return numbers;
}

/** One axis of a sharded tensor: its global length, the local items, and the local stride's length. */
export interface SplitAxis {
  readonly length: number;
  readonly local: Int32Array | undefined;
  /** Number of items in local memory; if the axis is not the first, its stride. */
  readonly room: number;
}

/** Calls `run(globalOffset, localOffset, count)` for every contiguous run of elements on a rank. */
export function forEachRun(
  axes: readonly SplitAxis[],
  run: (globalOffset: number, localOffset: number, count: number) => void,
): void {
  // Trailing axes with equal layouts on both sides form one run.
  let inner = axes.length;
  let count = 1;
  while (inner > 0) {
    const axis = axes[inner - 1]!;
    if (axis.local || axis.length !== axis.room) break;
    count *= axis.length;
    inner--;
  }
  if (count === 0) return;
  if (inner === 0) return run(0, 0, count);
  const visit = (i: number, global: number, local: number): void => {
    const { length, local: items, room } = axes[i]!;
    const n = items ? items.length : length;
    for (let j = 0, next = 0; j < n; j = next) {
      next = j + 1;
      const g = global * length + (items ? items[j]! : j);
      const l = local * room + j;
      if (i < inner - 1) visit(i + 1, g, l);
      else {
        // Consecutive items are consecutive on both sides.
        while (next < n && (!items || items[next] === items[next - 1]! + 1)) {
          next++;
        }
        run(g * count, l * count, (next - j) * count);
      }
    }
  };
  visit(0, 0, 0);
}

/** The number of elements from the start of local memory to its last element. */
export function localSpan(axes: readonly SplitAxis[]): number {
  if (axes.length === 0) return 1;
  const [first, ...rest] = axes as [SplitAxis, ...SplitAxis[]];
  const held = first.local ? first.local.length : first.length;
  return rest.reduce((n, axis) => n * axis.room, held);
}
