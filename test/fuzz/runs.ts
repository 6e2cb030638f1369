/** Runs that depend on every step of a plan, and all that they give and leave. */

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

/** A program and what it is given. */
export type Call = readonly [
  program: string,
  inputs: { readonly [name: string]: readonly number[] | number },
];

/** What is run, and on what. */
export interface Run {
  readonly plan: Plan;
  readonly tensors: TensorDirectory;
  readonly calls: readonly Call[];
}

/** Results in hexadecimal digits by name. */
export type Results = ReadonlyMap<string, string>;

/** Weights that a plan asks for, the same ones for all plans of a model. */
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

/** Load a plan, give its states contents, make the calls, and read all that is left. */
export async function runOn(
  device: Device,
  { plan, tensors, calls }: Run,
): Promise<Results> {
  const session = await createSession(plan, {
    devices: new Array(plan.ranks).fill(device),
    tensors,
  });
  const lasting = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "state" || kind === "weight");
  const results = new Map<string, string>();
  try {
    for (const { name, kind } of lasting) {
      if (kind === "state") await fill(session, name, plan.ranks);
    }
    for (const [i, [program, given]] of calls.entries()) {
      const outputs = await session.run(
        program,
        inputsOf(plan, program, given),
      );
      keep(results, `output of call ${i}`, outputs);
    }
    keep(
      results,
      "left in",
      await session.read(lasting.map(({ name }) => name)),
    );
  } finally {
    session.close();
  }
  return results;
}

/** Give a state contents that no step makes, none of them 0: old ones that are read show. */
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

/** Inputs of a program as tensors. */
export function inputsOf(
  plan: Plan,
  program: string,
  given: Call[1],
): { [name: string]: HostTensor } {
  const { inputs } = plan.programs.find(({ name }) => name === program)!;
  return Object.fromEntries(
    Object.entries(inputs).map(([name, { dtype }]): [string, HostTensor] => {
      const value = given[name]!;
      return [
        name,
        typeof value === "number"
          ? tensorOf(dtype, [], [value])
          : tensorOf(dtype, [value.length], value),
      ];
    }),
  );
}

/** A tensor of numbers. */
export function tensorOf(
  dtype: HostTensor["dtype"],
  shape: readonly number[],
  values: readonly number[],
): HostTensor {
  const tensor = zeros(dtype, shape);
  tensor.data.set(values);
  return tensor;
}

/** Add tensors to results. */
export function keep(
  results: Map<string, string>,
  what: string,
  tensors: { readonly [name: string]: HostTensor },
): void {
  for (const [name, { data }] of Object.entries(tensors)) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    results.set(`${what} '${name}'`, Buffer.from(bytes).toString("hex"));
  }
}

/** One short text for all results. */
export function digestOf(results: Results): string {
  const text = JSON.stringify([...results].sort(([a], [b]) => a < b ? -1 : 1));
  return createHash("sha256").update(text).digest("hex");
}
