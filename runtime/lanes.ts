/**
 * Lanes: ranks of this process that execute runs independently of the others. The ranks of a pipeline stage are one
 * lane, so stages execute different runs at the same time. Ranks that share a device are in one lane.
 */

import { cachedIn } from "../spec/bounded_cache.ts";
import { groupRankOf, stageAxis } from "../spec/mesh.ts";
import { unneededLaunches } from "../spec/plan/needed.ts";
import type { Plan, Program } from "../spec/plan/plan.ts";
import type { BoundProgram, InFlight, ReadyPart } from "./bound_program.ts";
import type { RankMemory } from "./memory.ts";

/** A lane, and the end of its last run. */
export interface Lane {
  readonly ranks: readonly RankMemory[];
  last: Promise<unknown> | undefined;
}

/** The lanes of the ranks of this process. */
export function lanesOf({ mesh }: Plan, ranks: readonly RankMemory[]): Lane[] {
  const axis = stageAxis(mesh);
  const stageOf = ({ rank }: RankMemory) =>
    axis ? groupRankOf(mesh, rank, [axis.name]) : 0;
  let lanes: (readonly RankMemory[])[] = [];
  for (const memory of ranks) {
    const joins = (lane: readonly RankMemory[]) =>
      lane.some((other) =>
        other.device === memory.device || stageOf(other) === stageOf(memory)
      );
    lanes = [
      ...lanes.filter((lane) => !joins(lane)),
      [...lanes.filter(joins).flat(), memory],
    ];
  }
  return lanes.map((lane) => ({
    ranks: ranks.filter((memory) => lane.includes(memory)),
    last: undefined,
  }));
}

/** A part of a program on a lane, and the number of lanes that execute it. */
export interface LanePart {
  readonly part: ReadyPart;
  readonly lanes: number;
}

/** The parts of each lane, in order. */
type LaneParts = readonly (readonly LanePart[])[];

/** A bound program on lanes. */
export interface LaneProgram {
  readonly program: Program;
  readonly inFlight: InFlight;
  /** The parts of each lane that a run with these outputs needs. */
  partsFor(outputs: readonly string[]): LaneParts;
}

/** Divides the parts of a program among lanes, once for each list of outputs. */
export function laneProgram(
  plan: Plan,
  program: Program,
  { bound: { partsWithout, inFlight }, lanes }: {
    readonly bound: BoundProgram;
    readonly lanes: readonly Lane[];
  },
): LaneProgram {
  const byOutputs = new Map<string, LaneParts>();
  /** By launches that are not executed, which may be the same for other outputs. */
  const byLaunches = new Map<string, LaneParts>();
  return {
    program,
    inFlight,
    partsFor: (outputs) =>
      cachedIn(byOutputs, outputs.join(), {
        create: () => {
          const launches = unneededLaunches(plan, program, outputs);
          return cachedIn(byLaunches, [...launches].join(), {
            create: () => divideParts(partsWithout(launches), lanes),
          });
        },
      }),
  };
}

function divideParts(
  parts: readonly ReadyPart[],
  lanes: readonly Lane[],
): LaneParts {
  const byLane: LanePart[][] = lanes.map(() => []);
  for (const part of parts) {
    const on = lanes.flatMap(({ ranks }, i) =>
      ranks.some(({ rank }) => part.ranks.includes(rank)) ? i : []
    );
    const shared = { part, lanes: on.length };
    for (const i of on) byLane[i]!.push(shared);
  }
  return byLane;
}

/** A part of several lanes that some of them have reached. */
interface Barrier {
  missing: number;
  readonly done: Promise<void>;
  resolve(): void;
  reject(error: unknown): void;
}

/** One run on all lanes. */
export class LaneRun {
  readonly #execute: (part: ReadyPart) => void | Promise<void>;
  readonly #barriers = new Map<LanePart, Barrier>();
  /** The first error of a lane. */
  #failure: { readonly error: unknown } | undefined;

  /** `execute`: executes a part, once. */
  constructor(execute: (part: ReadyPart) => void | Promise<void>) {
    this.#execute = execute;
  }

  /** Executes a part. The last lane that reaches it executes a part of several lanes; the others wait for its end. */
  execute(one: LanePart): void | Promise<void> {
    return one.lanes === 1 ? this.#execute(one.part) : this.#join(one);
  }

  async #join(one: LanePart): Promise<void> {
    if (this.#failure) throw this.#failure.error;
    const barrier = this.#barriers.get(one) ?? openBarrier(one.lanes);
    this.#barriers.set(one, barrier);
    if (--barrier.missing > 0) return await barrier.done;
    await this.#execute(one.part);
    barrier.resolve();
  }

  /**
   * Calls `work` for each lane, after the earlier runs of the lane. Waits for all. If one fails, the others end at
   * their next common part, and the first error is thrown.
   */
  async on<T>(
    lanes: readonly Lane[],
    work: (lane: Lane, index: number) => Promise<T>,
  ): Promise<T[]> {
    const ends = await Promise.allSettled(lanes.map((lane, index) => {
      const { last } = lane;
      const end = last ? last.then(() => work(lane, index)) : work(lane, index);
      lane.last = end;
      end.catch((error: unknown) => this.#fail(error));
      return end;
    }));
    if (this.#failure) throw this.#failure.error;
    return ends.flatMap((end) => end.status === "fulfilled" ? [end.value] : []);
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    for (const { reject } of this.#barriers.values()) reject(error);
  }
}

function openBarrier(lanes: number): Barrier {
  let resolve!: () => void, reject!: (error: unknown) => void;
  const done = new Promise<void>((...settle) => [resolve, reject] = settle);
  // The lanes that wait report its failure.
  done.catch(() => {});
  return { missing: lanes, done, resolve, reject };
}
