/** Exchanges between ranks that share one device: kernel launches derived from the step, without a host wait. */

import type { Grid } from "../../spec/kernel/make.ts";
import type { Binding, Kernel } from "../../spec/kernel/tree.ts";
import { localLaunches } from "../../spec/local/mod.ts";
import { isCollective, membersOf } from "../../spec/plan/members.ts";
import type { CollectiveStep, Plan, PlanKernel } from "../../spec/plan/plan.ts";
import type { CommunicatorContext, Exchange } from "./communicator.ts";
import type { Device, DeviceBuffer } from "../device.ts";
import { wordsOf } from "../host_tensor.ts";
import { keyOf } from "../kernel_key.ts";
import type { RankMemory } from "../memory.ts";
import { bindWorkgroups, type RunCounts } from "../run_counts.ts";

/** A launch by which a rank receives from some ranks of its group. */
interface Received {
  readonly key: string;
  readonly bindings: readonly Binding[];
  readonly sources: readonly number[];
  readonly workgroups: Grid;
}

/** Creates the launches of collectives, each kernel once. */
export class LocalBinder {
  readonly #launches = new Map<
    Plan,
    (step: CollectiveStep) => readonly Received[]
  >();
  readonly #kernels = new Map<Kernel, PlanKernel>();

  /** The kernels of a plan's collectives between ranks of one device. `devices`: the device of each rank. */
  kernels(
    plan: Plan,
    devices: readonly Device[],
  ): { [key: string]: PlanKernel } {
    const isShared = sharing(plan, devices);
    for (const { steps } of plan.programs) {
      for (const step of steps) {
        if (isCollective(step) && isShared(step)) this.#of(plan, step);
      }
    }
    return Object.fromEntries(
      [...this.#kernels.values()].map((kernel) =>
        [keyOf(kernel.tree.name, kernel), kernel] as const
      ),
    );
  }

  /** Binds the launches of a collective for every rank of a group. */
  bind(
    step: CollectiveStep,
    group: readonly RankMemory[],
    context: CommunicatorContext,
  ): Exchange {
    const received = this.#of(context.plan, step);
    const receivers = step.op === "send" ? group.slice(1) : group;
    const launches = receivers.flatMap((to) =>
      received.map(({ key, bindings, sources, ...launch }) => {
        const buffers: readonly DeviceBuffer[] = Object.freeze(
          bindings.map(({ name }) => bufferOf(name, step, sources, to, group)),
        );
        const workgroups = bindWorkgroups(
          launch.workgroups,
          context.plan,
          to.rank,
        );
        return (counts: RunCounts) =>
          to.device.launch(key, buffers, workgroups(counts), step.label);
      })
    );
    const launchAll = (counts: RunCounts) => {
      for (const launch of launches) launch(counts);
    };
    const { sent } = context;
    if (!sent) return launchAll;
    return async (counts) => {
      launchAll(counts);
      await countSent(step, group, sent);
    };
  }

  #of(plan: Plan, step: CollectiveStep): readonly Received[] {
    let launches = this.#launches.get(plan);
    if (!launches) {
      const made = localLaunches(plan.mesh);
      launches = (step) =>
        made(step).map(({ kernel, sources, workgroups }) => ({
          key: keyOf(kernel.name, this.#kernelOf(kernel)),
          bindings: kernel.bindings,
          sources,
          workgroups,
        }));
      this.#launches.set(plan, launches);
    }
    return launches(step);
  }

  #kernelOf(tree: Kernel): PlanKernel {
    const known = this.#kernels.get(tree) ?? { tree };
    this.#kernels.set(tree, known);
    return known;
  }
}

/** Whether the ranks of some group of a collective share one device. */
function sharing(
  { mesh, ranks }: Plan,
  devices: readonly Device[],
): (step: CollectiveStep) => boolean {
  const known = new Map<string, boolean>();
  return (step) => {
    const key = JSON.stringify([step.over, step.op === "send" && step.stages]);
    const shared = known.get(key) ??
      Array.from({ length: ranks }, (_, rank) => membersOf(mesh, rank, step))
        .some((group) =>
          group.every((rank) => devices[rank] === devices[group[0]!])
        );
    known.set(key, shared);
    return shared;
  };
}

function bufferOf(
  binding: string,
  step: CollectiveStep,
  sources: readonly number[],
  to: RankMemory,
  group: readonly RankMemory[],
): DeviceBuffer {
  if (binding === "dst") return to.buffer(step.to);
  const source = /^src(\d+)$/.exec(binding);
  if (source) return group[sources[Number(source[1])]!]!.buffer(step.from);
  if (step.op !== "allToAll" && step.rows && binding === "counts") {
    return to.buffer(step.rows.counts);
  }
  if (step.op === "allGather" && step.blocks && binding === "groupRank") {
    return to.buffer(step.blocks.groupRank);
  }
  if (step.op === "allToAll") {
    if (binding === "counts") return to.buffer(step.counts);
    if (binding === "groupRank") return to.buffer(step.groupRank);
    if (binding === "receivedCounts") return to.buffer(step.receivedCounts);
  }
  throw new Error(`internal: exchange kernel has a binding '${binding}'`);
}

/** Adds the bytes that each rank sent, as reported by the exchange kernel. */
async function countSent(
  step: CollectiveStep,
  group: readonly RankMemory[],
  sent: NonNullable<CommunicatorContext["sent"]>,
): Promise<void> {
  if (step.op === "send") {
    const [source, to] = group as readonly [RankMemory, RankMemory];
    const counts = step.rows && to.buffer(step.rows.counts);
    const times = counts ? wordsOf(await to.device.read(counts, 0, 4))[0]! : 1;
    const bytes = times * step.bytes;
    sent.add(step, { from: source.rank, to: to.rank, bytes });
    return;
  }
  if (step.op === "allGather") {
    // Every launch of the copy kernel moves the entire source, its block, or the known rows.
    const [first] = group;
    const rows = step.rows && wordsOf(
      await first!.device.read(
        first!.buffer(step.rows.counts),
        0,
        4 * group.length,
      ),
    );
    for (const [s, { rank }] of group.entries()) {
      for (const p of group.keys()) {
        if (p === s) continue;
        const times = rows?.[step.blocks ? p : s] ?? 1;
        const to = group[p]!.rank;
        sent.add(step, { from: rank, to, bytes: times * step.bytes });
      }
    }
    return;
  }
  const received = await Promise.all(
    group.map((to) =>
      to.device.read(to.buffer(step.receivedCounts), 0, 4 * group.length)
    ),
  );
  for (const [p, bytes] of received.entries()) {
    for (const [s, rows] of wordsOf(bytes).entries()) {
      if (s === p) continue;
      const [from, to] = [group[s]!.rank, group[p]!.rank];
      sent.add(step, { from, to, bytes: rows * step.rowBytes });
    }
  }
}
