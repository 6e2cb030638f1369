/** Operands of a node, and checks of their types. */

import type { DType } from "../../spec/dtype.ts";
import { messages as say } from "./messages.ts";
import type { Node, Primitive, PrimitiveParams } from "./graph.ts";

/** Type of a tensor: its axes in order, and its dtype. */
export interface TensorType {
  readonly axes: readonly string[];
  readonly dtype: DType;
}

/** Thrown by a rule. Callers with the source position convert it to a ModelError. */
export class RuleError extends TypeError {
  override name = "RuleError";
}

/** A rule's view of a node. `given`: the declared type of leaves, transpose and cast. */
export interface RuleInput<P extends Primitive> {
  readonly inputs: readonly Node[];
  readonly params: PrimitiveParams[P];
  readonly given: TensorType;
}

/** Rejects a node. */
export function fail(message: string): never {
  throw new RuleError(message);
}

/** The operand at `i`, which must exist. */
export function operand(inputs: readonly Node[], i: number): Node {
  return inputs[i] ?? fail(`Cannot read operand ${i}: there is none`);
}

/** Rejects an operand of another dtype. */
export function wantType(op: string, node: Node, dtype: DType): void {
  if (node.dtype !== dtype) {
    fail(say.dtype(op, node.axes, node.dtype, dtype));
  }
}

/** Rejects an operand that is not floating-point. */
export function wantFloat(op: string, node: Node): void {
  if (node.dtype !== "f32" && node.dtype !== "f16") {
    fail(say.dtype(op, node.axes, node.dtype, "f32"));
  }
}

/** Rejects an operand without an axis. */
export function wantAxis(op: string, node: Node, axis: string): void {
  if (!node.axes.includes(axis)) fail(say.axis(op, node.axes, axis));
}

/** The first operand. Rejects it if it lacks the axis `over` or is not floating-point. */
export function alongAxis(
  op: string,
  inputs: readonly Node[],
  over: string,
): Node {
  const x = operand(inputs, 0);
  wantAxis(op, x, over);
  wantFloat(op, x);
  return x;
}

/** `axes` with `from` replaced by `to`. */
export function replaced(
  axes: readonly string[],
  from: string,
  to: readonly string[],
): string[] {
  return axes.flatMap((axis) => axis === from ? to : [axis]);
}

/** Rejects an operand that has one of the axes `to`. */
export function wantFree(
  op: string,
  node: Node,
  to: readonly string[],
): void {
  if (to.some((axis) => node.axes.includes(axis))) {
    fail(say.taken(op, node.axes, to));
  }
}

/** Whether two lists contain the same axes in the same order. */
export function sameAxes(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((axis, i) => axis === b[i]);
}
