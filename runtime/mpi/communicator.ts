/** Exchanges between ranks that live in a process each. */

import { groupOf, positionOver } from "../../spec/mesh.ts";
import {
  type AllGatherStep,
  type AllToAllStep,
  onRank,
  type Plan,
} from "../../spec/plan.ts";
import { MachineError } from "../../spec/errors.ts";
import { rowsBetween } from "../../spec/bytes.ts";
import type {
  CollectiveStep,
  Communicator,
  CommunicatorContext,
  Exchange,
} from "../communicator.ts";
import { bytesOf, wordsOf } from "../host_tensor.ts";
import type { RankMemory } from "../memory.ts";
import {
  LOADING_DEADLINE_MS,
  type MpiGroup,
  type MpiWorld,
  startsOf,
  sum,
} from "./world.ts";

/** How a communicator works. */
export interface MpiCommunicatorOptions {
  /** Compare the ranks of a group before every exchange: MPI itself does not notice when they are out of step. */
  readonly check?: boolean;
}

/** One collective among the processes of one group. */
interface Bound {
  readonly world: MpiWorld;
  readonly group: MpiGroup;
  readonly memory: RankMemory;
  readonly context: CommunicatorContext;
  /** This rank's position in the group. */
  readonly position: number;
  readonly compare:
    | ((fingerprint: readonly number[]) => Promise<void>)
    | undefined;
  readonly what: string;
}

/** A communicator for a plan whose rank r is process r of the job. Every process must call it. */
export async function createMpiCommunicator(
  world: MpiWorld,
  plan: Plan,
  options: MpiCommunicatorOptions = {},
): Promise<Communicator> {
  const groups = await splitGroups(world, plan);
  let collectives = 0;
  return {
    remote: {
      rank: world.rank,
      gather: (bytes, lengths, { everywhere }) =>
        world.gather(bytes, lengths, { what: "joining outputs", everywhere }),
    },
    bind(step, [memory], context) {
      const number = collectives++;
      const what = `step '${step.label ?? step.op}'`;
      const group = groups.get(step.over.join())!;
      const ranks = groupOf(plan.mesh, memory!.rank, step.over);
      return bindExchange(step, {
        ...{ world, group, context, what, memory: memory! },
        position: positionOver(plan.mesh, memory!.rank, step.over),
        compare: options.check
          ? comparer({ world, group, ranks, number, what })
          : undefined,
      });
    },
  };
}

/** A communicator for each set of mesh axes that the plan exchanges over, in the order of the plan. */
async function splitGroups(
  world: MpiWorld,
  plan: Plan,
): Promise<Map<string, MpiGroup>> {
  const groups = new Map<string, MpiGroup>();
  for (const { steps } of plan.programs) {
    for (const step of steps) {
      if (step.op !== "allGather" && step.op !== "allToAll") continue;
      const key = step.over.join();
      if (groups.has(key)) continue;
      const [first] = groupOf(plan.mesh, world.rank, step.over);
      const group = await world.split({
        number: first!,
        position: positionOver(plan.mesh, world.rank, step.over),
      }, { what: "the start", deadlineMs: LOADING_DEADLINE_MS });
      groups.set(key, group);
    }
  }
  return groups;
}

function bindExchange(step: CollectiveStep, bound: Bound): Exchange {
  const { memory, context } = bound;
  const { rank } = memory;
  const bytes = (name: string) =>
    onRank(context.plan.buffers[name]!.bytes, rank);
  // What comes in is staged; what goes out is sent from where the device gave it.
  context.staging.reserve(
    rank,
    step.op === "allGather" ? step.bytes * bound.group.size : bytes(step.to),
  );
  return step.op === "allGather"
    ? () => allGather(step, bound)
    : () => allToAll(step, bound);
}

async function allGather(step: AllGatherStep, bound: Bound): Promise<void> {
  const { world, group, memory, context, what } = bound;
  const part = await memory.device.read(
    memory.buffer(step.from),
    0,
    step.bytes,
  );
  await bound.compare?.([step.bytes]);
  const all = context.staging.of(memory.rank)
    .subarray(0, step.bytes * group.size);
  await world.allGather(group, part, all, { what });
  memory.device.write(memory.buffer(step.to), 0, all);
  if (context.sent) {
    context.sent[memory.rank]!.counts += part.length * (group.size - 1);
  }
}

async function allToAll(step: AllToAllStep, bound: Bound): Promise<void> {
  const { world, group, memory, context, position, what } = bound;
  const { rank, device } = memory;
  const rows = await countedRows(step, bound);
  const forward = step.direction === "forward";
  const toOther = rows[position]!;
  const fromOther = rows.map((row) => row[position]!);
  const counts = forward ? toOther : fromOther;
  const arriving = forward ? fromOther : toOther;
  const data = sum(counts) === 0 ? new Uint8Array(0) : await device.read(
    memory.buffer(step.from),
    0,
    sum(counts) * step.rowBytes,
  );
  await bound.compare?.([step.rowBytes, ...rows.flat()]);
  const received = context.staging.of(rank)
    .subarray(0, sum(arriving) * step.rowBytes);
  await world.allToAll(group, step.rowBytes, {
    send: { data, counts, offsets: startsOf(counts) },
    receive: { data: received, counts: arriving, offsets: startsOf(arriving) },
  }, { what });
  if (received.length > 0) {
    device.write(memory.buffer(step.to), 0, received);
  }
  if (context.sent) {
    const verb = step.part?.verb ?? "dispatch";
    context.sent[rank]![verb] += (sum(counts) - counts[position]!) *
      step.rowBytes;
  }
}

/** n(s, p) of the whole group, which every rank of it holds. */
async function countedRows(
  step: AllToAllStep,
  { memory, group }: Bound,
): Promise<number[][]> {
  const columns = step.splits.at(-1)!;
  const counts = wordsOf(
    await memory.device.read(
      memory.buffer(step.counts),
      0,
      4 * columns * group.size,
    ),
  );
  return rowsBetween(
    Array.from({ length: group.size }, (_, s) => [
      ...counts.subarray(s * columns, (s + 1) * columns),
    ]),
    step,
  );
}

interface Comparing {
  readonly world: MpiWorld;
  readonly group: MpiGroup;
  readonly ranks: readonly number[];
  readonly number: number;
  readonly what: string;
}

/** Compares how often this exchange was made, which it is, and a hash of its sizes, among the ranks of the group. */
function comparer(
  { world, group, ranks, number, what }: Comparing,
): (fingerprint: readonly number[]) => Promise<void> {
  let sequence = 0;
  return async (fingerprint) => {
    const own = Uint32Array.of(number, sequence++, hashOf(fingerprint));
    const all = new Uint32Array(3 * group.size);
    await world.allGather(group, bytesOf(own), bytesOf(all), { what });
    const other = ranks.find((_, p) =>
      own.some((word, i) => all[3 * p + i] !== word)
    );
    if (other === undefined) return;
    throw new MachineError(
      `Cannot exchange in ${what}: rank ${other} is out of step with rank ${world.rank}. Check that every rank runs the same command on the same files`,
    );
  };
}

/** FNV-1a over words. */
function hashOf(words: readonly number[]): number {
  return words.reduce(
    (hash, word) => Math.imul(hash ^ word, 0x01000193) >>> 0,
    0x811c9dc5,
  );
}
