/** Times a small model compiled with one tuning after another, on the devices of a run. */

import { compile, type Tuning } from "../../compiler/mod.ts";
import { createSession } from "../../runtime/mod.ts";
import { withoutRows } from "../../runtime/outputs.ts";
import type { SelectedDevices } from "../devices.ts";
import { smallInputs } from "./small_inputs.ts";
import type { Timed } from "./models.ts";

/** A compiled candidate that can be timed repeatedly. */
export interface Ready {
  /** Milliseconds of one run of each step. */
  time(): Promise<number[]>;
  close(): Promise<void>;
}

/** Compiles a model with a tuning and opens it. */
export async function ready(
  selected: SelectedDevices,
  timed: Timed,
  { tuning, now }: { readonly tuning: Tuning; readonly now: () => number },
): Promise<Ready> {
  const plan = await compile(timed.model, {
    limits: selected.limits,
    weights: timed.weights,
    tuning,
  });
  const { devices, close } = await selected.open(plan);
  const [device] = devices;
  // Weights stay zero: arithmetic time does not depend on them.
  const session = await createSession({ ...plan, weights: [] }, { devices });
  const computed = withoutRows(plan.programs[0]!);
  const inputs = timed.steps.map((step) => smallInputs(plan, step));
  return {
    time: async () => {
      const times: number[] = [];
      for (const step of inputs) {
        session.reset();
        await device!.idle();
        const start = now();
        await session.run("main", step, computed);
        await device!.idle();
        times.push(now() - start);
      }
      return times;
    },
    close: async () => {
      session.close();
      await close();
    },
  };
}
