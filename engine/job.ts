/** Ranks as processes: what the processes of an MPI job agree on before they run, and what they bring together after. */

import type {
  Device,
  RankStatistics,
  TensorDirectory,
} from "../runtime/mod.ts";
import {
  LOADING_DEADLINE_MS,
  type MpiWorld,
  openWorld,
} from "../runtime/mpi/mod.ts";
import { MachineError } from "../spec/errors.ts";
import { stringifyPlan } from "../spec/mod.ts";
import type { Plan } from "../spec/plan.ts";

/** A plan for another number of ranks than there are processes. */
export class RankCountError extends Error {
  override name = "RankCountError";
}

/** Become a rank of the MPI job that this process was started in. Throws MachineError where there is no MPI. */
export async function joinJob(): Promise<void> {
  await openWorld();
}

/** Make sure that all processes are about to do the same. */
export async function checkJob(
  world: MpiWorld,
  plan: Plan,
  tensors: TensorDirectory,
  kind: Device["kind"],
): Promise<void> {
  if (plan.ranks !== world.size) {
    throw new RankCountError(
      `Cannot run a mesh of ${plan.ranks} ranks on ${world.size} processes. Start as many as the mesh has ranks: 'switchyard launch -n ${plan.ranks} -- …'`,
    );
  }
  const weights = [...tensors].map(([name, { dtype, shape, bytes }]) => [
    ...[name, dtype, ...shape, bytes],
  ]);
  const own = {
    plan: await digest(stringifyPlan(plan)),
    checkpoint: await digest(JSON.stringify(weights.sort())),
    device: kind,
  };
  const texts = await world.gatherTexts(JSON.stringify(own), {
    what: "the start",
    deadlineMs: LOADING_DEADLINE_MS,
  });
  const all = texts.map((text) => JSON.parse(text) as typeof own);
  for (const what of ["plan", "checkpoint", "device"] as const) {
    const other = all.findIndex((facts) => facts[what] !== all[0]![what]);
    if (other < 0) continue;
    throw new MachineError(
      `Cannot run the plan: rank ${other} has another ${what} than rank 0. Give every rank the same model, the same files and the same kind of device`,
    );
  }
}

/** Wait until every rank has loaded its weights. */
export async function allLoaded(world: MpiWorld): Promise<void> {
  const deadlineMs = LOADING_DEADLINE_MS;
  await world.barrier(world, { what: "loading weights", deadlineMs });
}

/** The statistics of every rank, everywhere. */
export async function gatherStatistics(
  world: MpiWorld,
  own: readonly RankStatistics[],
): Promise<RankStatistics[]> {
  const texts = await world.gatherTexts(JSON.stringify(own), {
    what: "gathering statistics",
  });
  return texts.flatMap((text) => JSON.parse(text) as RankStatistics[]);
}

async function digest(text: string): Promise<string> {
  const bytes = new TextEncoder().encode(text);
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(
    new Uint8Array(hash),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}
