/** Loaded small models whose steps are timed. */

import {
  compile,
  type CompileOptions,
  type Model,
} from "../../../compiler/mod.ts";
import {
  createSession,
  type HostTensor,
  type TensorDirectory,
  tensorsInMemory,
} from "../../../runtime/mod.ts";
import { createMpiCommunicator } from "../../../runtime/mpi/mod.ts";
import { STORED_BYTES } from "../../../spec/dtype.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { SelectedDevices } from "../../devices.ts";
import { computerOf, TUNING } from "../../tuning.ts";
import type { MeasureOptions } from "./meter.ts";

/** Inputs of a step. */
export interface StepInputs {
  readonly tokens: number;
  readonly sequences?: number;
  /** Earlier tokens of each sequence. Default: 0. */
  readonly past?: number;
}

/** A model, loaded. */
export interface SmallModel {
  readonly plan: Plan;
  /** Seconds of a step. */
  step(inputs: StepInputs): Promise<number>;
  close(): Promise<void>;
}

/**
 * Compiles a model for the devices and loads it, with arbitrary weights. For several ranks, all processes must call it.
 */
export async function openSmallModel(
  selected: SelectedDevices,
  model: Model,
  { now, ranks, weights }: MeasureOptions & {
    readonly ranks: number;
    readonly weights?: NonNullable<CompileOptions["weights"]>;
  },
): Promise<SmallModel> {
  // A model of one rank belongs to each process alone.
  const world = ranks > 1 ? selected.world : undefined;
  const plan = await compile(model, {
    ...ranks > 1 ? { mesh: { ep: ranks } } : {},
    ...weights ? { weights } : {},
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { devices, close } = await selected.open(plan);
  const output = Object.keys(plan.programs[0]!.outputs)
    .find((name) => name.startsWith("y"))!;
  // Reads a result like a step of some sequences.
  const readOf = (tokens: number) => ({
    outputs: [output],
    rows: { [output]: [0, 1, 2, 3].filter((row) => row < tokens) },
  });
  const session = await createSession(plan, {
    devices,
    tensors: blankWeights(plan),
    ...world ? { communicator: await createMpiCommunicator(world, plan) } : {},
  });
  // Created once: collecting garbage would overlap with the next step.
  const made = new Map<string, { [name: string]: HostTensor }>();
  const inputsFor = (workload: StepInputs) => {
    const key = `${workload.tokens} ${workload.sequences} ${workload.past}`;
    const inputs = made.get(key) ?? inputsOf(plan, workload);
    made.set(key, inputs);
    return inputs;
  };
  const idle = async () => {
    for (const device of new Set(devices)) await device.idle();
  };
  return {
    plan,
    step: async (workload) => {
      const inputs = inputsFor(workload);
      const read = readOf(workload.tokens);
      await idle();
      await world?.barrier(world, { what: "measuring" });
      const start = now();
      // A real run ends when a part of its result is on the host.
      await session.run("main", inputs, read);
      await idle();
      return (now() - start) / 1000;
    },
    close: async () => {
      session.close();
      await close();
    },
  };
}

/** Zero weights: arithmetic time does not depend on them, but memory that was never written is slow to read. */
function blankWeights(plan: Plan): TensorDirectory {
  const tensors = plan.weights.map(({ source, stored, shape }) => {
    const elements = shape.reduce((n, size) => n * size, 1);
    const data = new Uint8Array(elements * STORED_BYTES[stored]);
    return [source, { dtype: stored, shape, data }];
  });
  return tensorsInMemory(Object.fromEntries(tensors), "a small model");
}

/** Inputs of a length: consecutive sequences, and floats that distribute choices over experts. */
function inputsOf(
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
