/** Measures the host time between exchanges: submitting launches, and detecting their end. */

import type { Machine } from "../../../spec/machine.ts";
import { simulate } from "../simulate/mod.ts";
import type { SelectedDevices } from "../../devices.ts";
import {
  isRepeated,
  type MeasureOptions,
  median,
  type Meter,
  REPETITIONS,
  warmUpFor,
  withDevices,
} from "./meter.ts";
import { dispatchesModel } from "./models.ts";
import { openSmallModel, type SmallModel } from "./small_model.ts";

/** Dispatches per step, and launches before each if there are many: about as many as in a layer of a model. */
const FEW = 1, MANY = 9, LAUNCHES = 16;

/** Rows from each rank to each: the work between exchanges is about that of a layer in decode. */
const ROWS = 2;

/** Warm-up steps, and pairs of steps per repetition. */
const WARM_UP = 100, PAIRS = 6;

/** Measures the additional time of a step with many exchanges compared with few, in seconds. */
export interface SyncMeter extends Meter<number> {
  /** Seconds of a sync: the measured time minus the predicted one. */
  sync(seconds: number, machine: Machine): number;
}

/**
 * Opens devices for `ranks` ranks that exchange through their hosts. All processes must call it, and all returned
 * functions.
 */
export async function openSyncMeter(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureOptions,
): Promise<SyncMeter> {
  const { repetitions = REPETITIONS } = options;
  const open = (dispatches: number) => {
    // Equal numbers of launches, so that their time cancels out.
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
      for (let i = 0; isRepeated(Math.floor(i / PAIRS), options); i++) {
        // Consecutive, so that noise affects both.
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
