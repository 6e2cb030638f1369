/** Inputs of small models whose steps are timed: by the meter of a machine, and by the tuner. */

import type { HostTensor } from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";

/** Inputs of a step. */
export interface StepInputs {
  readonly tokens: number;
  readonly sequences?: number;
  /** Earlier tokens of each sequence. Default: 0. */
  readonly past?: number;
}

/** Inputs of a length: consecutive sequences, and floats that distribute choices over experts. */
export function smallInputs(
  plan: Plan,
  { tokens, sequences = 1, past = 0 }: StepInputs,
): { [name: string]: HostTensor } {
  const each = Math.ceil(tokens / sequences);
  return Object.fromEntries(
    Object.entries(plan.programs[0]!.inputs).map(([name, port]) => {
      const shape = port.axes.map((axis) =>
        plan.axes[axis]!.dynamic ? tokens : plan.axes[axis]!.size
      );
      const length = shape.reduce((n, size) => n * size, 1);
      const width = length / Math.max(1, tokens);
      const value = (i: number) => {
        const token = Math.floor(i / width);
        if (name === "sequence") return Math.floor(token / each);
        if (name === "position") return past + token % each;
        // Two choices per token, cyclic over the experts.
        return (i % width - 2 * token % width + width) % width < 2 ? 1 : 0;
      };
      const data = port.dtype === "f32"
        ? Float32Array.from({ length }, (_, i) => value(i))
        : Int32Array.from({ length }, (_, i) => value(i));
      return [name, { dtype: port.dtype, shape, data } as HostTensor];
    }),
  );
}
