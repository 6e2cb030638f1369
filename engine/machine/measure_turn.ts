/** What it takes to hand a device its launches between exchanges, and to learn that they are done. */

import type { Machine } from "../../spec/machine.ts";
import { predictStep } from "../predict/predict.ts";
import type { SelectedDevices } from "../devices.ts";
import { type MeasureOptions, median, type Meter } from "./meter.ts";
import { dispatchesModel } from "./models.ts";
import { openSmallModel, type SmallModel } from "./small_model.ts";

/** Steps of tiny exchanges, few and many, whose difference is what exchanges in a step take. */
export interface TurnTimes {
  /** Seconds. */
  readonly few: number;
  readonly many: number;
}

/** Dispatches in a step, and launches before each: about as many as in a layer of a model. */
const FEW = 1, MANY = 9, LAUNCHES = 8;

/** Steps before any counts, and steps in a turn. */
const WARM_UP = 100, TOGETHER = 4;

/** The meter, and what a machine says of its times. */
export interface TurnMeter extends Meter<TurnTimes> {
  /** Seconds of a turn: what steps take beyond what is predicted of them without. */
  turn(times: TurnTimes, machine: Machine): number;
}

/** Open devices for `ranks` ranks that exchange through their hosts. Ranks that are processes must all call it, and all that it returns. */
export async function openTurnMeter(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureOptions,
): Promise<TurnMeter> {
  const { repetitions = 9 } = options;
  const open = (dispatches: number) => {
    const sizes = { ranks, rows: 1, launches: LAUNCHES };
    const model = dispatchesModel({ ...sizes, dispatches });
    return openSmallModel(selected, model, { ...options, ranks });
  };
  const [few, many] = [await open(FEW), await open(MANY)];
  const inputs = { tokens: ranks * ranks };
  for (const model of [few, many]) {
    for (let i = 0; i < WARM_UP; i++) await model.step(inputs);
  }
  return {
    measure: async () => {
      const times = { few: [] as number[], many: [] as number[] };
      for (let i = 0; i < repetitions; i++) {
        for (let n = 0; n < TOGETHER; n++) {
          times.few.push(await few.step(inputs));
        }
        for (let n = 0; n < TOGETHER; n++) {
          times.many.push(await many.step(inputs));
        }
      }
      return { few: median(times.few), many: median(times.many) };
    },
    close: async () => {
      await few.close();
      await many.close();
    },
    turn: (times, machine) => {
      const predicted = (model: SmallModel) =>
        predictStep(model.plan, machine, inputs).seconds;
      const beyond = times.many - times.few -
        (predicted(many) - predicted(few));
      return Math.max(0, beyond / (exchanges(many) - exchanges(few)));
    },
  };
}

function exchanges({ plan }: SmallModel): number {
  return plan.programs[0]!.steps.filter(({ op }) =>
    op === "allGather" || op === "allToAll"
  ).length;
}
