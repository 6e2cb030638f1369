/** Measures exchanges between ranks: between every two, and all at once, by the communicator of a run. */

import { compile } from "../../../compiler/mod.ts";
import { bytesOf } from "../../../runtime/host_tensor.ts";
import type { RunCounts } from "../../../runtime/mod.ts";
import { invariant } from "../../../spec/errors.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
} from "../../../spec/plan/plan.ts";
import type { SelectedDevices } from "../../devices.ts";
import { computerOf, TUNING } from "../../tune/tuning.ts";
import { bindCollectives } from "./collectives.ts";
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
  const { world } = selected;
  const { now, repetitions = REPETITIONS } = options;
  const max = Math.max(2, Math.floor(ALL_ROWS / ranks ** 2));
  const rows = forSizes((size) => Math.min(ROWS[size], max));
  const plan = await compile(exchangeModel(ranks, rows.many), {
    mesh: { ep: ranks },
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { devices, close } = await selected.open(plan);
  const { steps } = plan.programs[0]!;
  const gather = steps.find((step): step is AllGatherStep =>
    step.op === "allGather"
  );
  const exchange = steps.find((step): step is AllToAllStep =>
    step.op === "allToAll"
  );
  invariant(gather && exchange, "a dispatch without an exchange");
  const bound = await bindCollectives(plan, [gather, exchange], {
    devices,
    world,
  });
  const [gatherCounts, execute] = bound.execute;
  type Rows = (from: number, to: number) => number;
  const everyone = Array.from({ length: ranks }, (_, rank) => rank);
  const lengthsOf = (count: Rows): RunCounts =>
    everyone.map((from) => {
      const sent = everyone.reduce((n, to) => n + count(from, to), 0);
      return plan.counts.map(() => sent);
    });

  /** The seconds of a collective. */
  async function time(
    collective: () => void | Promise<void>,
    { together, times = repetitions }: Repeated,
  ): Promise<number> {
    const seconds: number[] = [];
    // The first does not count: memory that was idle is slow.
    for (let i = -1; i < times; i++) {
      await bound.idle();
      // All ranks start at the same time, so that only the exchange is measured.
      await world?.barrier(world, { what: "measuring links" });
      const start = now();
      for (let n = 0; n < together; n++) await collective();
      await bound.idle();
      if (i >= 0) seconds.push((now() - start) / 1000 / together);
    }
    return times > 1
      ? reportedMedian(seconds, "exchanges", options)
      : median(seconds);
  }

  /** The seconds of an exchange in which rank `from` sends `count(from, to)` rows to rank `to`. */
  async function exchangeRows(
    count: Rows,
    repeated: Repeated,
  ): Promise<number> {
    for (const memory of bound.memories) {
      const counts = Uint32Array.from(
        everyone.flatMap((to) => split(count(memory.rank, to))),
      );
      memory.device.write(memory.buffer(gather!.from), 0, bytesOf(counts));
    }
    const lengths = lengthsOf(count);
    await gatherCounts!(lengths);
    return await time(() => execute!(lengths), repeated);
  }

  const everyPair = async (n: number) => {
    const times = Array.from(
      { length: ranks },
      () => new Array<number>(ranks).fill(0),
    );
    for (let a = 0; a < ranks; a++) {
      for (let b = a + 1; b < ranks; b++) {
        const pair = await exchangeRows(
          (from, to) =>
            from === a && to === b || from === b && to === a ? n : 0,
          OF_PAIR,
        );
        times[a]![b] = times[b]![a] = pair;
      }
    }
    return times;
  };
  // A rank also moves its own rows. The host of one process moves rows, others messages, kernels both.
  const everyRank = (n: number): Rows =>
    n === 1 && new Set(devices).size > 1
      ? (from, to) => to === (from + 1) % ranks ? 1 : 0
      : () => n;
  // The longest last: they evict everything else from caches.
  const sized = async <T>(
    measure: (rows: number, together: number) => Promise<T>,
  ): Promise<Sized<T>> => {
    const times = new Map<string, T>();
    for (const size of SIZES) {
      times.set(size, await measure(rows[size], TOGETHER[size]));
    }
    return forSizes((size) => times.get(size)!);
  };
  return {
    plan,
    exchange,
    rows,
    measure: async () => {
      await exchangeRows(everyRank(1), {
        together: Math.ceil(warmUpFor(WARM_UP, repetitions)),
        times: 0,
      });
      const lengths = lengthsOf(everyRank(1));
      const gather = await time(() => gatherCounts!(lengths), {
        together: TOGETHER.one,
      });
      return {
        rows,
        rowBytes: exchange.rowBytes,
        gather,
        all: await sized((n, together) =>
          exchangeRows(everyRank(n), { together })
        ),
        pairs: await sized(everyPair),
      };
    },
    close: async () => {
      for (const device of new Set(devices)) device.destroy();
      await close();
    },
  };
}

/** Consecutive collectives, and the number of timings. */
interface Repeated {
  readonly together: number;
  readonly times?: number;
}

/** Rows for each of a rank's experts. */
function split(rows: number): number[] {
  return Array.from(
    { length: EXPERTS_OF_RANK },
    (_, e) => Math.floor((rows + e) / EXPERTS_OF_RANK),
  );
}
