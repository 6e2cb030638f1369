/** How fast ranks exchange: between every two of them, and all at once, by the communicator that a run would use. */

import { compile } from "../../compiler/mod.ts";
import {
  type Communicator,
  createCommunicator,
  type Device,
  RankMemory,
  type RunCounts,
  StagingAccount,
} from "../../runtime/mod.ts";
import { createMpiCommunicator, type MpiWorld } from "../../runtime/mpi/mod.ts";
import { kernelsByKey } from "../../runtime/kernel_key.ts";
import { bytesOf } from "../../runtime/host_tensor.ts";
import { writeTables } from "../../runtime/tables.ts";
import { invariant } from "../../spec/errors.ts";
import type { AllGatherStep, AllToAllStep, Plan } from "../../spec/plan.ts";
import type { SelectedDevices } from "../devices.ts";
import { computerOf, TUNING } from "../tuning.ts";
import { type MeasureOptions, median } from "./measure_device.ts";
import { exchangeModel } from "./models.ts";

/** Seconds of exchanges. */
export interface LinkTimes {
  /** One row from each of two ranks to the other, [rank][rank]. */
  readonly short: readonly (readonly number[])[];
  /** `rows` rows, [rank][rank]. */
  readonly long: readonly (readonly number[])[];
  /** The same between all ranks at once. */
  readonly allShort: number;
  readonly allLong: number;
  readonly rows: number;
  readonly rowBytes: number;
}

/** Rows that two ranks exchange, and those of all ranks together, at most. */
const ROWS = 512, ALL_ROWS = 1 << 15;

/** Measure the exchanges of `ranks` ranks. Ranks that are processes must all call it. */
export async function measureLinks(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureOptions,
): Promise<LinkTimes> {
  const rows = Math.min(ROWS, Math.max(2, Math.floor(ALL_ROWS / ranks ** 2)));
  const plan = await compile(exchangeModel(ranks, rows), {
    mesh: { ep: ranks },
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { devices, close } = await selected.open(plan);
  try {
    const bound = await bindExchange(plan, devices, selected.world);
    const times = (count: (from: number, to: number) => number) =>
      timeExchange(bound, count, options);
    const nothing = () =>
      Array.from({ length: ranks }, () => new Array<number>(ranks).fill(0));
    const [short, long] = [nothing(), nothing()];
    for (let a = 0; a < ranks; a++) {
      for (let b = a + 1; b < ranks; b++) {
        const pair = (n: number) => (from: number, to: number) =>
          from === a && to === b || from === b && to === a ? n : 0;
        short[a]![b] = short[b]![a] = await times(pair(1));
        long[a]![b] = long[b]![a] = await times(pair(rows));
      }
    }
    return {
      ...{ short, long, rows },
      allShort: await times((from, to) => from === to ? 0 : 1),
      allLong: await times((from, to) => from === to ? 0 : rows),
      rowBytes: bound.exchange.rowBytes,
    };
  } finally {
    for (const device of new Set(devices)) device.destroy();
    await close();
  }
}

/** The exchange of a dispatch, ready to be carried out by itself. */
interface BoundExchange {
  readonly gather: AllGatherStep;
  readonly exchange: AllToAllStep;
  readonly memories: readonly RankMemory[];
  readonly ranks: number;
  readonly world: MpiWorld | undefined;
  gatherCounts(): void | Promise<void>;
  carryOut(): void | Promise<void>;
}

async function bindExchange(
  plan: Plan,
  devices: readonly Device[],
  world: MpiWorld | undefined,
): Promise<BoundExchange> {
  for (const device of new Set(devices)) {
    await device.prepare(kernelsByKey(plan));
  }
  const memories = devices.map((device, i) =>
    new RankMemory(plan, device, world?.rank ?? i)
  );
  for (const memory of memories) writeTables(plan, memory);
  const { steps } = plan.programs[0]!;
  const gather = steps.find((step): step is AllGatherStep =>
    step.op === "allGather"
  );
  const exchange = steps.find((step): step is AllToAllStep =>
    step.op === "allToAll"
  );
  invariant(gather && exchange, "a dispatch without an exchange");
  const communicator: Communicator = world
    ? await createMpiCommunicator(world, plan)
    : createCommunicator();
  const staging = new StagingAccount();
  const context = { plan, staging, sent: undefined };
  const gatherCounts = communicator.bind(gather, memories, context);
  const carryOut = communicator.bind(exchange, memories, context);
  staging.allocate(1);
  const lengths: RunCounts = Array.from(
    { length: plan.ranks },
    () => plan.counts.map((axis) => plan.axes[axis]!.size / plan.ranks),
  );
  return {
    ...{ gather, exchange, memories, world, ranks: plan.ranks },
    gatherCounts: () => gatherCounts(lengths),
    carryOut: () => carryOut(lengths),
  };
}

/** The middle of the seconds that an exchange takes in which rank `from` sends `count(from, to)` rows to rank `to`. */
async function timeExchange(
  { gather, memories, ranks, world, ...bound }: BoundExchange,
  count: (from: number, to: number) => number,
  { now, repetitions = 9 }: MeasureOptions,
): Promise<number> {
  for (const memory of memories) {
    const counts = Uint32Array.from(
      { length: ranks },
      (_, to) => count(memory.rank, to),
    );
    memory.device.write(memory.buffer(gather.from), 0, bytesOf(counts));
  }
  await bound.gatherCounts();
  const devices = new Set(memories.map(({ device }) => device));
  const idle = async () => {
    for (const device of devices) await device.idle();
  };
  const times: number[] = [];
  for (let i = -2; i < repetitions; i++) {
    await idle();
    // All begin at once: what is measured is the exchange, not the wait for others.
    await world?.barrier(world, { what: "measuring links" });
    const start = now();
    await bound.carryOut();
    await idle();
    if (i >= 0) times.push((now() - start) / 1000);
  }
  return median(times);
}
