/**
 * Mistakes of a model, collected instead of thrown: a wrong node is made all the same, with a type that is guessed, and
 * nothing is said of what follows from it.
 */

import type { ModelError } from "../../spec/errors.ts";
import type { Node, Primitive, PrimitiveParams } from "./graph.ts";
import type { TensorType } from "./operands.ts";

/** What was found, and where it came from. */
export interface Problems {
  readonly found: ModelError[];
  /** Nodes that are wrong, and what is made of them. */
  readonly wrong: Set<Node>;
  /** Every node, used or not. */
  readonly made: Node[];
}

/** Nothing yet. */
export function noProblems(): Problems {
  return { found: [], wrong: new Set(), made: [] };
}

/** Throw an error, or keep it if mistakes are collected and it does not follow from another one. */
export function report(
  problems: Problems | undefined,
  error: ModelError,
  about: readonly Node[],
): void {
  if (!problems) throw error;
  if (about.some((node) => problems.wrong.has(node))) return;
  problems.found.push(error);
}

/** Note a node that was made. */
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

/** The type that a node would have if it were right, as far as is known. */
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
