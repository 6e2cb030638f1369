/**
 * The same exchange through the communicator: `rank.ts cpu|NUMBER BYTES…` prints a line of JSON for each size per
 * pair.
 */

import process from "node:process";
import { StagingAccount } from "../../runtime/exchange/communicator.ts";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import { KnownCounts } from "../../runtime/exchange/exchange.ts";
import { bytesOf } from "../../runtime/host_tensor.ts";
import { RankMemory } from "../../runtime/memory.ts";
import {
  createGpuDevice,
  type Device,
  listAdapters,
} from "../../runtime/mod.ts";
import { createMpiCommunicator, openWorld } from "../../runtime/mpi/mod.ts";
import { countCopies, exchangePlan } from "../../test/helpers/exchange_plan.ts";

const BATCHES = 5;
/** A row of 1024 words. */
const ROW_BYTES = 4096;

const [where, ...sizes] = process.argv.slice(2);

async function open(): Promise<Device> {
  if (where === "cpu") return await createCpuDevice({ threads: 1 });
  const adapters = await listAdapters();
  const adapter = adapters[Number(where)]!;
  return await createGpuDevice(adapter, {
    limits: { maxBufferSize: adapter.limits["maxBufferSize"]! },
  });
}

const world = await openWorld();
const max = Math.max(...sizes.map(Number)) / ROW_BYTES * world.size;
const { plan, gather, dispatches } = exchangePlan({
  mesh: [{ name: "ep", size: world.size }],
  over: ["ep"],
  rowWords: ROW_BYTES / 4,
  sendRows: max,
  receiveRows: max,
  chunks: 1,
});
const communicator = await createMpiCommunicator(world, plan);
const { device, copied } = countCopies(await open());
const memory = new RankMemory(plan, device, world.rank);
const staging = new StagingAccount();
const known = new KnownCounts();
const context = { plan, staging, known, sent: undefined };
const counts = communicator.bind(gather, [memory], context);
const dispatch = communicator.bind(dispatches[0]!, [memory], context);
staging.allocate(1);
// Writes the pages first: the first access to a page takes longer.
for (const name of ["x", "y0"]) {
  const megabyte = new Uint8Array(1 << 20).fill(world.rank);
  const { bytes } = memory.plan(name);
  for (let at = 0; at < Number(bytes); at += megabyte.length) {
    const left = Math.min(megabyte.length, Number(bytes) - at);
    device.write(memory.buffer(name), at, megabyte.subarray(0, left));
  }
  await device.idle();
}

/** Sets the number of bytes that every rank sends to every other rank. */
async function setBytes(bytes: number): Promise<void> {
  const rows = new Uint32Array(world.size).fill(bytes / ROW_BYTES);
  device.write(memory.buffer("mine"), 0, bytesOf(rows));
  await counts([]);
}

// Runs until the JavaScript compiler has optimized the code.
await setBytes(ROW_BYTES);
for (let i = 0; i < 5000; i++) await dispatch([]);

for (const size of sizes) {
  const bytes = Number(size);
  await setBytes(bytes);
  const repeat = bytes > 1 << 22 ? 3 : bytes >= 1 << 20 ? 10 : 30;
  const times: number[] = [];
  const before = copied();
  for (let batch = -1; batch < BATCHES; batch++) {
    await world.barrier(world, { what: "a batch" });
    const start = performance.now();
    for (let i = 0; i < repeat; i++) await dispatch([]);
    await device.idle();
    if (batch >= 0) times.push((performance.now() - start) / repeat);
  }
  const payload = bytes * world.size * repeat * (BATCHES + 1);
  if (world.rank === 0) {
    console.log(JSON.stringify({
      bytes,
      exchange: times,
      copiesPerByte: (copied() - before) / payload,
      device: device.name,
    }));
  }
}
device.destroy();
await world.finish();
process.exit(0);
