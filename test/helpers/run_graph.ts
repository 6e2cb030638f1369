/** Runs a graph on ranks of the CPU, with unsharded parameters and inputs. */

import { compileGraph } from "../../compiler/compile.ts";
import type { CompileOptions } from "../../compiler/mod.ts";
import type { Tensors } from "../../compiler/graph/evaluate/evaluate.ts";
import type { Graph } from "../../compiler/graph/graph.ts";
import {
  createSession,
  type Device,
  type HostTensor,
  tensorsInMemory,
} from "../../runtime/mod.ts";
import { assertLegal } from "../../spec/mod.ts";
import { deviceOf } from "./run_model.ts";

/** Unsharded operands of a graph. */
export interface Operands {
  readonly params: Tensors;
  readonly inputs: Tensors;
}

/** Compiles a graph for a mesh and runs it once. */
export async function runGraph(
  graph: Graph,
  { params, inputs }: Operands,
  options: CompileOptions,
): Promise<{ readonly [output: string]: HostTensor }> {
  const plan = await compileGraph(graph, options);
  const tensors = plan.weights.map(({ source, shape }) => [
    source,
    { dtype: "f32", shape, data: Float32Array.from(params[source]!) } as const,
  ]);
  const device = await deviceOf("cpu");
  const session = await createSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(device),
    tensors: tensorsInMemory(Object.fromEntries(tensors), "memory"),
    verify: assertLegal,
  });
  const inputTensors = Object.entries(plan.programs[0]!.inputs).map((
    [name, { dtype, axes }],
  ) => {
    const shape = axes.map((axis) => plan.axes[axis]!.size);
    const array = dtype === "f32" ? Float32Array : Int32Array;
    return [name, { dtype, shape, data: array.from(inputs[name]!) }];
  });
  return await session.run("main", Object.fromEntries(inputTensors));
}
