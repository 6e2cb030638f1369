/** Tries kernel variants of a target on the devices of a run, and saves the faster ones. */

import {
  matmulClass,
  type MatmulShape,
  ofHeight,
  tileHeight,
  tileName,
  type Tuning,
  type TuningTable,
} from "../../compiler/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { SelectedDevices } from "../devices.ts";
import { computerOf, tileOf, TUNING } from "./tuning.ts";
import { attentionModel, matmulModel, type Timed } from "./models.ts";
import { type Ready, ready } from "./time_models.ts";
import { ROWS, variantsOf } from "./variants.ts";

/** Options of tuning. */
export interface TuneOptions {
  /** Milliseconds after which no further candidate is tried. */
  readonly budget: number;
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** Called for every candidate with its speedup over the best so far. */
  readonly onTried?: (kernel: string, candidate: string, speed: number) => void;
}

/** Result of tuning. */
export interface Tuned {
  readonly tuning: TuningTable;
  /** Speedup of each kind of kernel. */
  readonly speed: { readonly [kernel: string]: number };
  /** Number of timed candidates. */
  readonly tried: number;
  /** False if the time ran out before all were tried. */
  readonly complete: boolean;
}

/** Candidate numbers of queries per workgroup of attention. */
const QUERIES = [1, 2, 4, 8];

/** Timings of each side of a pair, and the minimum speedup of an accepted candidate. */
const PAIRS = 5, ENOUGH = 1.04;

/** Input of a tuner: the kernels of a plan, and a function that compiles with a tuning. */
export interface Tunable {
  compile(tuning: Tuning): Promise<Plan>;
}

/** Tunes a target. */
export async function tune(
  target: Tunable,
  selected: SelectedDevices,
  options: TuneOptions,
): Promise<Tuned> {
  const search = new Search(selected, options);
  const computer = computerOf(selected);
  const { shapes, attention } = await kernelsOf(target, TUNING[computer]);
  const grouped = shapes.filter((shape) => shape.grouped);
  let tuning: TuningTable = {
    ...TUNING[computer],
    matmul: tileOf(computer),
    matmuls: {},
  };
  // The tile height is shared by all grouped matmuls, so the largest of them determines it.
  if (grouped[0]) {
    tuning = await search.best(
      matmulClass(grouped[0]),
      matmulModel(grouped[0]),
      tuning,
      ROWS.filter((rows) => rows !== tuning.matmul!.rows).map((rows) => {
        const matmul = { ...tuning.matmul!, rows };
        return [`${rows} rows`, { ...tuning, matmul }];
      }),
    );
  }
  for (const shape of shapes) {
    const key = matmulClass(shape);
    for (const variants of variantsOf(shape, computer)) {
      const current = tuning.matmuls?.[key] ?? tuning.matmul!;
      const height = tileHeight(tuning.matmul!);
      const others = new Map(
        variants(current)
          .map((tile) => shape.grouped ? ofHeight(tile, height) : tile)
          .map((tile) => [tileName(tile), tile]),
      );
      others.delete(tileName(current));
      tuning = await search.best(
        key,
        matmulModel(shape),
        tuning,
        [...others].map(([name, tile]) => [
          name,
          { ...tuning, matmuls: { ...tuning.matmuls, [key]: tile } },
        ]),
      );
    }
  }
  for (const heads of attention) {
    tuning = await search.best(
      "attention",
      attentionModel(heads),
      tuning,
      QUERIES.filter((queries) => queries !== (tuning.attention ?? 1))
        .map((queries) => [
          `${queries} queries together`,
          { ...tuning, attention: queries },
        ]),
    );
  }
  return { tuning, ...search.result() };
}

/** The matmuls of a target, most work first, and its attention. */
async function kernelsOf(target: Tunable, tuning: TuningTable) {
  const shapes = new Map<string, MatmulShape>();
  const plan = await target.compile({
    ...tuning,
    matmuls: (shape) => {
      shapes.set(matmulClass(shape), shape);
      return undefined;
    },
  });
  const work = ({ weights, k, columns }: MatmulShape) => weights * k * columns;
  const attention = Object.keys(plan.kernels).flatMap((name) => {
    const found = /^attention_(\d+)x(\d+)$/.exec(name);
    const kvHeads = plan.axes["kvHead"]?.size;
    if (!found || kvHeads === undefined) return [];
    return [{ heads: Number(found[1]), kvHeads, dim: Number(found[2]) }];
  });
  return {
    shapes: [...shapes.values()].sort((a, b) => work(b) - work(a)),
    attention: attention.slice(0, 1),
  };
}

/** A search within a time limit. */
class Search {
  readonly #selected: SelectedDevices;
  readonly #options: TuneOptions;
  readonly #until: number;
  readonly #speed: { [kernel: string]: number } = {};
  #tried = 0;
  #complete = true;

  constructor(selected: SelectedDevices, options: TuneOptions) {
    this.#selected = selected;
    this.#options = options;
    this.#until = options.now() + options.budget;
  }

  result(): Omit<Tuned, "tuning"> {
    return {
      speed: this.#speed,
      tried: this.#tried,
      complete: this.#complete,
    };
  }

  /** The best of a tuning and others that differ in one kernel, each in runs interleaved with the best so far. */
  async best(
    kernel: string,
    timed: Timed,
    tuning: TuningTable,
    others: readonly (readonly [name: string, tuning: TuningTable])[],
  ): Promise<TuningTable> {
    let best = tuning;
    let current: Ready | undefined;
    this.#speed[kernel] ??= 1;
    for (const [name, other] of others) {
      if (this.#options.now() >= this.#until) {
        this.#complete = false;
        break;
      }
      current ??= await this.#ready(timed, best);
      const candidate = await this.#ready(timed, other);
      const speed = await faster(candidate, current);
      this.#tried++;
      this.#options.onTried?.(kernel, name, speed);
      if (speed < ENOUGH) {
        await candidate.close();
        continue;
      }
      await current.close();
      [current, best] = [candidate, other];
      this.#speed[kernel]! *= speed;
    }
    await current?.close();
    return best;
  }

  #ready(timed: Timed, tuning: Tuning): Promise<Ready> {
    const { now } = this.#options;
    return ready(this.#selected, timed, { tuning, now });
  }
}

/** Speedup of one over the other: the geometric mean over steps of medians of pairs. */
async function faster(candidate: Ready, current: Ready): Promise<number> {
  await candidate.time();
  const pairs: number[][] = [];
  for (let i = 0; i < PAIRS; i++) {
    const theirs = await current.time();
    const times = await candidate.time();
    pairs.push(times.map((ms, step) => theirs[step]! / Math.max(ms, 1e-6)));
  }
  const steps = pairs[0]!.map((_, step) => {
    const ratios = pairs.map((pair) => pair[step]!).sort((a, b) => a - b);
    return ratios[ratios.length >> 1]!;
  });
  return steps.reduce((product, ratio) => product * ratio, 1) **
    (1 / steps.length);
}
