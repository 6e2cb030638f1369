/** The recorded steps and exchanges in `results/predict.json`, compared with the simulator's predictions. */

import { readFileSync } from "node:fs";
import {
  compile,
  type CompileOptions,
  type Model,
  type TuningTable,
} from "../../compiler/mod.ts";
import { CHOICES } from "../../engine/replay.ts";
import {
  recordedLoad,
  simulate,
  type Workload,
} from "../../engine/planner/simulate/mod.ts";
import type { Computer } from "../../engine/tune/tuning.ts";
import { CPU_LIMITS } from "../../runtime/cpu/mod.ts";
import type { Machine } from "../../spec/mod.ts";
import { median } from "../measure.ts";
import { expertLayer } from "../models.ts";
import { load } from "../session.ts";
import { demoModel, FFN, packed, PROMPT } from "../work.ts";

/** A time in ms: the earlier prediction, the measurement, and the median ratio of its rounds. */
interface Recorded {
  readonly predicted: number;
  readonly measured: number;
  readonly ratio: number;
}

/** A file of results. */
interface Recording {
  /** Tiles of the executed plans, by device. */
  readonly tunings: { readonly [C in Computer]?: TuningTable };
  readonly rows: readonly {
    readonly where: string;
    readonly work: string;
    readonly ranks: number;
    readonly step: Recorded;
    readonly exchange?: Recorded;
  }[];
  /** The machine description of each round. */
  readonly machines: { readonly [where: string]: readonly Machine[] };
}

/** A recorded time, and the ratios of predicted to measured time: of the earlier predictor and of the simulator. */
export interface Replayed {
  readonly what: "step" | "exchange";
  readonly name: string;
  readonly then: number;
  readonly now: number;
}

/** Maximum ratio between prediction and measurement, in either direction. */
const WITHIN = 1.25;

/** Returns whether a ratio of predicted to measured time is within the goal. */
export function isWithin(ratio: number): boolean {
  return ratio <= WITHIN && ratio >= 1 / WITHIN;
}

/** Predicts the records of a file in this folder. */
export async function replay(file: string): Promise<Replayed[]> {
  const { rows, machines, tunings } = JSON.parse(
    read(`../results/${file}`).toString(),
  ) as Recording;
  const works = await recordedWorks();
  const plans = new Map<string, ReturnType<typeof compile>>();
  const found: Replayed[] = [];
  for (const { where, work, ranks, step, exchange } of rows) {
    // For processes, only machines of four ranks were saved.
    if (/MPI/.test(where) && ranks < 4) continue;
    const { model, weights, workload } = works.find(({ name }) =>
      work.startsWith(name)
    )!;
    const [device] = Object.values(machines[where]![0]!.devices);
    const computer = device!.computer ?? "gpu";
    const key = `${work} ${ranks} ${computer}`;
    const plan = plans.get(key) ?? compile(model, {
      mesh: { ep: ranks },
      limits: CPU_LIMITS,
      check: false,
      weights,
      tuning: tunings[computer] ?? {},
    });
    plans.set(key, plan);
    const compiled = await plan;
    const steps = machines[where]!.map((machine) =>
      simulate(compiled, machine, workload)
    );
    const add = (
      what: Replayed["what"],
      { measured, ratio }: Recorded,
      seconds: readonly number[],
    ) =>
      found.push({
        what,
        name: `${where}, ${work}, ep=${ranks}`,
        then: ratio,
        now: 1000 * median(seconds) / measured,
      });
    add("step", step, steps.map(({ seconds }) => seconds));
    if (exchange) {
      add(
        "exchange",
        exchange,
        steps.map(({ parts }) => parts.exchange),
      );
    }
  }
  return found;
}

/** Returns how many are within the goal, for the earlier predictor and for the simulator. */
export function score(replayed: readonly Replayed[], of: Replayed["what"]) {
  const all = replayed.filter(({ what }) => what === of);
  return {
    all: all.length,
    then: all.filter(({ then }) => isWithin(then)).length,
    now: all.filter(({ now }) => isWithin(now)).length,
  };
}

function read(path: string): Buffer {
  return readFileSync(new URL(path, import.meta.url));
}

/**
 * Returns the measured works. The choices of the expert layer were approximately even; those of the bundled checkpoint
 * are its own.
 */
async function recordedWorks(): Promise<
  readonly {
    /** Prefix of its name. */
    readonly name: string;
    readonly model: Model;
    readonly weights: NonNullable<CompileOptions["weights"]>;
    readonly workload: Workload;
  }[]
> {
  const { model, weights, files } = await demoModel();
  const demo = await load(model, {
    adapter: "cpu",
    mesh: {},
    weights,
    files,
  });
  const chosen = async (what: typeof PROMPT) => {
    const outputs = Object.keys(demo.plan.programs[0]!.outputs).filter((name) =>
      CHOICES.test(name)
    );
    return recordedLoad(
      await demo.session.run("main", packed(what), { outputs }),
    );
  };
  const { sequences, length } = PROMPT;
  const prefill = await chosen(PROMPT);
  const decode = await chosen({ ...PROMPT, length: 1, position: length });
  await demo.close();
  return [
    {
      name: "expert layer",
      model: expertLayer(FFN.tokens),
      weights: {},
      workload: { tokens: FFN.tokens, experts: { kind: "zipf", exponent: 0 } },
    },
    {
      name: "prefill",
      model,
      weights,
      workload: { tokens: sequences * length, sequences, experts: prefill },
    },
    {
      name: "decode",
      model,
      weights,
      workload: { tokens: sequences, sequences, past: length, experts: decode },
    },
  ];
}
