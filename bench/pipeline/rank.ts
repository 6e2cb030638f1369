/**
 * A rank of an MPI job that executes training steps on pipeline stages with waits for kernels: `rank.ts MICRO-BATCHES
 * MS SCHEDULE…`. MS is the mean time of a stage per micro-batch. Rank 0 prints a line of JSON.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { compileTraining, sgd } from "../../compiler/mod.ts";
import {
  createSession,
  type Device,
  type HostTensor,
} from "../../runtime/mod.ts";
import { withoutRows } from "../../runtime/outputs.ts";
import { createMpiCommunicator, openWorld } from "../../runtime/mpi/mod.ts";
import { parseMachine } from "../../spec/machine.ts";
import { executes } from "../../spec/plan/members.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { idealBubble, type ScheduleName } from "../../spec/schedule.ts";
import { sum } from "../../spec/sum.ts";
import { backwardWork, chain } from "../../test/helpers/stages.ts";
import { createNullDevice } from "../../test/helpers/null_device.ts";

/** Bubbles of a schedule: waiting time relative to working time. */
export interface MeasuredBubble {
  readonly measured: number;
  /** Of the predicted times, if transfers take no time. */
  readonly predicted: number;
  /** Of the plan, by multiply-adds. */
  readonly planned: number;
  /** The bubble of equal stages. */
  readonly equal: number;
}

const [micro, ms, ...schedules] = process.argv.slice(2) as [
  string,
  string,
  ...ScheduleName[],
];
const MACHINE = fileURLToPath(
  new URL("../../machines/4x24gb.json", import.meta.url),
);
const machine = parseMachine(readFileSync(MACHINE, "utf8"), MACHINE);
const world = await openWorld();
const wait = { what: "the benchmark" };

/** A device whose launches take the given milliseconds each after `begin`, and when its last launch ends. */
function waitingDevice(times: readonly number[]) {
  const device = createNullDevice();
  let [next, busyUntil] = [Infinity, 0];
  const idle = async () => {
    const left = busyUntil - performance.now();
    if (left > 0) await sleep(left);
  };
  const waiting: Device = {
    ...device,
    launch(...launch) {
      device.launch(...launch);
      busyUntil = Math.max(performance.now(), busyUntil) + (times[next++] ?? 0);
    },
    async read(...range) {
      await idle();
      return await device.read(...range);
    },
    createStaging(...use) {
      const staging = device.createStaging(...use);
      return {
        ...staging,
        async open(...spans) {
          await idle();
          return await staging.open(...spans);
        },
      };
    },
    idle,
  };
  return {
    device: waiting,
    begin: () => void (next = 0),
    end: () => busyUntil,
  };
}

/** Zeros for the inputs of a program, one token per micro-batch. */
function inputsOf({ programs, axes }: Plan): { [name: string]: HostTensor } {
  return Object.fromEntries(
    Object.entries(programs[0]!.inputs).map(([name, port]) => {
      const shape = port.axes.map((axis) =>
        axes[axis]!.dynamic ? 1 : axes[axis]!.size
      );
      const data = new Float32Array(shape.reduce((n, size) => n * size, 1));
      return [name, { dtype: "f32", shape, data }];
    }),
  );
}

async function measure(pipeline: ScheduleName): Promise<MeasuredBubble> {
  const plan = await compileTraining(chain, {
    loss: "loss",
    optimizer: sgd(),
    mesh: { pp: 4 },
    microBatches: Number(micro),
    pipeline,
  });
  const work = backwardWork(plan, machine);
  const busy = sum(work.map(({ seconds }) => seconds));
  const scale = Number(ms) * Number(micro) * 4 / busy;
  const steps = plan.programs[0]!.steps;
  const times = steps.flatMap((step, i) =>
    step.op === "launch" && executes(plan.mesh, world.rank, step)
      ? scale * sum(
        work.filter((one) => one.rank === world.rank && one.step === i)
          .map(({ seconds }) => seconds),
      )
      : []
  );
  const { device, begin, end } = waitingDevice(times);
  const communicator = await createMpiCommunicator(world, plan);
  const session = await createSession({ ...plan, weights: [] }, {
    devices: [device],
    communicator,
  });
  const [program] = plan.programs;
  const run = () =>
    session.run(program!.name, inputsOf(plan), withoutRows(program!));
  await run();
  begin();
  await world.barrier(world, wait);
  const start = performance.now();
  await run();
  const ends = await world.gatherTexts(String(end() - start), wait);
  const bubble = (end: number) => (4 * end - busy) / busy;
  return {
    measured: bubble(Math.max(...ends.map(Number)) / scale),
    predicted: bubble(
      Math.max(...work.map(({ start, seconds }) => start + seconds)),
    ),
    planned: plan.pipeline!.bubble,
    equal: idealBubble(pipeline, { stages: 4, microBatches: Number(micro) }),
  };
}

const found: MeasuredBubble[] = [];
for (const schedule of schedules) found.push(await measure(schedule));
if (world.rank === 0) console.log(JSON.stringify(found));
await world.finish();
