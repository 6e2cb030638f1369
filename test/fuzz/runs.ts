/** Runs that depend on every step of a plan, with their outputs and final states. */

import { createHash } from "node:crypto";
import { zeros } from "../../runtime/host_tensor.ts";
import {
  createSession,
  type Device,
  type HostTensor,
  type Session,
  type TensorDirectory,
  tensorsInMemory,
} from "../../runtime/mod.ts";
import { sourceNames } from "../../spec/axis_parts.ts";
import { waves } from "../helpers/waves.ts";
import type { Plan } from "../../spec/plan/plan.ts";

/** A program and its inputs. */
export type Call = readonly [
  program: string,
  inputs: { readonly [name: string]: readonly number[] | number },
];

/** A plan with its operands. */
export interface Run {
  readonly plan: Plan;
  readonly tensors: TensorDirectory;
  readonly calls: readonly Call[];
}

/** Results in hexadecimal, by name. */
export type Results = ReadonlyMap<string, string>;

/** Returns deterministic weights for a plan, equal for all plans of a model. */
export function randomWeights(plan: Plan): TensorDirectory {
  const tensors = plan.weights.flatMap((weight) =>
    sourceNames(plan, weight).map((name) => {
      const elements = weight.shape.reduce((n, size) => n * size, 1);
      const data = Float32Array.from(waves(elements), (x) => x / 2);
      return [name, { dtype: "f32" as const, shape: weight.shape, data }];
    })
  );
  return tensorsInMemory(Object.fromEntries(tensors), "random");
}

/** Loads a plan, fills its states, makes the calls, and reads outputs and final states. */
export async function runOn(
  device: Device,
  { plan, tensors, calls }: Run,
): Promise<Results> {
  const session = await createSession(plan, {
    devices: new Array(plan.ranks).fill(device),
    tensors,
  });
  const persistent = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "state" || kind === "weight");
  const results = new Map<string, string>();
  try {
    for (const { name, kind } of persistent) {
      if (kind === "state") await fill(session, name, plan.ranks);
    }
    for (const [i, [program, values]] of calls.entries()) {
      const outputs = await session.run(
        program,
        inputsOf(plan, program, values),
      );
      addResults(results, `output of call ${i}`, outputs);
    }
    addResults(
      results,
      "left in",
      await session.read(persistent.map(({ name }) => name)),
    );
  } finally {
    session.close();
  }
  return results;
}

/** Fills a state with nonzero values that no step computes, so that reads of old values are detected. */
async function fill(
  session: Session,
  name: string,
  ranks: number,
): Promise<void> {
  for (let rank = 0; rank < ranks; rank++) {
    const part = await session.readPart(name, rank);
    const data = Float32Array.from(
      part.data,
      (_, i) => 0.01 + (i * 7919 % 97) / 1e4,
    );
    session.writePart(name, rank, { ...part, data } as HostTensor);
  }
}

/** Converts inputs of a program to tensors. */
export function inputsOf(
  plan: Plan,
  program: string,
  values: Call[1],
): { [name: string]: HostTensor } {
  const { inputs } = plan.programs.find(({ name }) => name === program)!;
  return Object.fromEntries(
    Object.entries(inputs).map(([name, { dtype }]): [string, HostTensor] => {
      const value = values[name]!;
      return [
        name,
        typeof value === "number"
          ? tensorOf(dtype, [], [value])
          : tensorOf(dtype, [value.length], value),
      ];
    }),
  );
}

/** Returns a tensor of numbers. */
export function tensorOf(
  dtype: HostTensor["dtype"],
  shape: readonly number[],
  values: readonly number[],
): HostTensor {
  const tensor = zeros(dtype, shape);
  tensor.data.set(values);
  return tensor;
}

/** Adds tensors to results. */
export function addResults(
  results: Map<string, string>,
  prefix: string,
  tensors: { readonly [name: string]: HostTensor },
): void {
  for (const [name, { data }] of Object.entries(tensors)) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    results.set(`${prefix} '${name}'`, Buffer.from(bytes).toString("hex"));
  }
}

/** Hashes all results. */
export function digestOf(results: Results): string {
  const text = JSON.stringify([...results].sort(([a], [b]) => a < b ? -1 : 1));
  return createHash("sha256").update(text).digest("hex");
}
