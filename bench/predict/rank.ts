/**
 * One of four ranks that measure the machine and every configuration of `order.ts`: `rank.ts SHARING ADAPTER ROUNDS
 * ORDER`. Configurations are interleaved in each round. Rank 0 prints a line of JSON.
 */

import { availableParallelism } from "node:os";
import process from "node:process";
import { type DeviceSharing, selectDevices } from "../../engine/devices.ts";
import { openMachineMeter } from "../../engine/planner/machine/measure_machine.ts";
import { CHOICES } from "../../engine/replay.ts";
import {
  type ExpertLoad,
  recordedLoad,
} from "../../engine/planner/simulate/mod.ts";
import { computerOf, TUNING } from "../../engine/tune/tuning.ts";
import { createSession, openSafetensors } from "../../runtime/mod.ts";
import { createMpiCommunicator } from "../../runtime/mpi/mod.ts";
import { median } from "../measure.ts";
import { randomWeights } from "../session.ts";
import { packedForNext } from "../work.ts";
import {
  compileOrdered,
  type Measured,
  orderNamed,
  type Step,
} from "./order.ts";

const [sharing, adapter, rounds, name] = process.argv.slice(2) as [
  DeviceSharing,
  "cpu" | "native",
  string,
  string,
];
// If one rank fails, MPI ends all, so the reason is printed first.
process.on("uncaughtException", (error) => {
  console.error(error);
  process.exit(1);
});
const order = orderNamed(name);
const select = { sharing, adapter, threads: availableParallelism() };
/** Measured steps of each kind per round. The same number is run before as warm-up. */
const REPEATED: { readonly [S in Step]: number } = { prefill: 4, decode: 16 };
const KINDS = ["prefill", "decode"] as const;

function now(): number {
  return performance.now();
}

const selected = await selectDevices(select);
const { world } = selected;
const tuning = TUNING[computerOf(selected)];

async function load(name: string) {
  const plan = await compileOrdered({
    order,
    configuration: order.configurations[name]!,
    tuning,
    limits: selected.limits,
  });
  const { devices } = await selected.open(plan);
  const session = await createSession(plan, {
    devices,
    tensors: await openSafetensors([randomWeights(plan)]),
    ...world ? { communicator: await createMpiCommunicator(world, plan) } : {},
  });
  const together = async () => {
    for (const device of new Set(devices)) await device.idle();
    await world?.barrier(world, { what: "measuring" });
  };
  const inputs = {
    prefill: packedForNext(order.steps.prefill),
    decode: packedForNext(order.steps.decode),
  };
  const outputs = Object.keys(plan.programs[0]!.outputs);
  const read = {
    outputs: outputs.filter((output) => output.startsWith("candidates")),
    everywhere: true,
  };
  return {
    step: async (kind: Step): Promise<number> => {
      if (kind === "prefill") session.reset();
      await together();
      const start = now();
      await session.run("main", inputs[kind], read);
      await together();
      return now() - start;
    },
    chosen: async (kind: Step): Promise<ExpertLoad> =>
      recordedLoad(
        await session.run("main", inputs[kind], {
          outputs: outputs.filter((output) => CHOICES.test(output)),
          everywhere: true,
        }),
      ),
  };
}

const loaded: {
  readonly name: string;
  readonly ready: Awaited<ReturnType<typeof load>>;
}[] = [];
for (const name of Object.keys(order.configurations)) {
  loaded.push({ name, ready: await load(name) });
}
const [{ ready: first }] = loaded as [typeof loaded[number]];
const experts = {
  prefill: await first.chosen("prefill"),
  decode: await first.chosen("decode"),
};
const meter = await openMachineMeter({
  ...select,
  ...sharing === "mpi" ? {} : { ranks: 4 },
  host: "here",
  now,
  repetitions: 5,
});
const machine = await meter.measure();
const times = Object.fromEntries(
  loaded.map((
    { name },
  ) => [name, { prefill: [] as number[], decode: [] as number[] }]),
);
for (let round = -1; round < Number(rounds); round++) {
  for (const { name, ready } of loaded) {
    for (const kind of KINDS) {
      const steps: number[] = [];
      for (let i = 0; i < 2 * REPEATED[kind]; i++) {
        steps.push(await ready.step(kind));
      }
      if (round >= 0) {
        times[name]![kind].push(
          Number(median(steps.slice(REPEATED[kind])).toPrecision(4)),
        );
      }
    }
  }
}
if (meter.first) {
  console.log(
    JSON.stringify({ tuning, machine, experts, times } satisfies Measured),
  );
}
await meter.close();
await world?.finish();
process.exit(0);
