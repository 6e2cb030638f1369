/** Nodes that keep the rule of their primitive. */

import { ModelError, type Span } from "../../spec/errors.ts";
import type { Node, NodeOf, Primitive, PrimitiveParams } from "./graph.ts";
import { RuleError, RULES, type TensorType } from "./rules.ts";

/** Where a node is written, and for leaves, transpose, cast and scatter the type that it is given. */
export interface Written {
  readonly span: Span | undefined;
  /** The block that it is written in. */
  readonly block?: string | undefined;
  readonly given?: TensorType | undefined;
}

const NOTHING: TensorType = { axes: [], dtype: "f32" };

/** A checked node: what its rule complains of becomes an error at its position. */
export function makeNode<P extends Primitive>(
  primitive: P,
  inputs: readonly Node[],
  params: PrimitiveParams[P],
  { span, block, given = NOTHING }: Written,
): NodeOf<P> {
  try {
    const { axes, dtype } = RULES[primitive]({ inputs, params, given });
    return {
      ...{ primitive, inputs, params, axes, dtype, span },
      ...block ? { block } : {},
    } as NodeOf<P>;
  } catch (error) {
    if (error instanceof RuleError) throw new ModelError(error.message, span);
    throw error;
  }
}
