/**
 * One rank of the jobs of test/mpi/communicator.test.ts: `exchange_rank.ts JOB,… SEED`. Rank 0 prints the results as
 * JSON.
 */

import { setTimeout as sleep } from "node:timers/promises";
import process from "node:process";
import { StagingAccount } from "../../runtime/exchange/communicator.ts";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import { KnownCounts } from "../../runtime/exchange/exchange.ts";
import { bytesOf, wordsOf } from "../../runtime/host_tensor.ts";
import { RankMemory } from "../../runtime/memory.ts";
import {
  createMpiCommunicator,
  type MpiWorld,
  openWorld,
} from "../../runtime/mpi/mod.ts";
import { groupOf, groupRankOf } from "../../spec/mesh.ts";
import {
  createGpuDevice,
  type Device,
  listAdapters,
} from "../../runtime/mod.ts";
import {
  countCopies,
  exchangePlan,
  type ExchangeShape,
} from "./exchange_plan.ts";

/** Returns a generator of pseudorandom integers below a bound, equal on all ranks. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * below);
  };
}

/** Device of all exchanges. Opening one takes longer than the exchanges. */
let opened: Promise<Device> | undefined;

/** Exchanges ragged counts and rows in both directions, in concurrent chunks. Throws if a word is wrong. */
async function exchanges(
  world: MpiWorld,
  shape: ExchangeShape,
  draw: (below: number) => number,
  open: () => Promise<Device> = () => createCpuDevice({ threads: 1 }),
): Promise<void> {
  opened ??= open();
  const { mesh, over, rowWords, chunks, sendRows } = shape;
  const { plan, gather, dispatches, combines } = exchangePlan(shape);
  const communicator = await createMpiCommunicator(world, plan);
  const { device, copied } = countCopies(await opened);
  const memory = new RankMemory(plan, device, world.rank);
  const staging = new StagingAccount();
  const known = new KnownCounts();
  const context = { plan, staging, known, sent: undefined };
  const bind = (step: typeof gather | typeof dispatches[number]) => {
    const exchange = communicator.bind(step, [memory], context);
    return async () => await exchange([]);
  };
  const [counts, forward, back] = [
    bind(gather),
    dispatches.map(bind),
    combines.map(bind),
  ];
  staging.allocate(chunks);
  const group = groupOf(mesh, world.rank, over);
  const columns = group.length * chunks;
  const max = Math.floor(sendRows / columns);
  for (let round = 0; round < 4; round++) {
    // Counts of every rank, drawn equally on all ranks; some are zero.
    const all = world.ranks.map(() =>
      Array.from({ length: columns }, () => Math.max(0, draw(max + 3) - 2))
    );
    const local = all[world.rank]!;
    const rows = local.reduce((n, count) => n + count, 0);
    const word = (rank: number, row: number, i: number) =>
      ((round * 64 + rank) * sendRows + row) * rowWords + i;
    const x = Uint32Array.from(
      { length: rows * rowWords },
      (_, i) => word(world.rank, Math.floor(i / rowWords), i % rowWords),
    );
    device.write(
      memory.buffer("localCounts"),
      0,
      bytesOf(Uint32Array.from(local)),
    );
    device.write(memory.buffer("x"), 0, bytesOf(x));
    device.write(memory.buffer("z"), 0, new Uint8Array(x.byteLength));
    await device.idle();
    const before = copied();
    await counts();
    await Promise.all(forward.map((exchange) => exchange()));
    compare(Uint32Array.of(copied() - before), [0], "bytes copied by the host");
    for (let chunk = 0; chunk < chunks; chunk++) {
      const column = groupRankOf(mesh, world.rank, over) * chunks + chunk;
      const wanted: number[] = [];
      for (const rank of group) {
        const first = all[rank]!.slice(0, column).reduce((n, c) => n + c, 0);
        for (let row = 0; row < all[rank]![column]!; row++) {
          for (let i = 0; i < rowWords; i++) {
            wanted.push(word(rank, first + row, i));
          }
        }
      }
      const y = wordsOf(
        await device.read(memory.buffer(`y${chunk}`), 0, 4 * wanted.length),
      );
      compare(y, wanted, `chunk ${chunk} of round ${round}`);
    }
    await Promise.all(back.map((exchange) => exchange()));
    const z = await device.read(memory.buffer("z"), 0, x.byteLength);
    compare(wordsOf(z), [...x], `rows returned in round ${round}`);
  }
  const staged = staging.bytes(world.rank) > 0;
  if (staged !== (device.kind === "gpu")) throw new Error("staging on the CPU");
}

function compare(
  got: Uint32Array,
  wanted: readonly number[],
  label: string,
): void {
  const at = wanted.findIndex((value, i) => got[i] !== value);
  if (at < 0 && got.length === wanted.length) return;
  throw new Error(
    `${label}: word ${at} is ${got[at]} and should be ${wanted[at]}`,
  );
}

/** Returns the error message of a promise, or "no error". */
async function failure(promise: Promise<unknown>): Promise<string> {
  return await promise.then(
    () => "no error",
    (error: unknown) => error instanceof Error ? error.message : String(error),
  );
}

const [jobs, seed] = process.argv.slice(2);
const draw = numbers(Number(seed));
const size = { rowWords: 3, sendRows: 60, receiveRows: 240, chunks: 1 };

const JOBS: { readonly [name: string]: () => Promise<unknown> } = {
  /** All ranks in one group, in one chunk and in two. */
  async ragged() {
    const world = await openWorld();
    const shape = {
      ...size,
      mesh: [{ name: "ep", size: world.size }],
      over: ["ep"],
    };
    await exchanges(world, shape, draw);
    await exchanges(world, { ...shape, chunks: 2 }, draw);
    return "right";
  },
  /** The same between mapped buffers of a GPU. */
  async mapped() {
    const world = await openWorld();
    const [adapter] = await listAdapters();
    const mesh = [{ name: "ep", size: world.size }];
    for (const chunks of [1, 2]) {
      const shape = { ...size, chunks, mesh, over: ["ep"] };
      await exchanges(world, shape, draw, () => createGpuDevice(adapter!));
    }
    return "right";
  },
  /** Counts above the limit of MPI's integers use larger units. */
  async long() {
    const world = await openWorld({ longestCount: 40 });
    const mesh = [{ name: "ep", size: world.size }];
    await exchanges(world, { ...size, rowWords: 16, mesh, over: ["ep"] }, draw);
    const odd = new Uint8Array(41);
    const sending = world.ranks.map(() => odd);
    return await failure(
      world.exchange(world, () => ({
        send: sending,
        receive: sending,
        agreed: [],
      }), { what: "a test" }),
    );
  },
  /** Groups of a mesh of 8 ranks over one axis and over several, in different axis orders. */
  async groups() {
    const world = await openWorld();
    const [dp, ep, tp] = ["dp", "ep", "tp"].map((name) => ({ name, size: 2 }));
    for (const mesh of [[dp!, ep!, tp!], [tp!, ep!, dp!]]) {
      for (const over of [["ep"], ["dp"], ["tp"], ["dp", "ep"], ["tp", "dp"]]) {
        await exchanges(world, { ...size, mesh, over }, draw);
      }
    }
    return "right";
  },
  /** Rank 1 is in another step, then exchanges different sizes, then misses a deadline. */
  async failures() {
    const world = await openWorld();
    const { rank } = world;
    const other = await failure(
      world.barrier(world, { what: rank === 1 ? "step 'b'" : "step 'a'" }),
    );
    const nothing = world.ranks.map(() => new Uint8Array(0));
    const sizes = await failure(
      world.exchange(world, () => ({
        send: nothing,
        receive: nothing,
        agreed: [7, rank],
      }), { what: "step 'c'" }),
    );
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    // Far longer than the deadline of the others, even on a busy machine.
    if (rank === 1) await sleep(6000);
    const late = await failure(
      world.barrier(world, { what: "step 'd'", deadlineMs: 1000 }),
    );
    clearInterval(timer);
    return { other, sizes, late, alive: ticks > 2 };
  },
};

const results: unknown[] = [];
for (const job of jobs!.split(",")) results.push(await JOBS[job]!());
const world = await openWorld();
if (world.rank === 0) console.log(JSON.stringify(results));
(await opened)?.destroy();
await world.finish();
