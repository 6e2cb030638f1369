/** Nodes that keep the rule of their primitive. */

import { ModelError, type Span } from "../../spec/errors.ts";
import type { Node, NodeOf, Primitive, PrimitiveParams } from "./graph.ts";
import { RuleError, RULES, type TensorType } from "./rules.ts";

/** Run a rule; its complaint becomes an error at `span`. */
function typeOf<P extends Primitive>(
  primitive: P,
  inputs: readonly Node[],
  params: PrimitiveParams[P],
  given: TensorType,
  span: Span | undefined,
): TensorType {
  try {
    return RULES[primitive]({ inputs, params, given });
  } catch (error) {
    if (error instanceof RuleError) throw new ModelError(error.message, span);
    throw error;
  }
}

const NOTHING: TensorType = { axes: [], dtype: "f32" };

/** A checked node. */
export function makeNode<P extends Primitive>(
  primitive: P,
  inputs: readonly Node[],
  params: PrimitiveParams[P],
  span: Span | undefined,
  given: TensorType = NOTHING,
): NodeOf<P> {
  const { axes, dtype } = typeOf(primitive, inputs, params, given, span);
  return { primitive, inputs, params, axes, dtype, span } as NodeOf<P>;
}
