/** The exchanges of a step by themselves: the plan's own collectives, with the counts of a scene, and no kernels between. */

import type { OpenedDevices } from "../../engine/devices.ts";
import { bindCollectives } from "../../engine/machine/collectives.ts";
import { KnownBuffers } from "../../engine/predict/known.ts";
import { dealScene, type SceneOptions } from "../../engine/predict/scene.ts";
import type {
  CollectiveStep,
  Device,
  DeviceBuffer,
  RankMemory,
} from "../../runtime/mod.ts";
import { bytesOf } from "../../runtime/host_tensor.ts";
import type { MpiWorld } from "../../runtime/mpi/mod.ts";
import { onRank, type Plan } from "../../spec/plan.ts";

/** How often each exchange is carried out in a row, so that a wait for the device counts little: of few tokens, and of many. */
const TOGETHER = { few: 256, many: 64 }, FEW_TOKENS = 16;

/** The exchanges of a step, ready. */
export interface Exchanges {
  /** Milliseconds of each of those of one step. */
  time(): Promise<number[]>;
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
  const together = TOGETHER[options.tokens > FEW_TOKENS ? "many" : "few"];
  const scene = dealScene(plan, options);
  const known = new KnownBuffers(scene);
  const steps = scene.program.steps.filter((step): step is CollectiveStep =>
    step.op === "allGather" || step.op === "allToAll"
  );
  const bound = await bindCollectives(plan, steps, { devices, world });
  // Counts that ranks tell each other lie where other buffers have been since.
  const given = steps.map((step) =>
    step.op === "allGather"
      ? bound.memories.flatMap((memory) => contentOf(memory, step.from) ?? [])
      : []
  );
  return {
    time: async () => {
      const spent: number[] = [];
      for (const [n, carryOut] of bound.carryOut.entries()) {
        for (const { device, from, to, bytes } of given[n]!) {
          device.copy(from, 0, to, 0, bytes);
        }
        await bound.idle();
        await world?.barrier(world, { what: "measuring" });
        const start = now();
        for (let i = 0; i < together; i++) {
          const wait = carryOut(scene.counts);
          if (wait) await wait;
        }
        await bound.idle();
        spent.push((now() - start) / together);
      }
      return spent;
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
