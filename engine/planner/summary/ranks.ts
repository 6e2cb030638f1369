/** Memory and experts of ranks, with equal ranks together. */

import { heldAxis, partLengths } from "../../../spec/axis_parts.ts";
import {
  type Machine,
  placeRanks,
  usableMemory,
} from "../../../spec/machine.ts";
import { groupRankOf } from "../../../spec/mesh.ts";
import { type ExpertLimit, expertMemoryOf } from "./expert_memory.ts";
import { alignedOffset } from "../../../spec/layout.ts";
import { maxOverRanks, onRank, type Plan } from "../../../spec/plan/plan.ts";
import { rankClasses } from "../../../spec/plan/rank_classes.ts";
import type { RankBytes, RankClass } from "../../../spec/plan_summary.ts";

/** Options besides the plan. */
export interface RankOptions {
  readonly machine?: Machine | undefined;
  /** Number of buffers that one with this name represents. */
  readonly times: (name: string) => number;
  /** Axes of experts. */
  readonly experts: readonly string[];
  /** Memory of streamed experts. Default: all experts are in memory. */
  readonly expertMemory?: ExpertLimit | undefined;
  /** Ranks to summarize. Default: all. */
  readonly only?: readonly number[];
}

/** Ranks with equal data, in the order of their lowest rank. */
export function summarizeRanks(plan: Plan, options: RankOptions): RankClass[] {
  const shareOf = shareOfDevice(plan, options.machine);
  const staged = stagingOf(plan, options.machine);
  const equal = rankClasses(plan);
  const classes = new Map<string, RankClass>();
  const { only = Array.from({ length: plan.ranks }, (_, rank) => rank) } =
    options;
  for (const rank of only) {
    const { limit, sharing } = shareOf(rank);
    const key = `${equal[rank]} ${limit}`;
    const known = classes.get(key);
    if (known) {
      classes.set(key, { ...known, count: known.count + 1 });
      continue;
    }
    const all = bytesOf(plan, rank, {
      ...options,
      staging: onRank(staged, rank),
    });
    const { total } = all;
    const expertMemory = options.expertMemory === undefined
      ? undefined
      : expertMemoryOf(plan, { rank, total, limit, sharing }, {
        expertMemory: options.expertMemory,
        times: options.times,
      });
    const onDisk = expertMemory ? expertMemory.all - expertMemory.bytes : 0;
    const bytes = {
      ...all,
      weights: all.weights - onDisk,
      total: total - onDisk,
    };
    classes.set(key, {
      count: 1,
      first: rank,
      bytes,
      ...limit === undefined ? {} : { limit, headroom: limit - bytes.total },
      ...expertMemory ? { expertMemory } : {},
      experts: heldExperts(plan, options.experts, rank),
    });
  }
  return [...classes.values()];
}

function bytesOf(
  plan: Plan,
  rank: number,
  { times, staging }: Pick<RankOptions, "times"> & {
    readonly staging: number;
  },
): RankBytes {
  let weights = 0, state = 0;
  let scratch = onRank(plan.peakBytes, rank);
  const read = readAfterwards(plan);
  for (const buffer of Object.values(plan.buffers)) {
    const bytes = onRank(buffer.bytes, rank);
    const n = times(buffer.name);
    if (buffer.kind === "scratch") {
      // Scratch memory of a layer is reused by the next one.
      if (!read.has(buffer.name)) continue;
      scratch += (n - 1) * alignedOffset(maxOverRanks(buffer.bytes));
      continue;
    }
    if (buffer.kind === "weight") weights += n * onRank(buffer.bytes, rank);
    else if (buffer.kind === "state") state += n * bytes;
    else {
      scratch += (n - 1) * bytes;
      continue;
    }
    scratch -= bytes;
  }
  const total = weights + state + scratch + staging;
  return { weights, state, scratch, staging, total };
}

/** Scratch buffers that are live until the end of a program: the number of rows received by each exchange. */
function readAfterwards({ programs }: Plan): Set<string> {
  return new Set(
    programs.flatMap(({ steps }) =>
      steps.flatMap((step) =>
        step.op === "allToAll" ? [step.receivedCounts] : []
      )
    ),
  );
}

/** Ranks on one device exchange in place; others through their hosts. */
function stagingOf(
  { staging, ranks }: Plan,
  machine: Machine | undefined,
): Plan["peakBytes"] {
  if (machine === undefined) return staging.local;
  const devices = placeRanks(machine).slice(0, ranks)
    .map(({ device }) => device);
  return ranks > 1 && new Set(devices).size !== 1
    ? staging.host
    : staging.local;
}

/** Number of ranks of the plan on a rank's device, and their share of its usable memory. */
function shareOfDevice(
  { ranks }: Plan,
  machine: Machine | undefined,
): (
  rank: number,
) => { readonly sharing: number; readonly limit?: number | undefined } {
  if (machine === undefined) return () => ({ sharing: ranks });
  const placements = placeRanks(machine);
  const sharing = new Map<number, number>();
  for (const { device } of placements.slice(0, ranks)) {
    sharing.set(device, (sharing.get(device) ?? 0) + 1);
  }
  return (rank) => {
    // Ranks without a device are checked against a device of the last kind.
    const { kind, device } = placements[Math.min(rank, placements.length - 1)]!;
    const memory = usableMemory(machine.devices[kind]!);
    const count = sharing.get(device) ?? 1;
    return {
      sharing: count,
      limit: memory === Infinity ? undefined : Math.floor(memory / count),
    };
  };
}

/** Experts per layer on a rank: a number for each kind of layer. */
function heldExperts(
  plan: Plan,
  axes: readonly string[],
  rank: number,
): number[] {
  const held = axes.map((name) => {
    const axis = heldAxis(plan, name);
    const groupRank = groupRankOf(plan.mesh, rank, axis.over ?? []);
    return partLengths(plan, axis)?.[groupRank] ?? axis.size;
  });
  return [...new Set(held)];
}
