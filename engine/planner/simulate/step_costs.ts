/** Bytes, FLOPs and roofline bound of every step on rank 0. */

import type { Machine } from "../../../spec/machine.ts";
import {
  executes,
  isCollective,
  membersOf,
} from "../../../spec/plan/members.ts";
import {
  type CollectiveStep,
  onRank,
  type Plan,
  type Step,
} from "../../../spec/plan/plan.ts";
import type { StepCost } from "../../../spec/plan_summary.ts";
import { sum } from "../../../spec/sum.ts";
import { minExchangeSeconds } from "./exchange_time.ts";
import { launchContext, openLaunchMeter } from "./launches.ts";
import { levelsOf, peerBytes } from "./peer_bytes.ts";
import { placementsOf, rankGroups } from "./rank_groups.ts";
import type { Workload } from "./workload.ts";

/** Bytes and FLOPs of a step, and its roofline time. */
interface Cost {
  readonly bytes: number;
  readonly flops: number;
  readonly seconds: number | undefined;
}

/**
 * Costs of the steps of a plan's first program; steps without bytes and FLOPs are omitted. Throws DataError if the
 * workload exceeds the bounds of the plan.
 */
export function stepCosts(
  plan: Plan,
  workload: Workload,
  machine?: Machine,
): StepCost[] {
  const context = launchContext(plan, workload);
  const { program, lengths, routings } = context;
  const meter = openLaunchMeter(context);
  const placements = machine && placementsOf(plan, machine);
  const [group] = machine ? rankGroups(plan, machine, placements!) : [];
  return program.steps.flatMap((step, index): StepCost[] => {
    const cost = costOf(step);
    if (cost === undefined) return [];
    const { bytes, flops, seconds } = cost;
    const moved = [index, Math.round(bytes), Math.round(flops)] as const;
    return [
      seconds === undefined
        ? moved
        : [...moved, Number((seconds * 1e6).toPrecision(6))],
    ];
  });

  function costOf(step: Step): Cost | undefined {
    if (step.op === "wait" || step.op === "rounds") return undefined;
    if (!executes(plan.mesh, 0, step)) return undefined;
    if (isCollective(step)) return exchanged(step);
    if (step.op === "copy") return local(2 * onRank(step.bytes, 0));
    const counted = meter.launch(step, { rank: 0, fullness: "mean" });
    return counted && local(counted.bytes, 2 * counted.work.multiplyAdds);
  }

  /** Ranks that share a device divide its rates. */
  function local(bytes: number, flops = 0): Cost {
    if (group === undefined) return { bytes, flops, seconds: undefined };
    const { device, sharing, slower, cached } = group;
    const bandwidth = cached && device.cache
      ? device.cache.bandwidth
      : device.bandwidth;
    const seconds = sharing * slower *
      Math.max(bytes / bandwidth, flops / 2 / device.multiplyAdds);
    return { bytes, flops, seconds };
  }

  function exchanged(step: CollectiveStep): Cost | undefined {
    const members = membersOf(plan.mesh, 0, step);
    if (members.length === 1) return undefined;
    const { each, mean } = peerBytes(step, {
      lengths,
      rows: step.part && routings.get(step.part.routing),
      groupSize: members.length,
    });
    const bytes = each * (members.length - 1);
    if (!machine || !placements) return { bytes, flops: 0, seconds: undefined };
    const { device } = placements[0]!;
    if (members.every((other) => placements[other]!.device === device)) {
      // Within a device, an exchange consists of copy launches.
      const touched = sum(
        meter.local(step).flatMap(({ loads, stores }) => [...loads, ...stores]),
      );
      const { seconds } = local(touched / members.length);
      return { bytes, flops: 0, seconds };
    }
    const levels = levelsOf(placements, {
      rank: 0,
      group: members,
      each,
      mean,
    });
    const seconds = minExchangeSeconds(machine, { levels });
    return { bytes, flops: 0, seconds };
  }
}
