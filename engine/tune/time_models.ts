/** Times a small model compiled with one tuning after another, on the devices of a run. */

import { compile, type Tuning } from "../../compiler/mod.ts";
import { createSession, type HostTensor } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { SelectedDevices } from "../devices.ts";
import { EXPERTS, type Timed } from "./models.ts";

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
  const inputs = timed.steps.map((step) => inputsOf(plan, step));
  return {
    time: async () => {
      const times: number[] = [];
      for (const step of inputs) {
        session.reset();
        await device!.idle();
        const start = now();
        await session.run("main", step, { outputs: [] });
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

/** Zeros, except for indices, and logits that distribute choices over the experts. */
function inputsOf(
  plan: Plan,
  { tokens, sequences }: Timed["steps"][number],
): { [name: string]: HostTensor } {
  const each = tokens / sequences;
  const value = (name: string, i: number): number => {
    if (name === "sequence") return Math.floor(i / each);
    if (name === "position") return i % each;
    if (name !== "logits") return 0;
    const [token, expert] = [Math.floor(i / EXPERTS), i % EXPERTS];
    return (expert - 2 * token % EXPERTS + EXPERTS) % EXPERTS < 2 ? 1 : 0;
  };
  return Object.fromEntries(
    Object.entries(plan.programs[0]!.inputs).map(([name, port]) => {
      const shape = port.axes.map((axis) =>
        plan.axes[axis]!.dynamic ? tokens : plan.axes[axis]!.size
      );
      const length = shape.reduce((n, size) => n * size, 1);
      const data = port.dtype === "f32"
        ? Float32Array.from({ length }, (_, i) => value(name, i))
        : Int32Array.from({ length }, (_, i) => value(name, i));
      return [name, { dtype: port.dtype, shape, data } as HostTensor];
    }),
  );
}
