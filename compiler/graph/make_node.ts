/** Construction of nodes that satisfy the rule of their primitive. */

import { ModelError, type Span } from "../../spec/errors.ts";
import type { Node, NodeOf, Primitive, PrimitiveParams } from "./graph.ts";
import { guessedType, noteNode, type Problems, report } from "./problems.ts";
import { RuleError, type TensorType } from "./operands.ts";
import { RULES } from "./rules.ts";

/** Origin of a node; for leaves, transpose, cast and scatter also the declared type. */
export interface Written {
  readonly span: Span | undefined;
  /** Block of the node. */
  readonly block?: string | undefined;
  readonly given?: TensorType | undefined;
  /** Collects mistakes. Default: they are thrown. */
  readonly problems?: Problems | undefined;
}

const NOTHING: TensorType = { axes: [], dtype: "f32" };

/** Creates a checked node. Errors of its rule are reported at its source position. */
export function makeNode<P extends Primitive>(
  primitive: P,
  inputs: readonly Node[],
  params: PrimitiveParams[P],
  { span, block, given, problems }: Written,
): NodeOf<P> {
  const made = ({ axes, dtype }: TensorType, wrong: boolean): NodeOf<P> => {
    const node = {
      primitive,
      inputs,
      params,
      axes,
      dtype,
      span,
      ...block ? { block } : {},
    } as NodeOf<P>;
    noteNode(problems, node as Node, wrong);
    return node;
  };
  try {
    const rule = RULES[primitive];
    return made(rule({ inputs, params, given: given ?? NOTHING }), false);
  } catch (error) {
    if (!(error instanceof RuleError)) throw error;
    report(problems, new ModelError(error.message, span), inputs);
    return made(guessedType(inputs, params, given), true);
  }
}
