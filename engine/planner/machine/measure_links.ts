/** How fast ranks exchange: between every two of them, and all at once, by the communicator that a run would use. */

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
import { computerOf, TUNING } from "../../tuning.ts";
import { bindCollectives } from "./collectives.ts";
import {
  type MeasureOptions,
  median,
  type Meter,
  REPETITIONS,
  warmUpFor,
} from "./meter.ts";
import { exchangeModel, EXPERTS_OF_RANK } from "./models.ts";

/** How many rows go from each rank to each other one, from the fewest to the most. */
export const SIZES = ["one", "few", "some", "more", "many"] as const;

/** Something for each of them. */
export type Sized<T> = { readonly [Size in typeof SIZES[number]]: T };

/** Ask the same for each. */
export function forSizes<T>(of: (size: keyof Sized<T>) => T): Sized<T> {
  const [one, few, some, more, many] = SIZES.map(of) as [T, T, T, T, T];
  return { one, few, some, more, many };
}

/** What was measured between ranks. */
export interface LinkTimes {
  /** Between two ranks alone, [rank][rank]. */
  readonly pairs: Sized<readonly (readonly number[])[]>;
  /** Between all ranks at once. */
  readonly all: Sized<number>;
  /** All ranks tell each other how many rows they will send. */
  readonly gather: number;
  /** How many rows these were, of how many bytes. */
  readonly rows: Sized<number>;
  readonly rowBytes: number;
}

/** Rows of each size: as many as libraries send in one piece, as stay in a core's cache, as stay in a larger one, and as do not. */
const ROWS: Sized<number> = {
  one: 1,
  few: 16,
  some: 128,
  more: 512,
  many: 2048,
};

/** Rows of all ranks together, at most. */
const ALL_ROWS = 1 << 17;

/**
 * Exchanges in a row that are timed together: in a step they follow each other as well, and to learn that a device is done
 * may take a millisecond, which is long against a short one.
 */
const TOGETHER: Sized<number> = {
  one: 256,
  few: 64,
  some: 64,
  more: 32,
  many: 8,
};

/** Exchanges in a row and repetitions for each pair: there may be many pairs, and a run uses the middle of all. */
const OF_PAIR = { together: 8, times: 3 };

/** Exchanges before any counts: threads that slept, or woke in another rhythm, are slow at first. */
const WARM_UP = 2000;

/** The meter, and what it measures with. */
export interface LinkMeter extends Meter<LinkTimes> {
  readonly plan: Plan;
  readonly exchange: AllToAllStep;
  /** Rows from each rank to each. */
  readonly rows: Sized<number>;
}

/** Open devices and measure the exchanges of `ranks` ranks. Ranks that are processes must all call it, and all that it returns. */
export async function openLinkMeter(
  selected: SelectedDevices,
  ranks: number,
  { now, repetitions = REPETITIONS }: MeasureOptions,
): Promise<LinkMeter> {
  const { world } = selected;
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
    // The first does not count: memory that was idle for a while is slow.
    for (let i = -1; i < times; i++) {
      await bound.idle();
      // All begin at once: what is measured is the exchange, not the wait for others.
      await world?.barrier(world, { what: "measuring links" });
      const start = now();
      for (let n = 0; n < together; n++) await collective();
      await bound.idle();
      if (i >= 0) seconds.push((now() - start) / 1000 / together);
    }
    return median(seconds);
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
  // Its own rows are moved by a rank as well. The host of one process moves rows, others messages, kernels both.
  const everyRank = (n: number): Rows =>
    n === 1 && new Set(devices).size > 1
      ? (from, to) => to === (from + 1) % ranks ? 1 : 0
      : () => n;
  // The longest last: they leave caches with nothing of what the others need.
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

/** Collectives in a row, and how often that is timed. */
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
