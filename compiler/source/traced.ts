/** What only running a model file can tell: the mistakes that tracing its models, and lowering their scalar functions, finds. */

import { ModelError } from "../../spec/errors.ts";
import type { Model } from "../dsl/model.ts";
import type { Lambda, Node } from "../graph/graph.ts";
import { noProblems } from "../graph/problems.ts";
import { trace, type TracedGraph } from "../graph/trace.ts";
import { type Diagnostic, diagnosticOf } from "./diagnostic.ts";
import { loadExamples, type ModelReference } from "./load.ts";
import { lowerLambdas } from "./lower_scalar.ts";

/** A mistake that running a file shows. */
export interface TracedMistake extends Diagnostic {
  /** The language does not say it: where there are type errors, it may follow from one. */
  readonly doubtful?: true;
}

/** A model that was traced. */
export interface TracedModel {
  /** Every node that its function made, used or not, right or wrong. */
  readonly made: readonly Node[];
  /** Absent where tracing it failed. */
  readonly graph?: TracedGraph<string>;
}

/** What running a model file showed. */
export interface Traced {
  readonly mistakes: readonly TracedMistake[];
  readonly models: readonly TracedModel[];
}

/** Load a model file and trace what it exports, or the export that is named. `version` as for `loadModels`. */
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

/** Each mistake once: layers of a loop make the same one. */
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

/** What lowering scalar functions complains about, one by one. */
async function wrongLambdas(lambdas: readonly Lambda[]): Promise<unknown[]> {
  try {
    await lowerLambdas(lambdas);
    return [];
  } catch {
    // One is wrong at least: ask one by one, to name them all.
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
