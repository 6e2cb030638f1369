/** A bound program: every step with its devices, buffers and sizes, so that a run looks up no names. */

import { invariant } from "../spec/errors.ts";
import { startedBy } from "../spec/plan/handles.ts";
import { executes, membersOf } from "../spec/plan/members.ts";
import { loopsOf } from "../spec/plan/rounds.ts";
import { onRank } from "../spec/per_rank.ts";
import type {
  AllToAllStep,
  CollectiveStep,
  LaunchStep,
  Plan,
  Program,
  RoundsStep,
  Step,
} from "../spec/plan/plan.ts";
import type {
  Communicator,
  CommunicatorContext,
} from "./exchange/communicator.ts";
import type { Device, Launch } from "./device.ts";
import { kernelKey } from "./kernel_key.ts";
import type { RankMemory } from "./memory.ts";
import { bindRounds, type BoundRounds } from "./exchange/rounds.ts";
import { bindWorkgroups, type RunCounts } from "./run_counts.ts";

/** A program whose steps are bound. */
export interface BoundProgram {
  /** Returns the parts on their ranks, in order. `launches`: indices of steps that are left out. */
  partsWithout(launches: ReadonlySet<number>): readonly ReadyPart[];
  /** Exchanges that a failed run has left in flight. */
  readonly inFlight: InFlight;
}

/** Asynchronous exchanges in flight, by handle. */
export class InFlight {
  readonly #exchanges = new Map<string, Promise<void>[]>();

  /** Adds an exchange that was started. */
  add(handle: string, exchange: Promise<void>): void {
    // The wait reports its failure.
    exchange.catch(() => {});
    const known = this.#exchanges.get(handle);
    if (known) known.push(exchange);
    else this.#exchanges.set(handle, [exchange]);
  }

  /** Waits for the exchanges of a handle. Returns nothing if none of them needs the host. */
  wait(handle: string): Promise<void> | void {
    const exchanges = this.#exchanges.get(handle);
    this.#exchanges.delete(handle);
    if (exchanges) return Promise.all(exchanges).then(() => {});
  }

  /** Waits until nothing is in flight, successful or not. */
  async settle(): Promise<void> {
    const all = [...this.#exchanges.values()].flat();
    this.#exchanges.clear();
    await Promise.allSettled(all);
  }
}

/** A part of a step, or the rounds of an exchange. */
export type ReadyPart = ReadyStep | ReadyRounds;

/** A part of a step. It returns a promise only if the host must wait. */
export interface ReadyStep {
  /** The ranks of this process that execute it. */
  readonly ranks: readonly number[];
  /** The collective that ends with it on all ranks: that of its step, or the one that it waits for. */
  readonly collective: CollectiveStep | undefined;
  readonly execute: (counts: RunCounts) => void | Promise<void>;
}

/** The parts that are repeated for each round of an exchange. */
export interface ReadyRounds {
  /** The ranks of this process that execute them. */
  readonly ranks: readonly number[];
  readonly rounds: BoundRounds;
  readonly parts: readonly ReadyStep[];
}

/** Executes a part. `done` is called after each collective. Returns a promise only if the host must wait. */
export function executePart(
  part: ReadyPart,
  counts: RunCounts,
  done: ((collective: CollectiveStep) => Promise<void>) | undefined,
): void | Promise<void> {
  if ("rounds" in part) return executeRounds(part, counts, done);
  const wait = part.execute(counts);
  const { collective } = part;
  if (!collective || !done) return wait;
  return Promise.resolve(wait).then(() => done(collective));
}

async function executeRounds(
  { rounds, parts }: ReadyRounds,
  ...rest: [RunCounts, Parameters<typeof executePart>[2]]
): Promise<void> {
  const count = await rounds.begin();
  for (let round = 0; round < count; round++) {
    rounds.start(round);
    for (const part of parts) {
      const wait = executePart(part, ...rest);
      if (wait) await wait;
    }
  }
}

/** One part of a step: a launch or copy on a rank, or a collective of a group. */
export interface BoundPart {
  readonly ranks: readonly number[];
  readonly execute: (counts: RunCounts) => void | Promise<void>;
  readonly launch?: BoundLaunch;
}

/** A launch on a device, given the lengths of a run. */
interface BoundLaunch {
  readonly device: Device;
  readonly of: (counts: RunCounts) => Launch;
}

/** Context of binding. */
export interface BindContext extends CommunicatorContext {
  readonly ranks: readonly RankMemory[];
  readonly communicator: Communicator;
  /** Wraps every part, for a trace. */
  readonly around?: (step: Step, part: BoundPart, index: number) => BoundPart;
}

/** Resolves every name of a program. */
export function bindProgram(
  program: Program,
  context: BindContext,
): BoundProgram {
  const { around = (_: Step, part: BoundPart) => part } = context;
  const inFlight = new InFlight();
  const started = startedBy(program.steps);
  const ready = program.steps.map((step, index) => {
    const bound = bindStep(step, context, inFlight);
    return bound.map((part, i): JoinedStep => {
      const done = around(step, part, index).execute;
      const last = i === bound.length - 1;
      return {
        ranks: part.ranks,
        // A wrapped launch cannot be joined with others.
        ...part.launch && !context.around ? { launch: part.launch } : {},
        collective: last ? collectiveOver(step, started) : undefined,
        execute: isAsynchronous(step, part, context)
          ? (counts: RunCounts) => {
            const exchange = done(counts);
            if (exchange) inFlight.add(step.handle, exchange);
          }
          : done,
      };
    });
  });
  const loops = loopsOf(program.steps).map(({ first, last }) => {
    const step = program.steps[first] as RoundsStep;
    const here = ranksOf(step, context);
    const rounds = bindRounds(step, groupsOf(step, here, context), context);
    return { first, last, ranks: here.map(({ rank }) => rank), rounds };
  });
  const partsWithout = (launches: ReadonlySet<number>): ReadyPart[] => {
    const left = ready.map((parts, i) => launches.has(i) ? [] : parts);
    const joined = (from: number, end: number) =>
      joinLaunches(left.slice(from, end).flat());
    const parts: ReadyPart[] = [];
    let next = 0;
    for (const { first, last, ...loop } of loops) {
      parts.push(...joined(next, first));
      parts.push({ ...loop, parts: joined(first, last + 1) });
      next = last + 1;
    }
    return [...parts, ...joined(next, left.length)];
  };
  return { partsWithout, inFlight };
}

/** A step that may be joined with others. */
type JoinedStep = ReadyStep & Pick<BoundPart, "launch">;

/** Joins consecutive launches for devices that can start several at once. */
function joinLaunches(
  parts: readonly JoinedStep[],
): ReadyStep[] {
  const joined: ReadyStep[] = [];
  for (let from = 0; from < parts.length;) {
    const device = parts[from]!.launch?.device;
    let to = from + 1;
    if (device?.launchAll) {
      while (parts[to]?.launch?.device === device) to++;
    }
    joined.push(
      to > from + 1 ? allAtOnce(device!, parts.slice(from, to)) : parts[from]!,
    );
    from = to;
  }
  return joined;
}

function allAtOnce(
  device: Device,
  parts: readonly JoinedStep[],
): ReadyStep {
  const launches = parts.map(({ launch }) => launch!);
  // A session passes the same object while lengths do not change, as in decode.
  let last: RunCounts | undefined;
  let known: readonly Launch[] = [];
  return {
    ranks: [...new Set(parts.flatMap(({ ranks }) => ranks))],
    collective: undefined,
    execute: (counts) => {
      if (counts !== last) {
        known = Object.freeze(launches.map(({ of }) => of(counts)));
        last = counts;
      }
      device.launchAll!(known);
    },
  };
}

function collectiveOver(
  step: Step,
  started: ReadonlyMap<string, AllToAllStep>,
): CollectiveStep | undefined {
  if (step.op === "allGather" || step.op === "send") return step;
  if (step.op === "wait") return started.get(step.handle);
  return step.op === "allToAll" && step.handle === undefined ? step : undefined;
}

/**
 * Whether a part of a step is asynchronous. Exchanges among ranks that share a device are launches, which run in order.
 */
export function isAsynchronous(
  step: Step,
  part: Pick<BoundPart, "ranks">,
  { ranks }: { readonly ranks: readonly RankMemory[] },
): step is AllToAllStep & { readonly handle: string } {
  if (step.op !== "allToAll" || step.handle === undefined) return false;
  const devices = ranks.filter(({ rank }) => part.ranks.includes(rank))
    .map(({ device }) => device);
  return devices.length === 1 || new Set(devices).size > 1;
}

/** The ranks of this process that execute a step. */
function ranksOf(step: Step, { ranks, plan }: BindContext): RankMemory[] {
  return ranks.filter(({ rank }) => executes(plan.mesh, rank, step));
}

function bindStep(
  step: Step,
  context: BindContext,
  inFlight: InFlight,
): BoundPart[] {
  const here = ranksOf(step, context);
  switch (step.op) {
    case "launch":
      return here.map((memory) => bindLaunch(step, memory, context.plan));
    case "copy":
      return here.map((memory) => {
        const [from, to] = [memory.buffer(step.from), memory.buffer(step.to)];
        const bytes = onRank(step.bytes, memory.rank);
        return {
          ranks: [memory.rank],
          execute: () => memory.device.copy(from, 0, to, 0, bytes),
        };
      });
    case "allGather":
    case "allToAll":
    case "send":
      return groupsOf(step, here, context).map((group) => ({
        ranks: group.map(({ rank }) => rank),
        execute: bindCollective(step, group, context),
      }));
    case "wait":
      return [{
        ranks: here.map(({ rank }) => rank),
        execute: () => {
          const exchange = inFlight.wait(step.handle);
          // Launches recorded so far should run while the exchange is in flight.
          if (exchange) { for (const { device } of here) device.submit(); }
          return exchange;
        },
      }];
    case "rounds":
      return [];
    default:
      return step satisfies never;
  }
}

/** A collective of a group. It does nothing in a run in which no rank of the group has rows. */
function bindCollective(
  step: CollectiveStep,
  group: readonly RankMemory[],
  context: BindContext,
): BoundPart["execute"] {
  const { plan, communicator } = context;
  const exchange = communicator.bind(step, group, context);
  if (step.op === "allToAll" || !step.rows) return exchange;
  const members = membersOf(plan.mesh, group[0]!.rank, step);
  const at = plan.counts.indexOf(step.rows.axis);
  return (counts) =>
    members.some((rank) => counts[rank]![at]! > 0)
      ? exchange(counts)
      : undefined;
}

function bindLaunch(
  step: LaunchStep,
  memory: RankMemory,
  plan: Plan,
): BoundPart {
  const kernel = plan.kernels[step.kernel];
  invariant(kernel, `no kernel '${step.kernel}'`);
  const buffers = Object.freeze(
    kernel.tree.bindings.map(({ name }) => memory.buffer(step.bindings[name]!)),
  );
  const tiles = kernel.tree.bindings.findIndex(({ name }) =>
    plan.buffers[step.bindings[name]!]?.routing === "tiles"
  );
  const workgroups = bindWorkgroups(step.workgroups, plan, memory.rank);
  const { device } = memory;
  const key = kernelKey(plan, step.kernel);
  if (tiles >= 0) {
    const slotted = memory.slots?.bind(buffers, tiles);
    if (slotted) {
      return {
        ranks: [memory.rank],
        execute: (counts) => slotted(key, workgroups(counts), step.label),
      };
    }
    device.streamFor?.(buffers, tiles);
  }
  return {
    ranks: [memory.rank],
    execute: (counts) =>
      device.launch(key, buffers, workgroups(counts), step.label),
    launch: {
      device,
      of: (counts) => ({
        kernel: key,
        buffers,
        workgroups: workgroups(counts),
      }),
    },
  };
}

/** The groups of a collective, by group rank. Ranks of other processes are unknown here. */
function groupsOf(
  step: Pick<CollectiveStep, "over">,
  here: readonly RankMemory[],
  context: BindContext,
): RankMemory[][] {
  const groups = new Map<string, RankMemory[]>();
  for (const { rank } of here) {
    const group = membersOf(context.plan.mesh, rank, step);
    const local = group.flatMap((other) =>
      context.ranks.filter((memory) => memory.rank === other)
    );
    groups.set(group.join(), local);
  }
  return [...groups.values()];
}
