/** Plans that run on the devices of a main one, such as the rollouts of a training. */

import {
  createSession,
  type Device,
  type Session,
  type TensorDirectory,
} from "../runtime/mod.ts";
import { createMpiCommunicator, type MpiWorld } from "../runtime/mpi/mod.ts";
import { PlacementError } from "../spec/errors.ts";
import type { LegalPlan } from "../spec/mod.ts";
import { perRank } from "../spec/per_rank.ts";
import { onRank, type Plan } from "../spec/plan/plan.ts";
import { sum } from "../spec/sum.ts";
import type { PlanOptions } from "./open.ts";

/** The main plan on its devices. */
export interface Main {
  readonly plan: Plan;
  readonly session: Session;
  /** The ranks in this process. */
  readonly ranks: readonly number[];
  /** The tensors that it was loaded from. */
  readonly tensors: TensorDirectory;
}

/** A plan that runs on the devices of a main one. */
export interface Companion {
  /** Compiles for the devices. */
  plan(options: PlanOptions, main: Plan): Promise<LegalPlan>;
  tensors(
    main: Main,
    plan: Plan,
  ): Promise<TensorDirectory>;
  /** Whether it uses the memory of the main plan's weights where their layouts are equal. */
  readonly shares: boolean;
}

/** A companion on its devices. */
export interface OpenedCompanion {
  readonly plan: Plan;
  readonly session: Session;
}

/** A companion and its plan. */
export interface CompiledCompanion {
  readonly companion: Companion;
  readonly plan: LegalPlan;
}

/** Compiles companions for the devices of the main plan. */
export async function compileCompanions(
  { companions = [] }: { readonly companions?: readonly Companion[] },
  options: PlanOptions,
  { plan: main, world }: {
    /** The main plan. */
    readonly plan: Plan;
    /** The processes of a job, which are the ranks of each plan. Default: one process has all ranks. */
    readonly world: MpiWorld | undefined;
  },
): Promise<CompiledCompanion[]> {
  const compiled: CompiledCompanion[] = [];
  for (const companion of companions) {
    const plan = await companion.plan(options, main);
    if (world && plan.ranks !== world.size) {
      throw new PlacementError(
        `Cannot sample on a mesh of ${plan.ranks} ranks in ${world.size} processes: each process is a rank of both meshes. Give meshes of ${world.size} ranks`,
      );
    }
    compiled.push({ companion, plan });
  }
  return compiled;
}

/** Loads companions onto the devices of the main plan. All processes of a job must call it. */
export async function openCompanions(
  companions: readonly CompiledCompanion[],
  main: Main,
  { devicesOf, world }: {
    devicesOf(plan: Plan): readonly Device[];
    readonly world: MpiWorld | undefined;
  },
): Promise<OpenedCompanion[]> {
  const opened: OpenedCompanion[] = [];
  for (const { companion, plan } of companions) {
    const session = await createSession(plan, {
      devices: devicesOf(plan),
      tensors: await companion.tensors(main, plan),
      ...world
        ? { communicator: await createMpiCommunicator(world, plan) }
        : {},
      weightsOf: companion.shares ? main.session : undefined,
    });
    opened.push({ plan, session });
  }
  return opened;
}

/** A plan with the device requirements of its companions too. */
export function withNeedsOf(
  main: Plan,
  companions: readonly CompiledCompanion[],
): Plan {
  if (companions.length === 0) return main;
  const plans = [main, ...companions.map(({ plan }) => plan)];
  const limits: { [limit: string]: number } = {};
  for (const { requiredLimits } of plans) {
    for (const [limit, value] of Object.entries(requiredLimits)) {
      limits[limit] = Math.max(limits[limit] ?? 0, value);
    }
  }
  const ranks = Math.max(...plans.map((plan) => plan.ranks));
  return {
    ...main,
    ranks,
    requiredLimits: limits,
    requiredFeatures: [
      ...new Set(plans.flatMap((plan) => plan.requiredFeatures)),
    ],
    peakBytes: perRank(Array.from(
      { length: ranks },
      (_, rank) =>
        sum(
          plans.map((plan) =>
            rank < plan.ranks ? onRank(plan.peakBytes, rank) : 0
          ),
        ),
    )),
  };
}
