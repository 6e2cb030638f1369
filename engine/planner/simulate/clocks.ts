/** The time of each class of equal ranks in a predicted step, by layer and cause. */

import type { Mesh } from "../../../spec/mesh.ts";
import { executes } from "../../../spec/plan/members.ts";
import type { Step } from "../../../spec/plan/plan.ts";
import type { RankGroup } from "./rank_groups.ts";

/** Seconds of a device by cause. */
export interface Parts {
  /** Launch overhead. */
  readonly launch: number;
  readonly arithmetic: number;
  readonly memory: number;
  /** Reading experts, except while others are computed. */
  readonly disk: number;
  readonly exchange: number;
  /** Waiting for ranks with more work. */
  readonly waiting: number;
  /** Host time per run, and at its exchanges. */
  readonly run: number;
}

/** No time. */
export const NO_PARTS: Parts = {
  launch: 0,
  arithmetic: 0,
  memory: 0,
  disk: 0,
  exchange: 0,
  waiting: 0,
  run: 0,
};

/** Time of the ranks of a class in a step. */
export interface SpentTime {
  /** The first rank of the class. */
  readonly rank: number;
  /** Index of the step. */
  readonly step: number;
  readonly what: keyof Parts;
  /** Seconds since the start of the program. */
  readonly start: number;
  readonly seconds: number;
}

/** The time of a class. */
interface Clock {
  /** Seconds since the start of the program. */
  now: number;
  /** Whether its device has launches that the host has not waited for. */
  busy: boolean;
  /** Seconds in which it does not wait for another stage, in all layers. */
  worked: number;
}

type MutableParts = { -readonly [P in keyof Parts]: number };

/** A step in the program, and its layer. */
export interface StepLocation {
  readonly index: number;
  readonly layer: number;
}

/** Clocks of the classes. */
export interface Clocks {
  readonly all: readonly Clock[];
  /** Seconds of each layer by cause, as one class reports them for each step. */
  readonly layers: readonly Parts[];
  /**
   * The class that reports the step: the first that executes it. Classes that work at the same time count once. -1:
   * none.
   */
  reporter: number;
  /** The step whose time is spent. */
  at: StepLocation;
  /** Number of layers that the layer of the step represents. */
  readonly times: number;
  spend(i: number, what: keyof Parts, seconds: number): void;
  /** The classes that execute the step, or all classes, wait until a time. */
  waitUntil(time: number, what: keyof Parts, step?: Step): void;
}

/** Starts the clocks of a program. */
export function startClocks(
  groups: readonly RankGroup[],
  { mesh, times, together, onSpent }: {
    readonly mesh: Mesh;
    /** Number of layers that each layer represents. */
    readonly times: readonly number[];
    /** Whether stages work at the same time, on different micro-batches. */
    readonly together: boolean;
    readonly onSpent?: ((spent: SpentTime) => void) | undefined;
  },
): Clocks {
  const all = groups.map((): Clock => ({ now: 0, busy: false, worked: 0 }));
  const layers = times.map((): MutableParts => ({ ...NO_PARTS }));
  let reported = 0;
  const clocks: Clocks = {
    all,
    layers,
    reporter: 0,
    at: { index: 0, layer: 0 },
    get times() {
      return times[clocks.at.layer]!;
    },
    spend: (i, what, seconds) => {
      const { rank } = groups[i]!;
      const { index: step, layer } = clocks.at;
      const clock = all[i]!;
      const start = clock.now;
      onSpent?.({ rank, step, what, start, seconds });
      const end = clock.now += seconds;
      clock.worked += seconds * times[layer]!;
      if (i !== clocks.reporter) return;
      layers[layer]![what] += together
        ? seconds
        : Math.max(0, end - Math.max(start, reported));
      reported = Math.max(reported, end);
    },
    waitUntil: (time, what, step) => {
      for (const [i, clock] of all.entries()) {
        if (step && !executes(mesh, groups[i]!.rank, step)) continue;
        if (time > clock.now) clocks.spend(i, what, time - clock.now);
      }
    },
  };
  return clocks;
}

/** The seconds of all layers by cause. */
export function addLayers(
  layers: readonly Parts[],
  times: readonly number[],
): Parts {
  const all: MutableParts = { ...NO_PARTS };
  for (const [i, parts] of layers.entries()) {
    for (const part of Object.keys(all) as (keyof Parts)[]) {
      all[part] += parts[part] * times[i]!;
    }
  }
  return all;
}
