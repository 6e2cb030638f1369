/** Writes the document of a model and its compiler options. */

import { invariant } from "../../spec/errors.ts";
import { findRepeats } from "../../spec/document/find_repeats.ts";
import type { Json } from "../../spec/document/repeat.ts";
import type { CompileOptions } from "../compile_graph.ts";
import type { Graph, Lambda, Node, ScalarFunction } from "../graph/graph.ts";
import { tensorOf } from "../graph/stored.ts";
import { trace, type Traceable } from "../graph/trace.ts";
import { withSourceNames } from "../source_names.ts";
import { lowerScalars } from "../scalars.ts";
import {
  type DocumentOptions,
  type DocumentTraining,
  GIVEN,
  type ModelDocument,
  type NodeDocument,
} from "./document.ts";

/** Options of the compilation. */
export interface DocumentedOptions {
  readonly options?: CompileOptions;
  /** Set for the plan of a training step. */
  readonly training?: DocumentTraining;
}

/**
 * The document of a model. Reads source files if the model has lambdas. Throws ModelError and LowerError like
 * `compile`.
 */
export async function modelDocument(
  model: Traceable,
  { options = {}, training }: DocumentedOptions,
): Promise<ModelDocument> {
  const graph = trace(model, { training: training !== undefined });
  const scalars = await lowerScalars(graph);
  const indices = new Map(graph.nodes.map((node, i) => [node, i]));
  const nodes = graph.nodes.map((node, i) =>
    nodeDocument(node, {
      scalars,
      inputs: node.inputs.map((input) => i - indices.get(input)!),
    })
  );
  const returned = Object.entries({ ...graph.outputs, ...graph.states });
  return {
    axes: graph.declared,
    nodes: findRepeats(
      withSourceNames(nodes) as unknown as Json[],
    ) as readonly unknown[],
    returns: returned.map(([name, node]) => ({
      name,
      node: indices.get(node)!,
    })),
    options: documentOptions(graph, options),
    ...training ? { training } : {},
  };
}

function nodeDocument(
  { primitive, params, axes, dtype, span, block }: Node,
  { scalars, inputs }: {
    readonly scalars: ReadonlyMap<Lambda, ScalarFunction>;
    readonly inputs: readonly number[];
  },
): NodeDocument {
  return {
    primitive,
    inputs,
    params: primitive === "map"
      ? {
        op: params.op,
        fn: params.lambda.lowered ?? scalars.get(params.lambda)!,
      }
      : defined(params),
    ...GIVEN.has(primitive) ? { given: { axes, dtype } } : {},
    ...span ? { span } : {},
    ...block === undefined ? {} : { block },
  } as NodeDocument;
}

/** The options that a document can contain, with only those weights that the model has. */
function documentOptions(
  { nodes }: Graph,
  { tuning, weights, pages, ...rest }: CompileOptions,
): DocumentOptions {
  const { matmuls, ...table } = tuning ?? {};
  invariant(
    typeof matmuls !== "function" && typeof pages !== "function",
    "a document has tables",
  );
  const stored = nodes.flatMap((node) => {
    if (node.primitive !== "param") return [];
    const tensor = tensorOf(node);
    const dtype = weights?.[tensor];
    return dtype === undefined ? [] : [[tensor, dtype] as const];
  });
  return defined({
    ...rest,
    ...pages ? { pages } : {},
    ...stored.length > 0 ? { weights: Object.fromEntries(stored) } : {},
    ...tuning
      ? {
        tuning: { ...table, ...matmuls ? { matmuls } : {} },
      }
      : {},
  });
}

/** Removes undefined fields, as JSON does. */
function defined<T extends object>(fields: T): T {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as T;
}
