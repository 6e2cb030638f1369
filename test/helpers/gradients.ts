/** Compares gradients with central differences of the reference evaluator in f64. */

import type { Test } from "tap";
import {
  evaluate,
  type Tensors,
} from "../../compiler/graph/evaluate/evaluate.ts";
import { checkGraph } from "./check_graph.ts";
import {
  type GradientOptions,
  withGradients,
} from "../../compiler/graph/gradients/gradients.ts";
import type { Graph } from "../../compiler/graph/graph.ts";
import { trace, type Traceable } from "../../compiler/graph/trace.ts";
import { lowerScalars } from "../../compiler/scalars.ts";
import { waves } from "./waves.ts";

/** Model with a scalar output `loss`, and its operands. */
export interface Differentiable {
  readonly model: Traceable;
  readonly inputs?: Tensors;
  readonly params: Tensors;
  readonly lengths?: { readonly [axis: string]: number };
  /** Step of the differences. No operand may be closer to a discontinuity. Default: 1e-5. */
  readonly step?: number;
}

/** Returns values for all parameters of a model, given the sizes of their axes. */
export function paramWaves(
  model: Traceable,
  sizes: { readonly [axis: string]: number },
): { readonly [name: string]: number[] } {
  return Object.fromEntries(
    trace(model).nodes.flatMap((node, i) =>
      node.primitive === "param"
        ? [[
          node.params.name,
          waves(node.axes.reduce((n, axis) => n * sizes[axis]!, 1), i),
        ]]
        : []
    ),
  );
}

/** Returns the checked graph of a model with gradients of `loss`. */
export async function graphWithGradients(
  model: Traceable,
  options: Pick<GradientOptions, "repeats"> = {},
): Promise<Graph> {
  const graph = trace(model);
  const result = withGradients(graph, "loss", {
    ...options,
    scalars: await lowerScalars(graph),
  });
  checkGraph(result);
  return result;
}

/**
 * Returns the largest error of a gradient and its entry. Errors are relative to the largest slope of the parameter, or
 * to 1.
 */
export async function gradientError(
  { model, inputs = {}, params, lengths = {}, step = 1e-5 }: Differentiable,
): Promise<{ readonly error: number; readonly where: string }> {
  const graph = await graphWithGradients(model);
  const options = { inputs, lengths, precision: "f64" } as const;
  const { outputs } = evaluate(graph, { ...options, params });
  const loss = trace(model);
  const at = (moved: Tensors): number =>
    evaluate(loss, { ...options, params: { ...params, ...moved } })
      .outputs["loss"]!.data[0]!;
  let worst = { error: 0, where: "nowhere" };
  for (const [name, values] of Object.entries(params)) {
    const gradient = outputs[`grad.${name}`]?.data;
    if (gradient === undefined) {
      return { error: Infinity, where: `${name} has no gradient` };
    }
    const slopes = Array.from(values, (value, i) => {
      const moved = (by: number) => {
        const copy = Float64Array.from(values);
        copy[i] = value + by;
        return at({ [name]: copy });
      };
      return (moved(step) - moved(-step)) / (2 * step);
    });
    const scale = Math.max(1, ...slopes.map(Math.abs));
    slopes.forEach((slope, i) => {
      const error = Math.abs(slope - gradient[i]!) / scale;
      if (!(error <= worst.error)) {
        worst = {
          error,
          where: `${name}[${i}]: ${gradient[i]}, the difference is ${slope}`,
        };
      }
    });
  }
  return worst;
}

/** Fails unless gradients match central differences within 1e-6. */
export async function gradientsHold(
  t: Test,
  of: Differentiable,
  name = "gradients",
): Promise<void> {
  const { error, where } = await gradientError(of);
  t.ok(error < 1e-6, `${name} match differences: error ${error}, ${where}`);
}
