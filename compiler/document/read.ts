/** Reads a document, which may be untrusted, to a model, and compiles it. */

import { PlanError } from "../../spec/errors.ts";
import type { Holds } from "../../spec/document/hold.ts";
import { deepestError, errorText } from "../../spec/document/schema_error.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { expandRepeats, type Json } from "../../spec/document/repeat.ts";
import { compileLowered } from "../compile_graph.ts";
import { compileTrainingLowered } from "../compile_training.ts";
import type { Scalars } from "../graph/gradients/gradients.ts";
import type { Node, Primitive, PrimitiveParams } from "../graph/graph.ts";
import { makeNode } from "../graph/make_node.ts";
import { trace, type Traceable } from "../graph/trace.ts";
import type { ModelDocument, NodeDocument } from "./document.ts";
import { documentErrors, nodesErrors } from "./document_validator.ts";

/**
 * Compiles a document. Only its form is trusted: nodes are checked as if they were written in the language. Throws
 * PlanError for a wrong form, and the errors of `compile`.
 */
export function compileDocument(
  document: { readonly [field: string]: unknown },
): Plan {
  hold(document, documentErrors);
  const { axes, nodes, returns, options, training } =
    document as unknown as ModelDocument;
  const list = expandRepeats(nodes as readonly Json[], "nodes");
  hold(list, nodesErrors);
  const model: Traceable = {
    axes,
    span: undefined,
    build: () => {
      const made = makeNodes(list as unknown as NodeDocument[], axes);
      return {
        axes,
        outputs: Object.fromEntries(
          returns.map(({ name, node }) => [name, nodeAt(made, node)]),
        ),
        declared: made,
        dispatched: made.filter(({ primitive }) => primitive === "dispatch"),
      };
    },
  };
  return training
    ? compileTrainingLowered(trace(model, { training: true }), LOWERED, {
      ...options,
      ...training,
    })
    : compileLowered(trace(model), LOWERED, options);
}

/** Documents contain lowered scalar functions. */
const LOWERED: Scalars = new Map();

function hold(value: unknown, holds: Holds): void {
  const error = deepestError(holds(value));
  if (error === undefined) return;
  throw new PlanError(
    `Cannot read the model of the plan: ${errorText(error)}. Compile it again`,
  );
}

/** Kernels contain the operand of each rotation twice. This is the maximum number of consecutive rotations. */
const MAX_ROPES = 4;

/** Primitives that are computed in the kernel of their user. */
const INLINE: ReadonlySet<Primitive> = new Set<Primitive>([
  ...["map", "rope", "cast", "rename", "split", "merge"] as const,
  ...["slice", "dilate", "concat", "transpose", "embedding"] as const,
]);

/** Rejects nested rotations, which double the size of kernels. */
function checkRopes(nodes: readonly Node[]): void {
  const depths = new Map<Node, number>();
  for (const node of nodes) {
    const below = Math.max(0, ...node.inputs.map((x) => depths.get(x)!));
    const depth = below + (node.primitive === "rope" ? 1 : 0);
    if (depth > MAX_ROPES) {
      throw new PlanError(
        `Cannot read the model of the plan: it applies rope to rotated values more than ${MAX_ROPES} times. Compile it again`,
      );
    }
    depths.set(node, INLINE.has(node.primitive) ? depth : 0);
  }
}

function makeNodes(
  list: readonly NodeDocument[],
  axes: ModelDocument["axes"],
): Node[] {
  const made: Node[] = [];
  for (const node of list) {
    const { primitive, inputs, params, span, block } = node;
    const given = "given" in node ? node.given : undefined;
    const other = given?.axes.find((axis) => !Object.hasOwn(axes, axis));
    if (other !== undefined) {
      throw new PlanError(
        `Cannot read the model of the plan: node ${made.length} has the axis '${other}', and the model has none of that name. Compile it again`,
      );
    }
    made.push(
      makeNode<Primitive>(
        primitive,
        inputs.map((back) => nodeAt(made, made.length - back)),
        paramsOf(params),
        { span, block, given },
      ) as Node,
    );
  }
  checkRopes(made);
  return made;
}

function nodeAt(made: readonly Node[], index: number): Node {
  const node = made[index];
  if (node !== undefined) return node;
  throw new PlanError(
    `Cannot read the model of the plan: it has no node ${index}. Compile it again`,
  );
}

function paramsOf(params: NodeDocument["params"]): PrimitiveParams[Primitive] {
  if (!("fn" in params)) return params;
  const { op, fn } = params;
  return { op, lambda: { js: unknown, span: undefined, lowered: fn } };
}

/** A document has no JavaScript functions. */
function unknown(): never {
  throw new PlanError("Cannot evaluate a scalar function of a document");
}
