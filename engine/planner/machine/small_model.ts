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
import { computerOf, TUNING } from "../../tune/tuning.ts";
import { smallInputs, type StepInputs } from "../../tune/small_inputs.ts";
import type { MeasureOptions } from "./meter.ts";

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
    const inputs = made.get(key) ?? smallInputs(plan, workload);
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
