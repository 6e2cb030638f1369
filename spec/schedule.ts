/**
 * Pipeline schedules: the order in which stages execute the tasks of micro-batches, and the bubble, the time that
 * stages wait relative to the time that they work.
 */

import { sum } from "./sum.ts";

/** Kinds of tasks. `weights`: gradients of weights, if they are separate from those of activations. */
export type TaskKind = "forward" | "backward" | "weights";

/** The name of a schedule. */
export type ScheduleName = "1f1b" | "gpipe" | "zerobubble";

/** A schedule. */
interface Schedule {
  /** Completes "Pipeline schedule: ". */
  readonly about: string;
  /** The kinds of tasks, the first to be started first. */
  readonly order: readonly TaskKind[];
  /**
   * Whether a stage starts at most as many forward passes before their backward passes as there are stages after it.
   */
  readonly bounded: boolean;
  /** Whether gradients of weights are separate tasks. */
  readonly splits: boolean;
}

/** Schedules, the default first. */
export const SCHEDULES = {
  "1f1b": {
    about: "one forward, one backward, which saves few activations",
    order: ["backward", "forward"],
    bounded: true,
    splits: false,
  },
  gpipe: {
    about: "all forward passes first",
    order: ["forward", "backward"],
    bounded: false,
    splits: false,
  },
  zerobubble: {
    about:
      "as 1f1b, but weight gradients are computed while a stage would wait",
    order: ["backward", "forward", "weights"],
    bounded: true,
    splits: true,
  },
} as const satisfies { readonly [name in ScheduleName]: Schedule };

/** Names of the schedules, the default first. */
export const SCHEDULE_NAMES = Object.keys(SCHEDULES) as [
  ScheduleName,
  ...ScheduleName[],
];

/** A task of a micro-batch on a stage. */
export interface Task {
  readonly kind: TaskKind;
  readonly micro: number;
  readonly stage: number;
  /** Estimated time, in any unit. */
  readonly seconds: number;
  /** Tasks that it depends on. */
  readonly after: readonly Task[];
}

/** When a task starts and ends. */
export interface TaskTime {
  readonly task: Task;
  readonly start: number;
  readonly end: number;
}

/** A task whose operands are known, and its earliest start. */
interface Ready {
  readonly task: Task;
  readonly start: number;
}

/**
 * Executes tasks as soon as their stage is free. If several are ready, the first in the order of the schedule starts.
 */
export function listTasks(
  tasks: readonly Task[],
  { order, bounded }: Schedule,
): TaskTime[] {
  const stages = Math.max(0, ...tasks.map(({ stage }) => stage + 1));
  const free = new Array<number>(stages).fill(0);
  const ends = new Map<Task, number>();
  const waiting = new Set(tasks);
  const times: TaskTime[] = [];
  /** By stage, the micro-batches whose forward pass has started, and the ends of backward passes of micro-batches. */
  const started = free.map(() => new Set<number>());
  const ended = free.map(() => new Map<number, number>());
  const inFlight = (stage: number, at: number): number =>
    [...started[stage]!].filter((micro) =>
      (ended[stage]!.get(micro) ?? Infinity) > at
    ).length;
  while (waiting.size > 0) {
    let best: Ready | undefined;
    const rank = ({ kind, micro }: Task) =>
      order.indexOf(kind) * tasks.length + micro;
    const ready = [...waiting].flatMap((task): Ready[] => {
      if (task.after.some((before) => !ends.has(before))) return [];
      const start = Math.max(
        free[task.stage]!,
        ...task.after.map((before) => ends.get(before)!),
      );
      return [{ task, start }];
    });
    const allowed = ready.filter(({ task: { kind, stage, micro }, start }) =>
      // A micro-batch that has started on the stage continues.
      !bounded || kind !== "forward" || started[stage]!.has(micro) ||
      inFlight(stage, start) < stages - stage
    );
    /** By stage, the first start of a task for whose result other stages wait. */
    const urgent = free.map(() => Infinity);
    for (const { task: { kind, stage }, start } of allowed) {
      if (kind !== "weights") urgent[stage] = Math.min(urgent[stage]!, start);
    }
    for (const one of allowed.length > 0 ? allowed : ready) {
      const { task, start } = one;
      // A short wait for such a task delays less than gradients of weights.
      const waits = task.kind === "weights" &&
        urgent[task.stage]! < start + task.seconds / 8;
      const sooner = !best || start < best.start ||
        start === best.start && rank(task) < rank(best.task);
      if (sooner && !waits) best = one;
    }
    const { task, start } = best!;
    const end = start + task.seconds;
    free[task.stage] = end;
    ends.set(task, end);
    waiting.delete(task);
    times.push({ task, start, end });
    if (task.kind === "forward") started[task.stage]!.add(task.micro);
    if (task.kind === "backward") ended[task.stage]!.set(task.micro, end);
  }
  return times;
}

/** The tasks of equal stages, whose backward pass takes twice as long as the forward pass. */
function equalTasks(
  { stages, microBatches, splits }: {
    readonly stages: number;
    readonly microBatches: number;
    readonly splits: boolean;
  },
): Task[] {
  const all: Task[] = [];
  for (let micro = 0; micro < microBatches; micro++) {
    let before: Task | undefined;
    const add = (kind: TaskKind, stage: number, seconds: number) => {
      const task: Task = {
        kind,
        micro,
        stage,
        seconds,
        after: before ? [before] : [],
      };
      all.push(task);
      return task;
    };
    for (let stage = 0; stage < stages; stage++) {
      before = add("forward", stage, 1);
    }
    for (let stage = stages - 1; stage >= 0; stage--) {
      before = add("backward", stage, splits ? 1 : 2);
      if (splits) add("weights", stage, 1);
    }
  }
  return all;
}

/** The time that stages wait in a schedule, relative to the time that they work. */
export function bubbleOf(times: readonly TaskTime[]): number {
  const stages = Math.max(0, ...times.map(({ task }) => task.stage + 1));
  const end = Math.max(0, ...times.map(({ end }) => end));
  const busy = sum(times.map(({ task }) => task.seconds));
  return busy === 0 ? 0 : (stages * end - busy) / busy;
}

/** The bubble of equal stages: (p - 1) / m for `gpipe` and `1f1b` with p stages and m micro-batches. */
export function idealBubble(
  name: ScheduleName,
  size: { readonly stages: number; readonly microBatches: number },
): number {
  const schedule = SCHEDULES[name];
  return bubbleOf(
    listTasks(equalTasks({ ...size, splits: schedule.splits }), schedule),
  );
}
