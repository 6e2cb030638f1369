/**
 * One expert layer with complete exchanges and with chunks: `rank.ts RANKS DEVICE TOKENS RUNS CHUNKS…`. RANKS is the
 * number of ranks in this process, or 0 for one rank of an MPI job. Prints a line of JSON.
 */

import { availableParallelism } from "node:os";
import process from "node:process";
import { compile } from "../../compiler/mod.ts";
import { TUNING } from "../../engine/tune/tuning.ts";
import {
  type Communicator,
  createCommunicator,
} from "../../runtime/exchange/communicator.ts";
import { createCpuDevice, openCpuPool } from "../../runtime/cpu/mod.ts";
import {
  createGpuDevice,
  createSession,
  type Device,
  listAdapters,
  openSafetensors,
} from "../../runtime/mod.ts";
import { createMpiCommunicator, openWorld } from "../../runtime/mpi/mod.ts";
import { onRank, type Plan } from "../../spec/mod.ts";
import { watchDevice } from "../../test/helpers/sessions.ts";
import { expertLayer } from "../models.ts";
import { randomValues, randomWeights } from "../session.ts";
import { withoutRows } from "../../runtime/outputs.ts";

/** The output of rank 0. */
export interface Overlapped {
  readonly device: string;
  readonly chunks: readonly Chunked[];
}

/** Milliseconds of a run and of its transfers, for one number of chunks. */
export interface Chunked {
  readonly chunks: number;
  readonly runs: readonly number[];
  /**
   * Time from the computation of the sent rows until the received rows have arrived. It includes the wait for slower
   * ranks.
   */
  readonly transfers: readonly number[];
  /** The part of it in which the device computed. Unknown if the device's clock is not the host's. */
  readonly hidden?: readonly number[];
  /** Device memory. */
  readonly bytes: number;
}

const [here, where, tokens, repeat, ...chunks] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  ...string[],
];
const world = here === "0" ? await openWorld() : undefined;
const ranks = world?.size ?? Number(here);

async function openDevices(plan: Plan): Promise<Device[]> {
  const count = world ? 1 : ranks;
  if (where === "cpu") {
    const threads = Math.max(1, Math.floor(availableParallelism() / ranks));
    const pool = await openCpuPool(threads);
    return await Promise.all(
      Array.from(
        { length: count },
        () => createCpuDevice({ pool, timestamps: true }),
      ),
    );
  }
  const adapters = await listAdapters();
  return await Promise.all(
    Array.from(
      { length: count },
      () =>
        createGpuDevice(adapters[Number(where)]!, {
          limits: plan.requiredLimits,
          features: plan.requiredFeatures,
        }),
    ),
  );
}

/** A time range in milliseconds. */
interface Interval {
  start: number;
  end: number;
}

/** Records when the rows of an exchange are ready, and when it ends. */
class Transfers {
  #all: Interval[] = [];
  #current: Interval | undefined;

  /** Returns a communicator with recorded exchanges, for devices that `watch` returned. */
  of(real: Communicator): Communicator {
    return {
      ...real,
      bind: (step, group, context) => {
        const exchange = real.bind(step, group, context);
        return async (counts) => {
          const transfer = { start: 0, end: 0 };
          this.#current = transfer;
          const done = exchange(counts);
          this.#current = undefined;
          await done;
          transfer.end = performance.now();
          this.#all.push(transfer);
        };
      },
    };
  }

  watch(device: Device): Device {
    return watchDevice(device, {
      createStaging: (use, bytes) => {
        const staging = device.createStaging(use, bytes);
        return {
          bytes: staging.bytes,
          open: async (buffer, spans) => {
            const transfer = this.#current;
            const lent = await staging.open(buffer, spans);
            if (transfer) transfer.start = performance.now();
            return lent;
          },
          close: () => staging.close(),
        };
      },
    });
  }

  take(): Interval[] {
    const all = this.#all;
    this.#all = [];
    return all;
  }
}

/** Returns the union of intervals without overlaps. */
function union(intervals: readonly Interval[]): Interval[] {
  const result: Interval[] = [];
  for (const next of [...intervals].sort((a, b) => a.start - b.start)) {
    const last = result.at(-1);
    if (last && next.start <= last.end) last.end = Math.max(last.end, next.end);
    else result.push({ ...next });
  }
  return result;
}

function lengthOf(intervals: readonly Interval[]): number {
  return intervals.reduce((n, { start, end }) => n + end - start, 0);
}

/** Returns the duration of the intersection. */
function commonTime(a: readonly Interval[], b: readonly Interval[]): number {
  return lengthOf(a.flatMap((x) =>
    b.map((y) => ({
      start: Math.max(x.start, y.start),
      end: Math.min(x.end, y.end),
    })).filter(({ start, end }) => start < end)
  ));
}

const x = {
  dtype: "f32",
  shape: [Number(tokens), 512],
  data: randomValues(Number(tokens) * 512),
} as const;

async function measure(chunks: number): Promise<[Chunked, string]> {
  const plan = await compile(expertLayer(Number(tokens)), {
    mesh: { ep: ranks },
    chunks,
    tuning: TUNING[where === "cpu" ? "cpu" : "gpu"],
  });
  const seen = new Transfers();
  const devices = (await openDevices(plan)).map((device) => seen.watch(device));
  const session = await createSession(plan, {
    devices,
    tensors: await openSafetensors([randomWeights(plan)]),
    communicator: seen.of(
      world ? await createMpiCommunicator(world, plan) : createCommunicator(),
    ),
  });
  const [runs, transfers, hidden]: number[][] = [[], [], []];
  const [first] = devices;
  for (let run = -2; run < Number(repeat); run++) {
    await first!.timings?.();
    seen.take();
    await world?.barrier(world, { what: "a run" });
    const start = performance.now();
    await session.run("main", { x }, withoutRows(plan.programs[0]!));
    await Promise.all(devices.map((device) => device.idle()));
    const all = performance.now() - start;
    const computed = (await first!.timings?.())?.map(({ start, end }) => ({
      start: start / 1e6,
      end: end / 1e6,
    }));
    const moved = union(seen.take());
    if (run < 0) continue;
    runs!.push(all);
    transfers!.push(lengthOf(moved));
    if (computed) hidden!.push(commonTime(moved, union(computed)));
  }
  session.close();
  const bytes = onRank(plan.peakBytes, world?.rank ?? 0);
  const known = hidden!.length > 0 ? { hidden: hidden! } : {};
  return [
    { chunks, runs: runs!, transfers: transfers!, ...known, bytes },
    first!.name,
  ];
}

const found: Chunked[] = [];
let device = "";
for (const count of chunks) {
  const [chunked, name] = await measure(Number(count));
  found.push(chunked);
  device = name;
}
if (!world || world.rank === 0) {
  const line: Overlapped = { device, chunks: found };
  console.log(JSON.stringify(line));
}
await world?.finish();
process.exit(0);
