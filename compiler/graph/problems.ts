/**
 * Mistakes of a model, collected instead of thrown. A wrong node is created with a guessed type, and no errors are
 * reported about values derived from it.
 */

import type { ModelError } from "../../spec/errors.ts";
import type { Node, Primitive, PrimitiveParams } from "./graph.ts";
import type { TensorType } from "./operands.ts";

/** The mistakes, and the nodes that caused them. */
export interface Problems {
  readonly found: ModelError[];
  /** Wrong nodes, and the nodes derived from them. */
  readonly wrong: Set<Node>;
  /** Every node, used or not. */
  readonly made: Node[];
}

/** An empty collection. */
export function noProblems(): Problems {
  return { found: [], wrong: new Set(), made: [] };
}

/** Throws an error, or records it if mistakes are collected and it does not follow from another one. */
export function report(
  problems: Problems | undefined,
  error: ModelError,
  about: readonly Node[],
): void {
  if (!problems) throw error;
  if (about.some((node) => problems.wrong.has(node))) return;
  problems.found.push(error);
}

/** Records a created node. */
export function noteNode(
  problems: Problems | undefined,
  node: Node,
  wrong: boolean,
): void {
  if (!problems) return;
  problems.made.push(node);
  if (wrong || node.inputs.some((input) => problems.wrong.has(input))) {
    problems.wrong.add(node);
  }
}

/** The type of a wrong node, as far as it can be inferred. */
export function guessedType<P extends Primitive>(
  inputs: readonly Node[],
  params: PrimitiveParams[P],
  given: TensorType | undefined,
): TensorType {
  const [first] = inputs;
  if (given || !first) return given ?? { axes: [], dtype: "f32" };
  const over = "over" in params ? [params.over].flat() as string[] : [];
  const axes = new Set(inputs.slice(0, 2).flatMap(({ axes }) => axes));
  return {
    axes: [...axes].filter((axis) => !over.includes(axis)),
    dtype: first.dtype,
  };
}
