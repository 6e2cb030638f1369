/** The exchanges of a step by themselves: the plan's own collectives, with the counts of a scene, and no kernels between. */

import { KnownBuffers } from "../../engine/predict/known.ts";
import { dealScene, type SceneOptions } from "../../engine/predict/scene.ts";
import type { OpenedDevices } from "../../engine/devices.ts";
import {
  type CollectiveStep,
  type Communicator,
  createCommunicator,
  type Device,
  type DeviceBuffer,
  RankMemory,
  StagingAccount,
} from "../../runtime/mod.ts";
import { bytesOf } from "../../runtime/host_tensor.ts";
import { kernelsByKey } from "../../runtime/kernel_key.ts";
import { createMpiCommunicator, type MpiWorld } from "../../runtime/mpi/mod.ts";
import { writeTables } from "../../runtime/tables.ts";
import { exchangesAtOnce } from "../../spec/bytes.ts";
import { onRank, type Plan } from "../../spec/plan.ts";

/** Steps whose exchanges are timed together, so that a wait for the device counts little. */
const TOGETHER = 8;

/** The exchanges of a step, ready. */
export interface Exchanges {
  /** Milliseconds of those of one step. */
  time(): Promise<number>;
}

/** Make the exchanges of a plan's first program ready. Ranks that are processes must all call it. */
export async function bindExchanges(
  plan: Plan,
  options: SceneOptions,
  { devices, world, now }: Pick<OpenedDevices, "devices"> & {
    readonly world: MpiWorld | undefined;
    readonly now: () => number;
  },
): Promise<Exchanges> {
  const unique = [...new Set(devices)];
  for (const device of unique) await device.prepare(kernelsByKey(plan));
  const memories = devices.map((device, i) =>
    new RankMemory(plan, device, world?.rank ?? i)
  );
  for (const memory of memories) writeTables(plan, memory);
  const scene = dealScene(plan, options);
  const known = new KnownBuffers(scene);
  const communicator: Communicator = world
    ? await createMpiCommunicator(world, plan)
    : createCommunicator();
  const staging = new StagingAccount();
  const context = { plan, staging, sent: undefined };
  const steps = scene.program.steps
    .filter((step): step is CollectiveStep =>
      step.op === "allGather" || step.op === "allToAll"
    )
    .map((step) => ({
      exchange: communicator.bind(step, memories, context),
      // Counts that ranks tell each other lie where other buffers have been since.
      given: step.op === "allGather"
        ? memories.flatMap((memory) => contentOf(memory, step.from) ?? [])
        : [],
    }));
  staging.allocate(exchangesAtOnce(plan));
  return {
    time: async () => {
      for (const device of unique) await device.idle();
      await world?.barrier(world, { what: "measuring" });
      const start = now();
      for (let i = 0; i < TOGETHER; i++) {
        for (const { exchange, given } of steps) {
          for (const { device, from, to, bytes } of given) {
            device.copy(from, 0, to, 0, bytes);
          }
          const wait = exchange(scene.counts);
          if (wait) await wait;
        }
      }
      for (const device of unique) await device.idle();
      return (now() - start) / TOGETHER;
    },
  };

  function contentOf(
    memory: RankMemory,
    name: string,
  ): Given | undefined {
    const content = known.of(memory.rank, name);
    if (!content) return undefined;
    const bytes = onRank(plan.buffers[name]!.bytes, memory.rank);
    const from = memory.device.createBuffer(bytes, `given ${name}`);
    const words = Uint32Array.from(
      { length: bytes / 4 },
      (_, i) => content.at(i) ?? 0,
    );
    memory.device.write(from, 0, bytesOf(words));
    return { device: memory.device, from, to: memory.buffer(name), bytes };
  }
}

/** What a buffer is given before an exchange. */
interface Given {
  readonly device: Device;
  readonly from: DeviceBuffer;
  readonly to: DeviceBuffer;
  readonly bytes: number;
}
