/** How ranks of one device exchange: kernel launches, for each that receives. */

import { bindWorkgroups } from "../../runtime/run_counts.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { localLaunches } from "../../spec/local/mod.ts";
import type { AllGatherStep, AllToAllStep, Plan } from "../../spec/plan.ts";
import { KnownBuffers } from "./known.ts";
import { LaunchCounter, type LaunchWork } from "./launch.ts";
import { dealScene, type Scene, type SceneOptions } from "./scene.ts";

/** A launch on one rank. Of buffers without a name nothing is known. */
export interface PlacedLaunch {
  readonly rank: number;
  readonly kernel: Kernel;
  readonly size: readonly [number, number, number];
  readonly buffers: readonly (string | undefined)[];
}

/** The launches of exchanges among the ranks of a group. */
export function placedLaunches(
  { plan, counts }: Pick<Scene, "plan" | "counts">,
): (
  step: AllGatherStep | AllToAllStep,
  group: readonly number[],
) => PlacedLaunch[] {
  const launches = localLaunches(plan.mesh);
  return (step, group) => {
    const names: { readonly [binding: string]: string | undefined } =
      step.op === "allToAll"
        ? { counts: step.counts, position: step.position }
        : { counts: step.rows?.counts };
    return group.flatMap((rank) =>
      launches(step).map(({ kernel, workgroups }) => ({
        rank,
        kernel,
        size: bindWorkgroups(workgroups, plan, rank)(counts),
        buffers: kernel.bindings.map(({ name }) => names[name]),
      }))
    );
  };
}

/** The work of an exchange among all ranks of a plan, launch by launch. */
export function countExchange(
  plan: Plan,
  step: AllToAllStep,
  options: SceneOptions,
): LaunchWork[] {
  const scene = dealScene(plan, options);
  const known = new KnownBuffers(scene);
  const counter = new LaunchCounter();
  const everyone = Array.from({ length: plan.ranks }, (_, rank) => rank);
  return placedLaunches(scene)(step, everyone).map(
    ({ rank, kernel, size, buffers }) =>
      counter.count(
        kernel,
        size,
        buffers.map((name) =>
          name === undefined ? undefined : known.of(rank, name)
        ),
      ),
  );
}
