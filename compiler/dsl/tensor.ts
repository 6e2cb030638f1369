/** A tensor of the model: a node of the graph with its axes and dtype in its type. */

import type { DType } from "../../spec/dtype.ts";
import { axisIn, blockOfAxis, shortAxis } from "../../spec/axis_name.ts";
import { ModelError, type Span } from "../../spec/errors.ts";
import { renameAxes } from "../graph/axis_params.ts";
import type {
  AxisSize,
  Node,
  Primitive,
  PrimitiveParams,
} from "../graph/graph.ts";
import { makeNode } from "../graph/make_node.ts";
import { messages as say, words } from "../graph/messages.ts";
import { type Problems, report } from "../graph/problems.ts";
import type { TensorType } from "../graph/operands.ts";
import { callSite } from "../../spec/call_site.ts";

/** A scope of axis names: the model, or a block of it. */
export interface Block {
  /** `layers.3.moe`; "" is the model itself. */
  readonly path: string;
  /** Graph names of the axes declared in this scope and the enclosing ones: `expert` is `layers.3.moe.expert`. */
  readonly names: ReadonlyMap<string, string>;
}

/** State shared by the tensors of one trace: axes, purpose, dispatches that must be combined, and blocks. */
export interface Trace {
  /** Whether the trace becomes a training step. */
  readonly training: boolean;
  /** Collects mistakes. Absent: mistakes are thrown. */
  readonly problems?: Problems | undefined;
  /** Every declared axis by its graph name. */
  readonly axes: { [name: string]: AxisSize };
  readonly dispatched: Node[];
  /** The block of each call of `recompute`. */
  readonly blocks: Node[];
  /** The current block. */
  block: Block;
}

/**
 * A tensor with named axes: `Tensor<"token embed", "f32">`. Its axes are one string, in order. Its values are known
 * only when a plan runs. Created by `input`, `param`, `state` and the ops.
 */
export class Tensor<
  out Axes extends string = string,
  out D extends DType = DType,
> {
  /** The axes in order, separated by spaces. */
  readonly axes: Axes;
  /** Compute dtype. */
  readonly dtype: D;
  /** The value in the graph; for the compiler. */
  readonly node: Node;
  /** The trace that it belongs to; for the compiler. */
  readonly trace: Trace;

  constructor(axes: Axes, dtype: D, node: Node, trace: Trace) {
    this.axes = axes;
    this.dtype = dtype;
    this.node = node;
    this.trace = trace;
  }
}

/** Any op; only its identity matters. */
export type Op = (...args: never[]) => unknown;

const opNames = new Map<unknown, string>();

/** Names ops after the exports of a module. Names of functions differ in bundles. */
export function nameOps(module: { readonly [name: string]: unknown }): void {
  for (const [name, op] of Object.entries(module)) opNames.set(op, name);
}

/** The name of an op in the language. */
export function opName(op: Op): string {
  return opNames.get(op) ?? op.name;
}

/** Wraps a node. The caller asserts the type parameters: ops are typed at the boundary and checked at run time. */
export function wrap<A extends string, D extends DType>(
  node: Node,
  trace: Trace,
): Tensor<A, D> {
  return new Tensor(words(node.axes) as A, node.dtype as D, node, trace);
}

/**
 * The trace of all operands: a list, or an object by the names that users give. Rejects values that are not tensors,
 * for untyped callers, and axes of two blocks under one name.
 */
export function traceOf(
  operands: readonly unknown[] | { readonly [name: string]: unknown },
  op: Op,
): Trace {
  let trace: Trace | undefined;
  for (const [name, operand] of Object.entries(operands)) {
    const of = (operand as { trace?: Trace } | null | undefined)?.trace;
    if (of === undefined) {
      throw new ModelError(
        Array.isArray(operands)
          ? `Cannot ${opName(op)} ${describe(operand)}: expected a tensor`
          : `Cannot call '${opName(op)}': ${
            operand === undefined
              ? `'${name}' is missing`
              : `'${name}' is ${describe(operand)}`
          }. Give a tensor`,
        callSite(op),
      );
    }
    if (trace !== undefined && trace !== of) {
      throw new ModelError(
        `Cannot ${
          opName(op)
        } tensors of two models. Declare both operands with one 'm'`,
        callSite(op),
      );
    }
    trace = of;
  }
  checkNames(Object.values(operands) as readonly Tensor[], op);
  return trace!;
}

/** Checks that operands use each name for one axis. */
function checkNames(operands: readonly Tensor[], op: Op): void {
  const known = new Map<string, readonly [axis: string, node: Node]>();
  for (const { node } of operands) {
    for (const axis of node.axes) {
      const name = shortAxis(axis);
      const [other, first] = known.get(name) ?? [axis, node];
      if (other !== axis) {
        throw new ModelError(
          say.twoAxes(opName(op), first.axes, node.axes, name),
          callSite(op),
        );
      }
      known.set(name, [axis, node]);
    }
  }
}

/**
 * The graph name of an axis that an op names: the axis of an operand, else the axis declared in the current or an
 * enclosing block, else a new axis of the block.
 */
export function axisOf(
  name: string,
  operands: readonly Pick<Tensor, "node">[],
  { block }: Trace,
): string {
  for (const { node } of operands) {
    const found = node.axes.find((axis) => shortAxis(axis) === name);
    if (found !== undefined) return found;
  }
  return blockOfAxis(name) !== ""
    ? name
    : block.names.get(name) ?? axisIn(block.path, name);
}

/** The call site of an op: source position and block. */
export function siteOf(
  trace: Trace,
  op: Op,
): Site {
  const { block, problems } = trace;
  return { span: callSite(op), block: block.path, problems };
}

/** Source position of the call of an op, its block, and the collector of mistakes. */
export interface Site {
  readonly span: Span | undefined;
  readonly block: string;
  readonly problems: Problems | undefined;
}

/**
 * Throws an error, or records it if mistakes are collected. It then returns a placeholder for the missing value, and no
 * errors are reported about values derived from it. `axes`: axes of the missing value. Default: those of the first
 * operand.
 */
export function refuse<A extends string, D extends DType>(
  error: ModelError,
  operands: readonly [Tensor, ...Tensor[]],
  axes: readonly string[] = operands[0].node.axes,
): Tensor<A, D> {
  const [{ trace, dtype }] = operands;
  const { problems } = trace;
  report(problems, error, operands.map(({ node }) => node));
  const node = makeNode("input", [], { name: "" }, {
    span: error.span,
    problems,
    given: { axes, dtype },
  });
  problems?.wrong.add(node);
  return wrap(node, trace);
}

function describe(value: unknown): string {
  return typeof value === "object" && value !== null
    ? "an object"
    : `'${String(value)}'`;
}

/** The tensor that an op returns for its operands. `op` is the function that the user called. */
export function apply<P extends Primitive, A extends string, D extends DType>(
  op: Op,
  primitive: P,
  operands: readonly Tensor[],
  params: PrimitiveParams[P],
  given?: TensorType,
): Tensor<A, D> {
  const trace = traceOf(operands, op);
  const inputs = operands.map((operand) => operand.node);
  const rename = (axis: string) => axisOf(axis, operands, trace);
  const node = makeNode(primitive, inputs, renameAxes(params, rename), {
    ...siteOf(trace, op),
    given: given && { ...given, axes: given.axes.map(rename) },
  });
  return wrap(node as Node, trace);
}

/** Splits `"token embed"` into names. Untyped callers get an error that quotes their value. */
export function names(axes: string): string[] {
  return axes === "" ? [] : String(axes).split(" ");
}
