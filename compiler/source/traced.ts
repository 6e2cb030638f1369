/** Mistakes that only executing a model file finds: by tracing its models and lowering their scalar functions. */

import { ModelError } from "../../spec/errors.ts";
import type { Model } from "../dsl/model.ts";
import type { Lambda, Node } from "../graph/graph.ts";
import { noProblems } from "../graph/problems.ts";
import { trace, type TracedGraph } from "../graph/trace.ts";
import { type Diagnostic, diagnosticOf } from "./diagnostic.ts";
import { loadExamples, type ModelReference } from "./load.ts";
import { lowerLambdas } from "./lower_scalar.ts";

/** A mistake found by executing a file. */
export interface TracedMistake extends Diagnostic {
  /** Not reported by the language itself: it may follow from a type error. */
  readonly doubtful?: true;
}

/** A model that was traced. */
export interface TracedModel {
  /** Every node that its function created, used or not, right or wrong. */
  readonly made: readonly Node[];
  /** Absent if tracing failed. */
  readonly graph?: TracedGraph<string>;
}

/** Result of executing a model file. */
export interface Traced {
  readonly mistakes: readonly TracedMistake[];
  readonly models: readonly TracedModel[];
}

/** Loads a model file and traces its exports, or the named one. `version` as for `loadModels`. */
export async function traceFile(
  reference: ModelReference,
  version?: number,
): Promise<Traced> {
  const { path } = reference;
  let models: Model[];
  try {
    models = await loadExamples(reference, version);
  } catch (error) {
    const mistake = diagnosticOf(error, path);
    return { mistakes: [{ ...mistake, doubtful: true }], models: [] };
  }
  const mistakes: TracedMistake[] = [];
  const traced: TracedModel[] = [];
  for (const model of models) {
    traced.push(await traceModel(model, path, mistakes));
  }
  return { mistakes: unique(mistakes), models: traced };
}

/** Removes duplicates: layers of a loop make the same mistake. */
function unique(mistakes: readonly TracedMistake[]): TracedMistake[] {
  const keyOf = ({ message, span }: TracedMistake) =>
    JSON.stringify([message, span]);
  return [...new Map(mistakes.map((one) => [keyOf(one), one])).values()];
}

async function traceModel(
  model: Model,
  path: string,
  mistakes: TracedMistake[],
): Promise<TracedModel> {
  const problems = noProblems();
  let graph: TracedGraph<string> | undefined;
  let thrown: TracedMistake | undefined;
  try {
    graph = trace(model, { problems });
  } catch (error) {
    const mistake = diagnosticOf(error, path);
    const ours = error instanceof ModelError;
    thrown = ours ? mistake : { ...mistake, doubtful: true };
  }
  mistakes.push(...problems.found.map((error) => diagnosticOf(error, path)));
  if (thrown) mistakes.push(thrown);
  const lambdas = problems.made.flatMap((node) =>
    node.primitive === "map" ? [node.params.lambda] : []
  );
  for (const error of await wrongLambdas(lambdas)) {
    mistakes.push(diagnosticOf(error, path));
  }
  return { made: problems.made, ...graph ? { graph } : {} };
}

/** Errors of lowering scalar functions, one by one. */
async function wrongLambdas(lambdas: readonly Lambda[]): Promise<unknown[]> {
  try {
    await lowerLambdas(lambdas);
    return [];
  } catch {
    // At least one is wrong: lower one by one to report all.
    const errors: unknown[] = [];
    for (const lambda of lambdas) {
      try {
        await lowerLambdas([lambda]);
      } catch (error) {
        errors.push(error);
      }
    }
    return errors;
  }
}
