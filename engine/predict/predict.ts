/** How long a step of a plan would take on a machine: every launch and exchange in its order, each device with its own clock. */

import { bindWorkgroups, gatheredRows } from "../../runtime/run_counts.ts";
import { rowsBetween } from "../../spec/bytes.ts";
import { DataError } from "../../spec/errors.ts";
import {
  type Machine,
  placeRanks,
  type RankPlacement,
} from "../../spec/machine.ts";
import { groupOf } from "../../spec/mesh.ts";
import {
  type AllGatherStep,
  type AllToAllStep,
  onRank,
  type Plan,
  type Step,
} from "../../spec/plan.ts";
import { launchSeconds, type TouchedBytes } from "../simulate/device_time.ts";
import { type Known, KnownBuffers } from "./known.ts";
import { LaunchCounter, type LaunchWork } from "./launch.ts";
import { layersOf } from "../../spec/layers.ts";
import { type PlacedLaunch, placedLaunches } from "./local_exchange.ts";
import { exchangeSeconds } from "./link_time.ts";
import { dealScene, type Scene, type SceneOptions } from "./scene.ts";

/** Seconds of a device, and what for. */
export interface Parts {
  /** What every launch takes, however little it does. */
  launch: number;
  arithmetic: number;
  memory: number;
  exchange: number;
  /** For ranks that have more to do. */
  waiting: number;
  /** What the host takes besides: for a run, and at its exchanges. */
  run: number;
}

/** One layer of a predicted step, on the device that waits least. */
export interface PredictedLayer extends Readonly<Parts> {
  readonly name: string;
}

/** A predicted step. */
export interface Prediction {
  readonly mesh: Plan["mesh"];
  readonly ranks: number;
  /** Devices that the ranks live on. */
  readonly devices: number;
  readonly seconds: number;
  /** Seconds of the device that waits least, by what they are for. */
  readonly parts: Readonly<Parts>;
  /** How many times the mean of all devices the busiest one computes. */
  readonly imbalance: number;
  /** Launches on that device. */
  readonly launches: number;
  /** Bytes of expert weights that the rank with most of them reads. */
  readonly expertBytes: number;
  /** Bytes that all ranks send to other ranks. */
  readonly sentBytes: number;
  readonly layers: readonly PredictedLayer[];
  /** Memory that the fullest device needs, and has, where the machine file says. */
  readonly memory: { readonly needed: number; readonly available?: number };
  /** False where the work of a kernel depends on data of which nothing is assumed; its time is then a lower bound. */
  readonly exact: boolean;
}

/** Predict one step of a plan's first program. Throws DataError where the machine has too few places for ranks. */
export function predictStep(
  plan: Plan,
  machine: Machine,
  options: SceneOptions,
): Prediction {
  return new Prophet(plan, machine, dealScene(plan, options)).predict();
}

const NOTHING: Parts = {
  launch: 0,
  arithmetic: 0,
  memory: 0,
  exchange: 0,
  waiting: 0,
  run: 0,
};

/** A device in a predicted step. */
interface Clock {
  readonly host: number;
  readonly kind: string;
  readonly ranks: number[];
  /** Everything that its ranks hold fits its cache. */
  cached: boolean;
  now: number;
  launches: number;
  /** Launches came since its last exchange. */
  busy: boolean;
  readonly layers: Parts[];
}

class Prophet {
  readonly #plan: Plan;
  readonly #machine: Machine;
  readonly #scene: Scene;
  readonly #known: KnownBuffers;
  readonly #counter = new LaunchCounter();
  readonly #exchangeLaunches: ReturnType<typeof placedLaunches>;
  readonly #places: readonly RankPlacement[];
  readonly #clocks = new Map<number, Clock>();
  readonly #layers: {
    readonly names: readonly string[];
    readonly of: readonly number[];
  };
  readonly #experts: number[];
  /** When exchanges that were started are over, by handle and group. */
  readonly #ends = new Map<string, number>();
  #layer = 0;
  #sent = 0;
  #exact = true;

  constructor(plan: Plan, machine: Machine, scene: Scene) {
    this.#plan = plan;
    this.#machine = machine;
    this.#scene = scene;
    this.#exchangeLaunches = placedLaunches(scene);
    this.#known = new KnownBuffers(scene);
    this.#layers = layersOf(plan, scene.program);
    this.#experts = new Array<number>(plan.ranks).fill(0);
    const places = placeRanks(machine);
    if (plan.ranks > places.length) {
      throw new DataError(
        `Cannot predict ${plan.ranks} ranks: the machine '${machine.name}' has places for ${places.length}. Use a smaller mesh, or describe a larger machine`,
      );
    }
    this.#places = places.slice(0, plan.ranks);
    for (const [rank, { device, host, kind }] of this.#places.entries()) {
      const clock = this.#clocks.get(device);
      if (clock) clock.ranks.push(rank);
      else {
        this.#clocks.set(device, {
          host,
          kind,
          ranks: [rank],
          cached: false,
          now: 0,
          launches: 0,
          busy: false,
          layers: this.#layers.names.map(() => ({ ...NOTHING })),
        });
      }
    }
    for (const clock of this.#clocks.values()) {
      const { cache } = machine.devices[clock.kind]!;
      clock.cached = this.#held(clock) <= (cache?.bytes ?? 0);
    }
  }

  predict(): Prediction {
    for (const [i, step] of this.#scene.program.steps.entries()) {
      this.#layer = this.#layers.of[i]!;
      this.#step(step);
    }
    const clocks = [...this.#clocks.values()];
    const end = Math.max(...clocks.map(({ now }) => now));
    for (const clock of clocks) {
      this.#advance(clock, end, "waiting");
      const { run = 0 } = this.#machine.devices[clock.kind]!;
      this.#advance(clock, end + run, "run");
    }
    const totals = clocks.map(({ layers }) => addUp(layers));
    const busiest = totals.reduce(
      (best, { waiting }, i) => waiting < totals[best]!.waiting ? i : best,
      0,
    );
    const { layers, launches } = clocks[busiest]!;
    return {
      mesh: this.#plan.mesh,
      ranks: this.#plan.ranks,
      devices: clocks.length,
      seconds: Math.max(...clocks.map(({ now }) => now)),
      parts: totals[busiest]!,
      imbalance: imbalanceOf(totals),
      launches,
      expertBytes: Math.max(...this.#experts),
      sentBytes: this.#sent,
      layers: this.#layers.names.map((name, i) => ({ name, ...layers[i]! })),
      memory: this.#fullest(clocks),
      exact: this.#exact,
    };
  }

  #held({ ranks }: Clock): number {
    return ranks.reduce((n, r) => n + onRank(this.#plan.peakBytes, r), 0);
  }

  #fullest(clocks: readonly Clock[]): Prediction["memory"] {
    const sorted = clocks.map((clock) => ({
      needed: this.#held(clock),
      available: this.#machine.devices[clock.kind]!.memory,
    })).sort((a, b) =>
      b.needed / (b.available ?? Infinity) -
        a.needed / (a.available ?? Infinity) || b.needed - a.needed
    );
    const { needed, available } = sorted[0]!;
    return available === undefined ? { needed } : { needed, available };
  }

  #advance(clock: Clock, to: number, what: keyof Parts): void {
    if (to <= clock.now) return;
    clock.layers[this.#layer]![what] += to - clock.now;
    clock.now = to;
  }

  #step(step: Step): void {
    const ranks = step.ranks === "all"
      ? this.#places.map((_, rank) => rank)
      : step.ranks;
    switch (step.op) {
      case "launch": {
        const { tree } = this.#plan.kernels[step.kernel]!;
        return this.#launches(ranks.map((rank) => {
          const size = bindWorkgroups(step.workgroups, this.#plan, rank)(
            this.#scene.counts,
          );
          const buffers = tree.bindings.map(({ name }) => step.bindings[name]!);
          return { rank, kernel: tree, size, buffers };
        }));
      }
      case "copy":
        for (const rank of ranks) {
          const clock = this.#clockOf(rank);
          const { launch, bandwidth } = this.#machine.devices[clock.kind]!;
          this.#advance(clock, clock.now + launch, "launch");
          const seconds = 2 * onRank(step.bytes, rank) / bandwidth;
          this.#advance(clock, clock.now + seconds, "memory");
        }
        return;
      case "allGather":
      case "allToAll":
        for (const group of this.#groups(step, ranks)) {
          this.#exchange(step, group);
        }
        return;
      case "wait":
        for (const rank of ranks) {
          const end = this.#ends.get(`${step.handle} ${rank}`) ?? 0;
          this.#advance(this.#clockOf(rank), end, "exchange");
        }
    }
  }

  #clockOf(rank: number): Clock {
    return this.#clocks.get(this.#places[rank]!.device)!;
  }

  #groups(
    { over }: AllGatherStep | AllToAllStep,
    ranks: readonly number[],
  ): number[][] {
    const groups = new Map<string, number[]>();
    for (const rank of ranks) {
      const group = groupOf(this.#plan.mesh, rank, over);
      groups.set(group.join(), group);
    }
    return [...groups.values()];
  }

  /** Launches of one step: devices work at the same time, ranks of one device one after the other. */
  #launches(
    launches: readonly PlacedLaunch[],
    exchange?: AllGatherStep | AllToAllStep,
  ): void {
    const started = launches.filter(({ size }) => !size.includes(0));
    const busy = new Map<number, Set<number>>();
    for (const { rank } of started) {
      const { host, device } = this.#places[rank]!;
      busy.set(host, (busy.get(host) ?? new Set()).add(device));
    }
    for (const launch of started) {
      const { rank } = launch;
      const clock = this.#clockOf(rank);
      const work = this.#count(launch);
      this.#exact &&= work.exact;
      const device = this.#machine.devices[clock.kind]!;
      const moves = exchange?.op === "allToAll" ? device.exchange : {};
      const seconds = launchSeconds({ ...device, ...moves }, work, {
        ...this.#touched(launch, work),
        cached: clock.cached,
      });
      const slower = Math.max(
        1,
        busy.get(clock.host)!.size / this.#atOnce(clock.host),
      );
      clock.launches++;
      clock.busy = true;
      for (const part of ["launch", "arithmetic", "memory"] as const) {
        const end = clock.now + seconds[part] * slower;
        this.#advance(clock, end, exchange ? "exchange" : part);
      }
    }
  }

  #count({ rank, kernel, size, buffers }: PlacedLaunch): LaunchWork {
    const known = buffers.map((name): Known | undefined =>
      name === undefined ? undefined : this.#known.of(rank, name)
    );
    return this.#counter.count(kernel, size, known);
  }

  /** Different bytes that a launch touches: what it loads and stores, but no buffer more than once each way. */
  #touched(
    { rank, buffers }: PlacedLaunch,
    { loads, stores }: LaunchWork,
  ): TouchedBytes {
    let bytes = 0;
    const kept = { weight: 0, state: 0 };
    for (const [i, name] of buffers.entries()) {
      const room = name === undefined ? Infinity : this.#live(name, rank);
      const read = Math.min(loads[i]!, room);
      bytes += read + Math.min(stores[i]!, room);
      const kind = name && this.#plan.buffers[name]!.kind;
      if (kind === "weight" || kind === "state") kept[kind] += read;
      if (name !== undefined && this.#isExpert(name)) {
        this.#experts[rank]! += read;
      }
    }
    return { bytes, weights: kept.weight, states: kept.state };
  }

  #isExpert(name: string): boolean {
    const { kind, axes } = this.#plan.buffers[name]!;
    return kind === "weight" && axes.length > 0 &&
      this.#plan.axes[axes[0]!.axis]?.experts === true;
  }

  /** Bytes of a buffer that are in use in this scene. */
  #live(name: string, rank: number): number {
    const buffer = this.#plan.buffers[name]!;
    const { axes } = this.#scene;
    const share = buffer.axes.reduce((part, { axis, size, dynamic }, i) => {
      const bound = onRank(size, rank);
      if (!dynamic || bound === 0) return part;
      if (!this.#plan.axes[axis]) return part * this.#known.rows(rank) / bound;
      const local = axes.split(buffer, i) ? axes.local(axis, rank) : undefined;
      return part * (local?.length ?? axes.length(axis)) / bound;
    }, 1);
    return onRank(buffer.bytes, rank) * Math.min(1, share);
  }

  #atOnce(host: number): number {
    let first = 0;
    for (const { count = 1, atOnce = Infinity } of this.#machine.hosts) {
      if (host < first + count) return atOnce;
      first += count;
    }
    return Infinity;
  }

  #exchange(
    step: AllGatherStep | AllToAllStep,
    group: readonly number[],
  ): void {
    const bytes = this.#bytesBetween(step, group);
    this.#sent += bytes.flatMap((row, s) => row.filter((_, p) => p !== s))
      .reduce((n, b) => n + b, 0);
    const devices = new Set(group.map((rank) => this.#places[rank]!.device));
    if (devices.size === 1) {
      return this.#launches(this.#exchangeLaunches(step, group), step);
    }
    const places = group.map((rank) => this.#places[rank]!);
    const seconds = exchangeSeconds(this.#machine, {
      ...{ places, bytes },
      // Gathers of counts; those of rows depend on their bytes.
      gathers: step.op === "allGather" && !step.rows,
    });
    const clocks = new Set(group.map((rank) => this.#clockOf(rank)));
    for (const clock of clocks) {
      // Exchanges right after each other wait for the device once.
      const { turn = 0 } = this.#machine.devices[clock.kind]!;
      if (clock.busy) this.#advance(clock, clock.now + turn, "run");
      clock.busy = false;
    }
    const start = Math.max(...[...clocks].map(({ now }) => now));
    if (step.op === "allToAll" && step.handle !== undefined) {
      // Only started: what comes next goes on meanwhile.
      for (const rank of group) {
        this.#ends.set(`${step.handle} ${rank}`, start + seconds);
      }
      return;
    }
    for (const clock of clocks) {
      this.#advance(clock, start, "waiting");
      this.#advance(clock, start + seconds, "exchange");
    }
  }

  #bytesBetween(
    step: AllGatherStep | AllToAllStep,
    group: readonly number[],
  ): number[][] {
    const { counts } = this.#scene;
    if (step.op === "allGather") {
      return group.map((rank) => {
        const rows = gatheredRows(step, this.#plan, counts[rank]!);
        return group.map(() => rows * step.bytes);
      });
    }
    const matrix = this.#known.matrix(step.counts, group[0]!, group.length);
    const rows = rowsBetween(matrix, step);
    return group.map((_, s) =>
      group.map((_, p) =>
        step.rowBytes *
        (step.direction === "forward" ? rows[s]![p]! : rows[p]![s]!)
      )
    );
  }
}

function imbalanceOf(totals: readonly Parts[]): number {
  const busy = totals.map(({ launch, arithmetic, memory }) =>
    launch + arithmetic + memory
  );
  const mean = busy.reduce((n, seconds) => n + seconds, 0) / busy.length;
  return mean === 0 ? 1 : Math.max(...busy) / mean;
}

function addUp(layers: readonly Parts[]): Parts {
  const total = { ...NOTHING };
  for (const layer of layers) {
    for (const part of Object.keys(total) as (keyof Parts)[]) {
      total[part] += layer[part];
    }
  }
  return total;
}
