/** Plan without kernels: an all-gather of counts, a dispatch of rows to experts, and a combine. */

import type { Device } from "../../runtime/mod.ts";
import type { Mesh } from "../../spec/mesh.ts";
import { groupSizeOf, rankCount } from "../../spec/mesh.ts";
import { EXACT } from "../../spec/numerics.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
  PlanBuffer,
  Step,
} from "../../spec/plan/plan.ts";

/** Device with the number of bytes that the host copied from and to it. */
export interface CountedDevice {
  readonly device: Device;
  readonly copied: () => number;
}

/** Counts bytes that the host copies. Mapped staging is not counted. */
export function countCopies(device: Device): CountedDevice {
  let copied = 0;
  const counting: Partial<Device> = {
    read: (buffer, offset, bytes) => {
      copied += bytes;
      return device.read(buffer, offset, bytes);
    },
    write: (buffer, offset, data) => {
      copied += data.length;
      device.write(buffer, offset, data);
    },
  };
  const counted = new Proxy(device, {
    get(target, key) {
      const value: unknown = Reflect.get(counting, key) ??
        Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return { device: counted, copied: () => copied };
}

/** Sizes of the exchanges. */
export interface ExchangeShape {
  readonly mesh: Mesh;
  readonly over: readonly string[];
  readonly rowWords: number;
  /** Maximum rows that a rank sends and receives. */
  readonly sendRows: number;
  readonly receiveRows: number;
  /** Experts per group rank. Each is sent as one chunk. */
  readonly chunks: number;
}

/** The plan and its collective steps. */
export interface ExchangePlan {
  readonly plan: Plan;
  readonly gather: AllGatherStep;
  /** `x` to y0, y1, …: one step per chunk. */
  readonly dispatches: readonly AllToAllStep[];
  /** y0, y1, … to `z`: one step per chunk. */
  readonly combines: readonly AllToAllStep[];
}

/**
 * Builds the plan. Buffers of each rank: `localCounts` [expert], `allCounts` [group rank, expert], rows `x`, `y0`, …
 * and `z`.
 */
export function exchangePlan(shape: ExchangeShape): ExchangePlan {
  const { mesh, over, rowWords, chunks } = shape;
  const groupSize = groupSizeOf(mesh, over);
  const experts = groupSize * chunks;
  const buffers: { [name: string]: PlanBuffer } = {};
  const allocations: { bytes: number }[] = [];
  const add = (name: string, words: number) => {
    buffers[name] = {
      name,
      kind: "scratch",
      dtype: "u32",
      axes: [{ axis: "word", size: words }],
      bytes: 4 * words,
      allocation: allocations.push({ bytes: 4 * words }) - 1,
      offset: 0,
    };
  };
  add("localCounts", experts);
  add("allCounts", groupSize * experts);
  add("x", shape.sendRows * rowWords);
  add("z", shape.sendRows * rowWords);
  const each = Array.from({ length: chunks }, (_, chunk) => chunk);
  for (const chunk of each) add(`y${chunk}`, shape.receiveRows * rowWords);
  const gather: AllGatherStep = {
    op: "allGather",
    ranks: "all",
    label: "counts",
    over,
    from: "localCounts",
    to: "allCounts",
    bytes: 4 * experts,
  };
  const exchange = (
    direction: "forward" | "back",
    chunk: number,
  ): AllToAllStep => {
    const ends: [string, string] = direction === "forward"
      ? ["x", `y${chunk}`]
      : [`y${chunk}`, "z"];
    return {
      op: "allToAll",
      ranks: "all",
      label: `${direction} ${chunk}`,
      over,
      direction,
      from: ends[0],
      to: ends[1],
      rowBytes: 4 * rowWords,
      counts: "allCounts",
      splits: Array.from({ length: groupSize + 1 }, (_, p) => p * chunks),
      ...chunks > 1
        ? {
          experts: Array.from(
            { length: groupSize },
            (_, p) => [p * chunks + chunk, p * chunks + chunk + 1] as const,
          ),
          handle: `${direction} ${chunk}`,
        }
        : {},
      groupRank: "localCounts",
      receivedCounts: "localCounts",
      pairRows: shape.receiveRows,
    };
  };
  const waits = (exchanges: readonly AllToAllStep[]): Step[] =>
    exchanges.flatMap(({ handle }) =>
      handle === undefined ? [] : [{ op: "wait", ranks: "all", handle }]
    );
  const dispatches = each.map((chunk) => exchange("forward", chunk));
  const combines = each.map((chunk) => exchange("back", chunk));
  const plan: Plan = {
    version: 2,
    numerics: EXACT,
    requiredLimits: {},
    requiredFeatures: [],
    mesh,
    ranks: rankCount(mesh),
    axes: {},
    counts: [],
    allocations,
    buffers,
    kernels: {},
    weights: [],
    programs: [{
      name: "main",
      inputs: {},
      outputs: {},
      steps: [
        ...[gather, ...dispatches, ...waits(dispatches)],
        ...[...combines, ...waits(combines)],
      ],
    }],
    peakBytes: allocations.reduce((n, { bytes }) => n + bytes, 0),
    staging: { local: 0, host: 0 },
  };
  return { plan, gather, dispatches, combines };
}
