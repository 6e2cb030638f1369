/**
 * Lowers the lambdas of a model to scalar functions of the kernel tree through their source. Models are traced instead.
 */

import { LowerError } from "../../spec/errors.ts";
import type { Lambda, ScalarFunction } from "../graph/graph.ts";
import { evaluateScalar } from "../graph/evaluate/scalar.ts";
import { locationOf } from "./frame.ts";

/**
 * Lowers scalar functions, each from its source at its call site. Lowered functions are returned unchanged; a function
 * used several times is lowered once. Throws a `LowerError` with a code frame for a function outside the scalar subset.
 */
export async function lowerLambdas(
  lambdas: readonly Lambda[],
): Promise<ScalarFunction[]> {
  const open = lambdas.filter(({ lowered }) => !lowered);
  if (open.length === 0) return lambdas.map(({ lowered }) => lowered!);
  const { lowerSources } = await import("./lower_sources.ts");
  const results = lowerSources(open);
  const found = new Map(open.map((lambda, i) => [lambda, results[i]!]));
  for (const [lambda, fn] of found) compareWithJavaScript(lambda, fn);
  return lambdas.map((lambda) => lambda.lowered ?? found.get(lambda)!);
}

/** Irregular numbers, so that no threshold or integer of a model is between their f64 roundings. */
const PROBES = [0.6180339887, -1.3247179572, 2.6854520011, -0.1100010001];

/**
 * A lambda is its own oracle: the lowered function must return the same values as the JavaScript. It does not if the
 * source has changed since loading, or if a captured object was changed at run time.
 */
function compareWithJavaScript(lambda: Lambda, fn: ScalarFunction): void {
  for (let shift = 0; shift < PROBES.length; shift++) {
    const xs = fn.parameters.map((type, i) => {
      const x = PROBES[(i + shift) % PROBES.length]!;
      return type === "bool" ? x > 0 : x;
    });
    // A boolean parameter is a number only in the type of `js`; the function itself is called with a boolean.
    const js: number | boolean = lambda.js(...xs as number[]);
    const kernel = evaluateScalar(fn, xs, { precision: "f64" });
    if (close(Number(js), Number(kernel))) continue;
    const lambdaText = lambda.span
      ? `the function at ${locationOf(lambda.span)}`
      : "a function";
    throw new LowerError(
      `Cannot lower ${lambdaText}: for (${
        xs.join(", ")
      }) it gives ${js}, and its source gives ${kernel}. Keep captured values constant, and load the source that runs`,
      lambda.span,
    );
  }
}

function close(a: number, b: number): boolean {
  return Object.is(a, b) || a === b ||
    Math.abs(a - b) <= 1e-9 * Math.max(1, Math.abs(a), Math.abs(b));
}
