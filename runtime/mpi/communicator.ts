/** Exchanges between ranks in separate processes: MPI reads and writes memory lent by their devices. */

import { groupOf, groupRankOf, stageAxis } from "../../spec/mesh.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
  SendStep,
} from "../../spec/plan/plan.ts";
import { membersOf } from "../../spec/plan/members.ts";
import type {
  Communicator,
  CommunicatorContext,
  Exchange,
} from "../exchange/communicator.ts";
import type { Span } from "../device.ts";
import {
  bringsCounts,
  gatheredSpans,
  receivedSpans,
  reserveStaging,
  spansOf,
} from "../exchange/exchange.ts";
import type { RankMemory } from "../memory.ts";
import { gatheredRows, type RunCounts } from "../run_counts.ts";
import { LOADING_DEADLINE_MS, type MpiGroup, type MpiWorld } from "./world.ts";

/** One collective among the processes of one group. */
interface Bound {
  readonly world: MpiWorld;
  readonly group: MpiGroup;
  readonly memory: RankMemory;
  readonly context: CommunicatorContext;
  /** Whether it gathers the counts of exchanges. */
  readonly counts: boolean;
  /** This rank's index in the group. */
  readonly groupRank: number;
  readonly what: string;
}

/** A communicator for a plan whose rank r is process r of the job. Every process must call it. */
export async function createMpiCommunicator(
  world: MpiWorld,
  plan: Plan,
): Promise<Communicator> {
  const groups = await splitGroups(world, plan);
  const sends: Sends = { failed: undefined };
  return {
    remote: {
      rank: world.rank,
      gather: (bytes, lengths, { everywhere }) => {
        const options = { what: "joining outputs", everywhere };
        return stageAxis(plan.mesh)
          ? world.gatherDirectly(bytes, lengths, options)
          : world.gather(bytes, lengths, options);
      },
    },
    bind(step, [memory], context) {
      reserveStaging(step, memory!, context);
      if (step.op === "send") {
        return bindSend(step, { world, sends, memory: memory! }, context);
      }
      const bound: Bound = {
        world,
        context,
        memory: memory!,
        group: groups.get(step.over.join())!,
        counts: bringsCounts(step, plan),
        what: `step '${step.label ?? step.op}'`,
        groupRank: groupRankOf(plan.mesh, memory!.rank, step.over),
      };
      return bindExchange(step, bound);
    },
  };
}

/** The failure of a send that the source has not waited for. */
interface Sends {
  failed: { readonly error: unknown } | undefined;
}

/** The side of this rank in a send. It is buffered: the source does not wait until the destination receives. */
function bindSend(
  step: SendStep,
  { world, sends, memory }: {
    readonly world: MpiWorld;
    readonly sends: Sends;
    readonly memory: RankMemory;
  },
  { plan, staging, sent }: CommunicatorContext,
): Exchange {
  const { rank } = memory;
  const [source, destination] = membersOf(plan.mesh, rank, step) as [
    number,
    number,
  ];
  const isSource = rank === source;
  const use = isSource ? "read" : "write";
  const buffer = memory.buffer(isSource ? step.from : step.to);
  const what = `step '${step.label ?? step.op}'`;
  return async (counts) => {
    const bytes = gatheredRows(step, plan, counts[rank]!) * step.bytes;
    if (sends.failed) throw sends.failed.error;
    const lent = staging.take(memory, use);
    const [block] = await lent.open(buffer, [{ offset: 0, bytes }]);
    if (isSource) {
      world.send(destination, block!.slice(), { what })
        .catch((error: unknown) => sends.failed = { error });
      sent?.add(step, { from: rank, to: destination, bytes });
    } else await world.receive(source, block!, { what });
    staging.give(memory, use, lent);
  };
}

type GroupStep = AllGatherStep | AllToAllStep;

function bindExchange(step: GroupStep, bound: Bound): Exchange {
  return step.op === "allGather"
    ? (counts) => allGather(step, bound, counts)
    : () => allToAll(step, bound);
}

/** A communicator per set of mesh axes of the plan's exchanges, in plan order. */
async function splitGroups(
  world: MpiWorld,
  plan: Plan,
): Promise<Map<string, MpiGroup>> {
  const groups = new Map<string, MpiGroup>();
  for (const step of plan.programs.flatMap(({ steps }) => steps)) {
    if (step.op !== "allGather" && step.op !== "allToAll") continue;
    const key = step.over.join();
    if (groups.has(key)) continue;
    const ranks = groupOf(plan.mesh, world.rank, step.over);
    const wait = { what: "the start", deadlineMs: LOADING_DEADLINE_MS };
    groups.set(key, await world.split(ranks, wait));
  }
  return groups;
}

async function allGather(
  step: AllGatherStep,
  bound: Bound,
  counts: RunCounts,
): Promise<void> {
  const { context, group, memory, groupRank } = bound;
  const { ranks } = group;
  const spans = gatheredSpans(step, context.plan, { ranks, counts });
  await exchange(step, bound, {
    // One block per rank, or one for all.
    out: step.blocks ? spans : [{ offset: 0, bytes: spans[groupRank]!.bytes }],
    into: receivedSpans(step, spans, groupRank),
    agreed: spans.map(({ bytes }) => bytes),
    arrived: (blocks) => {
      if (bound.counts) context.known.keep(memory, step.to, blocks);
    },
  });
}

async function allToAll(step: AllToAllStep, bound: Bound): Promise<void> {
  const { context, group, memory, groupRank } = bound;
  const found = context.known.of(step, memory, group.size);
  const counts = found instanceof Promise ? await found : found;
  const { send, receive } = spansOf(step, counts, groupRank);
  await exchange(step, bound, {
    out: send,
    into: receive,
    agreed: [step.rowBytes, ...counts.flat()],
  });
}

/** Source and destination of a collective on this rank. */
interface Routes {
  /** One span per group rank, or one for all. */
  readonly out: readonly Span[];
  readonly into: readonly Span[];
  /** Numbers that are equal on all ranks of the group. */
  readonly agreed: readonly number[];
  arrived?(blocks: readonly Uint8Array[]): void;
}

async function exchange(
  step: GroupStep,
  { world, group, memory, context, groupRank, what }: Bound,
  { out, into, agreed, arrived }: Routes,
): Promise<void> {
  const { staging, sent } = context;
  const reading = staging.take(memory, "read");
  const writing = staging.take(memory, "write");
  // Lent immediately: later launches are not waited for.
  const lent = Promise.all([
    reading.open(memory.buffer(step.from), out),
    writing.open(memory.buffer(step.to), into),
  ]);
  await world.exchange(group, async () => {
    const [from, receive] = await lent;
    const send = group.ranks.map((_, p) => from[p] ?? from[0]!);
    return { send, receive, agreed };
  }, { what });
  arrived?.((await lent)[1]);
  if (sent) {
    for (const [p, to] of group.ranks.entries()) {
      if (p === groupRank) continue;
      const { bytes } = out[p] ?? out[0]!;
      sent.add(step, { from: memory.rank, to, bytes });
    }
  }
  staging.give(memory, "read", reading);
  staging.give(memory, "write", writing);
}
