/** Measures exchanges between ranks: between every two, and all at once, by the communicator of a run. */

import { compile } from "../../../compiler/mod.ts";
import { bytesOf } from "../../../runtime/host_tensor.ts";
import type { RunCounts } from "../../../runtime/mod.ts";
import type { MpiWorld } from "../../../runtime/mpi/mod.ts";
import { invariant } from "../../../spec/errors.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
} from "../../../spec/plan/plan.ts";
import { range } from "../../../spec/range.ts";
import { sum } from "../../../spec/sum.ts";
import type { SelectedDevices } from "../../devices.ts";
import { computerOf, TUNING } from "../../tune/tuning.ts";
import { bindCollectives, type BoundCollectives } from "./collectives.ts";
import {
  type MeasureOptions,
  median,
  type Meter,
  REPETITIONS,
  reportedMedian,
  warmUpFor,
} from "./meter.ts";
import { exchangeModel, EXPERTS_OF_RANK } from "./models.ts";

/** Numbers of rows from each rank to each other, ascending. */
export const SIZES = ["one", "few", "some", "more", "many"] as const;

/** A value per number of rows. */
export type Sized<T> = { readonly [Size in typeof SIZES[number]]: T };

/** Applies a function to each number of rows. */
export function forSizes<T>(of: (size: keyof Sized<T>) => T): Sized<T> {
  const [one, few, some, more, many] = SIZES.map(of) as [T, T, T, T, T];
  return { one, few, some, more, many };
}

/** Measurements between ranks. */
export interface LinkTimes {
  /** Between two ranks alone, [rank][rank]. */
  readonly pairs: Sized<readonly (readonly number[])[]>;
  /** Between all ranks at once. */
  readonly all: Sized<number>;
  /** Gather of row counts among all ranks. */
  readonly gather: number;
  /** The numbers of rows, and bytes per row. */
  readonly rows: Sized<number>;
  readonly rowBytes: number;
}

/** Rows of each size: sent by libraries in one piece, fitting a core's cache, fitting a larger cache, and larger. */
const ROWS: Sized<number> = {
  one: 1,
  few: 16,
  some: 128,
  more: 512,
  many: 2048,
};

/** Maximum rows of all ranks together. */
const ALL_ROWS = 1 << 17;

/**
 * Consecutive exchanges per timing: they are consecutive in a step as well, and detecting the end of device work may
 * take a millisecond, which is long compared with a short exchange.
 */
const TOGETHER: Sized<number> = {
  one: 256,
  few: 64,
  some: 64,
  more: 32,
  many: 8,
};

/** Consecutive exchanges and repetitions per pair: there may be many pairs, and the median of all is used. */
const OF_PAIR = { together: 8, times: 3 };

/** Warm-up exchanges: threads that slept, or had another rhythm, are slow at first. */
const WARM_UP = 2000;

/** The meter, and its parameters. */
export interface LinkMeter extends Meter<LinkTimes> {
  readonly plan: Plan;
  readonly exchange: AllToAllStep;
  /** Rows from each rank to each. */
  readonly rows: Sized<number>;
}

/**
 * Opens devices and measures the exchanges of `ranks` ranks. All processes must call it, and all returned functions.
 */
export async function openLinkMeter(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureOptions,
): Promise<LinkMeter> {
  const compiled = await exchangePlan(selected, ranks);
  const { plan, gather, exchange, rows } = compiled;
  const { world } = selected;
  const { devices, close } = await selected.open(plan);
  const unique = new Set(devices);
  const bound = await bindCollectives(plan, [gather, exchange], {
    devices,
    world,
  });
  const links: Links = {
    ...compiled,
    bound,
    world,
    options,
    separate: unique.size > 1,
  };
  return {
    plan,
    exchange,
    rows,
    measure: () => measureLinks(links),
    close: async () => {
      for (const device of unique) device.destroy();
      await close();
    },
  };
}

/** A plan that exchanges rows between all ranks, and its collectives. */
interface ExchangePlan extends Pick<LinkMeter, "plan" | "exchange" | "rows"> {
  /** Gathers the row counts of the exchange. */
  readonly gather: AllGatherStep;
}

/** Compiles the exchange between `ranks` ranks. */
async function exchangePlan(
  selected: SelectedDevices,
  ranks: number,
): Promise<ExchangePlan> {
  const max = Math.max(2, Math.floor(ALL_ROWS / ranks ** 2));
  const rows = forSizes((size) => Math.min(ROWS[size], max));
  const plan = await compile(exchangeModel(ranks, rows.many), {
    mesh: { ep: ranks },
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { steps } = plan.programs[0]!;
  const gather = steps.find((step): step is AllGatherStep =>
    step.op === "allGather"
  );
  const exchange = steps.find((step): step is AllToAllStep =>
    step.op === "allToAll"
  );
  invariant(gather && exchange, "a dispatch without an exchange");
  return { plan, gather, exchange, rows };
}

/** An exchange bound on open devices. */
interface Links extends ExchangePlan {
  /** Its gather and its exchange. */
  readonly bound: BoundCollectives;
  readonly world: MpiWorld | undefined;
  readonly options: MeasureOptions;
  /** Whether ranks of this process have separate devices. */
  readonly separate: boolean;
}

/** Number of rows that rank `from` sends to rank `to`. */
type RowCounts = (from: number, to: number) => number;

/** Consecutive collectives, and the number of timings. Default: the number of repetitions. */
interface Repeated {
  readonly together: number;
  readonly times?: number;
}

async function measureLinks(links: Links): Promise<LinkTimes> {
  const { exchange, rows, options: { repetitions = REPETITIONS } } = links;
  await timeExchange(links, everyRank(links, 1), {
    together: Math.ceil(warmUpFor(WARM_UP, repetitions)),
    times: 0,
  });
  return {
    rows,
    rowBytes: exchange.rowBytes,
    gather: await timeGather(links, everyRank(links, 1), {
      together: TOGETHER.one,
    }),
    all: await inOrder((size) =>
      timeExchange(links, everyRank(links, rows[size]), {
        together: TOGETHER[size],
      })
    ),
    pairs: await inOrder((size) => everyPair(links, rows[size])),
  };
}

/** Measures each number of rows. The largest is last: it evicts everything else from caches. */
async function inOrder<T>(
  measure: (size: keyof Sized<T>) => Promise<T>,
): Promise<Sized<T>> {
  const times = new Map<string, T>();
  for (const size of SIZES) times.set(size, await measure(size));
  return forSizes((size) => times.get(size)!);
}

/**
 * The counts of an exchange between all ranks. A rank also moves its own rows. One row between separate devices is sent
 * to the next rank only.
 */
function everyRank({ plan, separate }: Links, n: number): RowCounts {
  return n === 1 && separate
    ? (from, to) => to === (from + 1) % plan.ranks ? 1 : 0
    : () => n;
}

/** The seconds of an exchange of `n` rows between every two ranks alone, [rank][rank]. */
async function everyPair(links: Links, n: number): Promise<number[][]> {
  const times = ranksOf(links).map((_, __, all) => all.map(() => 0));
  for (let a = 0; a < times.length; a++) {
    for (let b = a + 1; b < times.length; b++) {
      const pair = await timeExchange(
        links,
        (from, to) => from === a && to === b || from === b && to === a ? n : 0,
        OF_PAIR,
      );
      times[a]![b] = times[b]![a] = pair;
    }
  }
  return times;
}

/** The seconds of an exchange of rows. */
async function timeExchange(
  links: Links,
  count: RowCounts,
  repeated: Repeated,
): Promise<number> {
  const { bound, gather } = links;
  for (const memory of bound.memories) {
    const counts = Uint32Array.from(
      ranksOf(links).flatMap((to) => split(count(memory.rank, to))),
    );
    memory.device.write(memory.buffer(gather.from), 0, bytesOf(counts));
  }
  const [gatherCounts, exchangeRows] = bound.execute;
  const lengths = lengthsOf(links, count);
  await gatherCounts!(lengths);
  return await timeCollective(links, () => exchangeRows!(lengths), repeated);
}

/** The seconds of the gather of row counts. */
async function timeGather(
  links: Links,
  count: RowCounts,
  repeated: Repeated,
): Promise<number> {
  const [gatherCounts] = links.bound.execute;
  const lengths = lengthsOf(links, count);
  return await timeCollective(links, () => gatherCounts!(lengths), repeated);
}

/** The seconds of a collective. */
async function timeCollective(
  { bound, world, options }: Links,
  collective: () => void | Promise<void>,
  { together, times = options.repetitions ?? REPETITIONS }: Repeated,
): Promise<number> {
  const seconds: number[] = [];
  // The first does not count: memory that was idle is slow.
  for (let i = -1; i < times; i++) {
    await bound.idle();
    // All ranks start at the same time, so that only the exchange is measured.
    await world?.barrier(world, { what: "measuring links" });
    const start = options.now();
    for (let n = 0; n < together; n++) await collective();
    await bound.idle();
    if (i >= 0) seconds.push((options.now() - start) / 1000 / together);
  }
  return times > 1
    ? reportedMedian(seconds, "exchanges", options)
    : median(seconds);
}

/** The numbers of rows that ranks send. */
function lengthsOf(links: Links, count: RowCounts): RunCounts {
  const ranks = ranksOf(links);
  return ranks.map((from) => {
    const sent = sum(ranks.map((to) => count(from, to)));
    return links.plan.counts.map(() => sent);
  });
}

function ranksOf({ plan }: Links): number[] {
  return range(plan.ranks);
}

/** Rows for each of a rank's experts. */
function split(rows: number): number[] {
  return Array.from(
    { length: EXPERTS_OF_RANK },
    (_, e) => Math.floor((rows + e) / EXPERTS_OF_RANK),
  );
}
