/**
 * Counts the memory traffic of a workgroup: sectors and lines of every access, conflicts of banks, divergence, and how
 * often a warp waits for memory.
 */

import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { sum } from "../../spec/sum.ts";
import {
  type Access,
  type LaneMeter,
  type Mask,
  runGroup,
  type RunGroupOptions,
} from "./lanes.ts";
import { BANKS } from "./operands.ts";

/** Lanes of a warp; bytes of a sector, the unit of memory traffic, and of a cache line. */
export const WARP = 32, SECTOR = 32, LINE = 128;

const WORD = 4;

/** Most words that a lane loads at once: a driver keeps registers for sums and indices. */
const REGISTERS = 64;

/** Totals of one load or store over all warps. */
export interface Site {
  readonly op: Access["op"];
  readonly name: string;
  /** Whether it accesses workgroup memory. */
  readonly shared: boolean;
  /** Instructions of warps, and their active lanes. */
  requests: number;
  lanes: number;
  /** Distinct sectors and lines of each request, and bytes that lanes asked for. */
  sectors: number;
  lines: number;
  bytes: number;
  /** Passes over workgroup memory, and the number without bank conflicts. */
  passes: number;
  conflictFree: number;
}

/**
 * Distinct sectors of a binding that a workgroup loads, and the requested bytes in them. A repeated load of a sector
 * always counts as a cache hit.
 */
export interface Touched {
  sectors: number;
  bytes: number;
}

/** Memory that a warp waits for: device memory, the L2 cache, the L1 cache, and workgroup memory. */
export type Level = typeof LEVELS[number];

/** Nearest first: of loads in flight at once, a warp waits for the farthest. */
const LEVELS = ["shared", "near", "l2", "device"] as const;

/** Numbers of waits. */
type Waits = { readonly [L in Level]: number };

/** Waits for values that were loaded before a barrier and are used after it. */
export interface Ahead {
  readonly waits: Waits;
  /** Waits for values that were loaded after the barrier and are used with them. */
  readonly late: Waits;
  /**
   * Instructions between these loads and uses, of the slowest warp between every two barriers, and the multiply-adds of
   * the workgroup's matrices.
   */
  readonly instructions: number;
  readonly multiplyAdds: number;
}

/** What a warp has executed. */
type Executed = Pick<Ahead, "instructions" | "multiplyAdds">;

/** Traffic of a workgroup. */
export interface Counts {
  readonly touched: ReadonlyMap<string, Touched>;
  /** Bytes of stored sectors. */
  readonly stored: number;
  /** Instructions per warp, and the number if all lanes were active in them. */
  readonly instructions: number;
  readonly active: number;
  /** Instructions per warp that access memory. */
  readonly accesses: number;
  /** Instructions of the slowest warp between every two barriers. */
  readonly slowest: number;
  /** Passes of requests to workgroup memory over all warps, and the number without bank conflicts. */
  readonly shared: { readonly conflictFree: number; readonly passes: number };
  /** Times that the slowest warp waits. */
  readonly waits: Waits;
  readonly ahead: Ahead;
  readonly barriers: number;
  /** Multiply-adds of subgroup matrices, and passes over workgroup memory that load and store them. */
  readonly matrices: { readonly multiplyAdds: number; readonly passes: number };
}

/** Options of `countGroup`. */
export interface CountOptions extends RunGroupOptions {
  /** Whether a binding is in device memory when the launch begins, as weights and the KV cache are. */
  readonly cold: (binding: string) => boolean;
}

/** Traffic of a workgroup, in total and by access. */
export interface GroupCounts extends Counts {
  readonly sites: ReadonlyMap<Expr | Stmt, Site>;
}

/** Counts the traffic of one workgroup. */
export function countGroup(kernel: Kernel, options: CountOptions): GroupCounts {
  const warps = Math.ceil(kernel.workgroupSize / WARP);
  const sites = new Map<Expr | Stmt, Site>();
  const touched = new Map<string, Touched>();
  /** A bit for each word of the loaded sectors of a binding. */
  const known = new Map<string, Map<number, number>>();
  const waits = { device: 0, l2: 0, near: 0, shared: 0 };
  const matrices = { multiplyAdds: 0, passes: 0 };
  const ofWarps = new Float64Array(warps);
  let [stored, active, accesses, barriers] = [0, 0, 0, 0];
  let [pending, words] = [-1, 0];
  const ahead = {
    waits: { device: 0, l2: 0, near: 0, shared: 0 },
    late: { device: 0, l2: 0, near: 0, shared: 0 },
    instructions: 0,
    multiplyAdds: 0,
  };
  /** Instructions of each warp since the last barrier, with and without weights, and those of the slowest before it. */
  const since = new Float64Array(warps), plainSince = new Float64Array(warps);
  let [slowest, plainSlowest] = [0, 0];
  /** Multiply-adds without weights. */
  let multiplied = 0;
  /**
   * Loads whose values were not used: the farthest before and after a barrier, and what had been executed. Undefined:
   * none.
   */
  let flight:
    | { level: number; late: number | undefined; from: Executed }
    | undefined;
  const loops: { weight: number; unroll: number; iterations: number }[] = [];
  let weight = 1;

  function settle(): void {
    if (pending >= 0) waits[LEVELS[pending]!] += weight;
    [pending, words] = [-1, 0];
  }
  function waitFor(level: Level): void {
    pending = Math.max(pending, LEVELS.indexOf(level));
  }
  function executed(): Executed {
    return {
      instructions: plainSlowest + Math.max(...plainSince),
      multiplyAdds: multiplied,
    };
  }
  function fly(level: Level): void {
    const at = LEVELS.indexOf(level);
    flight ??= { level: at, late: undefined, from: executed() };
    if (flight.late === undefined) flight.level = Math.max(flight.level, at);
    else flight.late = Math.max(flight.late, at);
  }
  function arrive(): void {
    if (!flight) return;
    const { level, late, from } = flight;
    flight = undefined;
    if (late === undefined) return waitFor(LEVELS[level]!);
    const { instructions, multiplyAdds } = executed();
    ahead.waits[LEVELS[level]!] += weight;
    if (late >= 0) ahead.late[LEVELS[late]!] += weight;
    ahead.instructions += weight * (instructions - from.instructions);
    ahead.multiplyAdds += weight * (multiplyAdds - from.multiplyAdds);
  }
  function issue(mask: Mask, count: number): void {
    for (let warp = 0; warp < warps; warp++) {
      const lanes = sum(mask.subarray(warp * WARP, (warp + 1) * WARP));
      if (lanes > 0) {
        ofWarps[warp]! += weight * count;
        since[warp]! += weight * count;
        plainSince[warp]! += count;
      }
      active += weight * count * lanes / WARP / warps;
    }
  }
  /** Calls `each` with the indices of the active lanes of each warp. */
  function request(
    { node, op, name, mask, index }: Access,
    shared: boolean,
    each: (site: Site, indices: readonly number[]) => void,
  ): void {
    const site = sites.get(node) ?? newSite(op, name, shared);
    sites.set(node, site);
    for (let first = 0; first < mask.length; first += WARP) {
      const indices = [...index.subarray(first, first + WARP)]
        .filter((_, i) => mask[first + i]);
      if (indices.length === 0) continue;
      accesses += weight / warps;
      site.requests += weight;
      site.lanes += weight * indices.length;
      each(site, indices);
    }
    issue(mask, 1);
  }
  function load(
    name: string,
    sectors: ReadonlyMap<number, number>,
    wait: (level: Level) => void,
  ): void {
    const seen = known.get(name) ?? new Map<number, number>();
    known.set(name, seen);
    const total = touched.get(name) ?? { sectors: 0, bytes: 0 };
    touched.set(name, total);
    wait("near");
    for (const [sector, words] of sectors) {
      const before = seen.get(sector);
      if (before === undefined) {
        total.sectors += weight;
        wait(options.cold(name) ? "device" : "l2");
      }
      total.bytes += weight * WORD * bitsSet(words & ~(before ?? 0));
      seen.set(sector, words | (before ?? 0));
    }
  }
  const meter: LaneMeter = {
    issue,
    memory: (access) => {
      if (access.op === "load") {
        if (words + access.width > REGISTERS) settle();
        words += access.width;
      }
      request(access, false, (site, indices) => {
        const asked = wordsOf(indices, access.width);
        const sectors = sectorsOf(asked);
        const lines = new Set(
          [...asked].map((w) => Math.floor(w * WORD / LINE)),
        );
        site.sectors += weight * sectors.size;
        site.lines += weight * lines.size;
        site.bytes += weight * asked.size * WORD;
        if (access.op === "store") stored += weight * sectors.size * SECTOR;
        else load(access.name, sectors, access.ahead ? fly : waitFor);
      });
    },
    arrived: arrive,
    shared: (access) => {
      request(access, true, (site, indices) => {
        site.bytes += weight * wordsOf(indices, access.width).size * WORD;
        site.passes += weight * passesOf(indices, access.width);
        site.conflictFree += weight *
          Math.ceil(indices.length * access.width / BANKS);
      });
      waitFor("shared");
    },
    barrier: () => {
      settle();
      if (flight) flight.late ??= -1;
      slowest += Math.max(...since);
      plainSlowest += Math.max(...plainSince);
      since.fill(0);
      plainSince.fill(0);
      barriers += weight;
    },
    matrices: ({ multiplyAdds, passes, accesses: count }) => {
      accesses += weight * count;
      matrices.multiplyAdds += weight * multiplyAdds;
      multiplied += multiplyAdds;
      matrices.passes += weight * passes;
      waitFor("shared");
    },
    enter: (loop) => {
      settle();
      weight *= loop.weight;
      loops.push({ weight: loop.weight, unroll: loop.unroll, iterations: 0 });
    },
    iterated: () => {
      const loop = loops.at(-1)!;
      if (++loop.iterations % loop.unroll === 0) settle();
    },
    leave: () => {
      settle();
      weight /= loops.pop()!.weight;
    },
  };
  runGroup(kernel, meter, options);
  settle();
  const conflicts = [...sites.values()].filter(({ shared }) => shared);
  return {
    sites,
    touched,
    stored,
    instructions: sum(ofWarps) / warps,
    active,
    accesses,
    slowest: slowest + Math.max(...since),
    shared: {
      conflictFree: sum(conflicts.map(({ conflictFree }) => conflictFree)),
      passes: sum(conflicts.map(({ passes }) => passes)),
    },
    waits,
    ahead,
    barriers,
    matrices,
  };
}

/** A counted workgroup and the share of the launch that it represents. */
export interface Sample {
  readonly counts: Counts;
  readonly share: number;
}

/** The mean workgroup of a launch, with the waits of the slowest. */
export function meanCounts(samples: readonly Sample[]): Counts {
  const mean = (of: (counts: Counts) => number) =>
    sum(samples.map(({ counts, share }) => share * of(counts)));
  const most = (of: (counts: Counts) => Waits): Waits => {
    const max = (level: Level) =>
      Math.max(...samples.map(({ counts }) => of(counts)[level]));
    return {
      device: max("device"),
      l2: max("l2"),
      near: max("near"),
      shared: max("shared"),
    };
  };
  const names = samples.flatMap(({ counts }) => [...counts.touched.keys()]);
  return {
    touched: new Map(
      names.map((name) => [name, {
        sectors: mean(({ touched }) => touched.get(name)?.sectors ?? 0),
        bytes: mean(({ touched }) => touched.get(name)?.bytes ?? 0),
      }]),
    ),
    stored: mean(({ stored }) => stored),
    instructions: mean(({ instructions }) => instructions),
    active: mean(({ active }) => active),
    accesses: mean(({ accesses }) => accesses),
    slowest: Math.max(...samples.map(({ counts }) => counts.slowest)),
    shared: {
      conflictFree: mean(({ shared }) => shared.conflictFree),
      passes: mean(({ shared }) => shared.passes),
    },
    waits: most(({ waits }) => waits),
    ahead: {
      waits: most(({ ahead }) => ahead.waits),
      late: most(({ ahead }) => ahead.late),
      instructions: mean(({ ahead }) => ahead.instructions),
      multiplyAdds: mean(({ ahead }) => ahead.multiplyAdds),
    },
    barriers: mean(({ barriers }) => barriers),
    matrices: {
      multiplyAdds: mean(({ matrices }) => matrices.multiplyAdds),
      passes: mean(({ matrices }) => matrices.passes),
    },
  };
}

function newSite(op: Access["op"], name: string, shared: boolean): Site {
  return {
    op,
    name,
    shared,
    requests: 0,
    lanes: 0,
    sectors: 0,
    lines: 0,
    bytes: 0,
    passes: 0,
    conflictFree: 0,
  };
}

function wordsOf(indices: readonly number[], width: number): Set<number> {
  const words = new Set<number>();
  for (const i of indices) {
    for (let n = 0; n < width; n++) words.add(i * width + n);
  }
  return words;
}

/** Sectors of words, with a bit for each word. */
function sectorsOf(words: ReadonlySet<number>): Map<number, number> {
  const each = SECTOR / WORD;
  const sectors = new Map<number, number>();
  for (const word of words) {
    const sector = Math.floor(word / each);
    sectors.set(sector, (sectors.get(sector) ?? 0) | 1 << word % each);
  }
  return sectors;
}

/**
 * Distinct words of the busiest bank: a bank delivers one word per pass, to any number of lanes. Vectors are passed for
 * as many lanes at once as have 32 words.
 */
function passesOf(indices: readonly number[], width: number): number {
  const lanes = BANKS / width;
  let passes = 0;
  for (let first = 0; first < indices.length; first += lanes) {
    const banks = new Array<number>(BANKS).fill(0);
    const words = wordsOf(indices.slice(first, first + lanes), width);
    for (const word of words) banks[word % BANKS]!++;
    passes += Math.max(...banks);
  }
  return passes;
}

function bitsSet(word: number): number {
  let n = 0;
  for (let rest = word; rest; rest &= rest - 1) n++;
  return n;
}
