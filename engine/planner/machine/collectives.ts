/** Runs collectives of a plan alone, as in a run. */

import {
  createCommunicator,
  type Device,
  RankMemory,
  type RunCounts,
  StagingAccount,
} from "../../../runtime/mod.ts";
import { KnownCounts } from "../../../runtime/exchange/exchange.ts";
import { kernelsByKey } from "../../../runtime/kernel_key.ts";
import {
  createMpiCommunicator,
  type MpiWorld,
} from "../../../runtime/mpi/mod.ts";
import { writeTables } from "../../../runtime/tables.ts";
import { exchangesAtOnce } from "../../../spec/plan/bytes.ts";
import type { CollectiveStep, Plan } from "../../../spec/plan/plan.ts";

/** Bound collectives, and their memory. */
export interface BoundCollectives {
  /** The memory of the ranks of this process. */
  readonly memories: readonly RankMemory[];
  /** Executes the collective with the same index in the list of steps. */
  readonly execute: readonly ((counts: RunCounts) => void | Promise<void>)[];
  /** Waits for all devices of this process. */
  idle(): Promise<void>;
}

/** Binds collectives of a plan on separate devices. All processes must call it. */
export async function bindCollectives(
  plan: Plan,
  steps: readonly CollectiveStep[],
  { devices, world }: {
    readonly devices: readonly Device[];
    readonly world: MpiWorld | undefined;
  },
): Promise<BoundCollectives> {
  const unique = [...new Set(devices)];
  const memories = devices.map((device, i) =>
    new RankMemory(plan, device, world?.rank ?? i)
  );
  for (const memory of memories) writeTables(plan, memory);
  const communicator = world
    ? await createMpiCommunicator(world, plan)
    : createCommunicator();
  const kernels = {
    ...kernelsByKey(plan),
    ...communicator.kernels?.(plan, devices),
  };
  for (const device of unique) await device.prepare(kernels);
  const staging = new StagingAccount();
  const known = new KnownCounts();
  const context = { plan, staging, known, sent: undefined };
  const execute = steps.map((step) =>
    communicator.bind(step, memories, context)
  );
  staging.allocate(exchangesAtOnce(plan));
  return {
    memories,
    execute,
    idle: async () => {
      for (const device of unique) await device.idle();
    },
  };
}
