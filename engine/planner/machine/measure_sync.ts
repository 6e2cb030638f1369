/** What it takes to hand a device its launches between exchanges, and to learn that they are done. */

import type { Machine } from "../../../spec/machine.ts";
import { simulate } from "../simulate/mod.ts";
import type { SelectedDevices } from "../../devices.ts";
import {
  type MeasureOptions,
  median,
  type Meter,
  REPETITIONS,
  warmUpFor,
  withDevices,
} from "./meter.ts";
import { dispatchesModel } from "./models.ts";
import { openSmallModel, type SmallModel } from "./small_model.ts";

/** Dispatches in a step, and launches before each where they are many: about as many as in a layer of a model. */
const FEW = 1, MANY = 9, LAUNCHES = 16;

/** Rows from each rank to each: what is between exchanges is about as long as in a layer that decodes. */
const ROWS = 2;

/** Steps before any counts, and pairs of steps for each repetition. */
const WARM_UP = 100, PAIRS = 6;

/** Measures how much longer a step takes whose exchanges are many instead of few, in seconds. */
export interface SyncMeter extends Meter<number> {
  /** Seconds of a sync: what that is beyond what is predicted of it without. */
  sync(seconds: number, machine: Machine): number;
}

/** Open devices for `ranks` ranks that exchange through their hosts. Ranks that are processes must all call it, and all that it returns. */
export async function openSyncMeter(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureOptions,
): Promise<SyncMeter> {
  const { repetitions = REPETITIONS } = options;
  const open = (dispatches: number) => {
    // As many launches in all, so that what those take makes no difference.
    const sizes = { ranks, rows: ROWS, launches: LAUNCHES * MANY / dispatches };
    const model = dispatchesModel({ ...sizes, dispatches });
    return openSmallModel(selected, model, { ...options, ranks });
  };
  const [few, many] = [await open(FEW), await open(MANY)];
  const inputs = { tokens: ROWS * ranks ** 2 };
  for (const model of [few, many]) {
    for (let i = 0; i < warmUpFor(WARM_UP, repetitions); i++) {
      await model.step(inputs);
    }
  }
  return {
    measure: async () => {
      const differences: number[] = [];
      for (let i = 0; i < PAIRS * repetitions; i++) {
        // Right after each other, so that a noisy moment touches both.
        const seconds = await few.step(inputs);
        differences.push(await many.step(inputs) - seconds);
      }
      return median(differences);
    },
    close: async () => {
      await few.close();
      await many.close();
    },
    sync: (seconds, machine) => {
      const difference = (sync: number) => {
        const seconds = ({ plan }: SmallModel) =>
          simulate(
            plan,
            withDevices(machine, (device) => ({ ...device, sync })),
            inputs,
          ).seconds;
        return seconds(many) - seconds(few);
      };
      const without = difference(0);
      const syncs = difference(1) - without;
      return Math.max(0, (seconds - without) / syncs);
    },
  };
}
