/** Keys of expressions: kernels of equal layers are built once. */

import { cachedJson } from "../../../spec/kernel/exact_json.ts";
import type { Node } from "../../graph/graph.ts";
import { isUneven, planAxis } from "../../sharding/lengths.ts";
import { LENGTHS, type Lowering, opOf, type Storage } from "./context.ts";

/** Structure of an expression. */
export interface ExpressionKey {
  /** Equal only for expressions whose kernels differ at most in their buffers. */
  readonly text: string;
  /** Buffers that the kernel may bind; kernels of equal keys bind buffers of equal indices. */
  readonly buffers: readonly string[];
}

/** Primitives whose kernel text depends only on their parameters, axes and operands. */
const PLAIN: ReadonlySet<string> = new Set(
  [
    "cast",
    "concat",
    "map",
    "merge",
    "reduce",
    "rename",
    "slice",
    "split",
    "transpose",
  ] satisfies Node["primitive"][],
);

/**
 * The key of the kernel that computes `nodes`, in order, and stores the last. Undefined if the kernel depends on other
 * facts, such as dispatched rows or lengths that differ between ranks.
 */
export function expressionKey(
  { model, placed, values, draft }: Lowering,
  nodes: readonly Node[],
  storage: Storage,
): ExpressionKey | undefined {
  const buffers = [LENGTHS];
  const numbers = new Map<Node, number>();
  const axes = new Map<string, string>();
  const computed = new Set(nodes);
  const parts: string[] = [];

  const storedAs = (storage: Storage): string | undefined => {
    const { buffer, dtype, rowStride, packed, wire, rows, bucket } = storage;
    if (packed || wire || rows || bucket) return undefined;
    let number = buffers.indexOf(buffer);
    if (number < 0) number = buffers.push(buffer) - 1;
    const { dtype: held } = draft.buffers.get(buffer)!;
    return `${number} ${dtype} ${held} ${rowStride} ${storage.axes}`;
  };

  const add = (node: Node): boolean => {
    if (numbers.has(node)) return true;
    if (model.dispatched.has(node)) return false;
    for (const axis of node.axes) {
      if (axes.has(axis)) continue;
      const of = placed.axes[axis]!;
      if (isUneven(placed, of)) return false;
      const { dynamic, size } = of;
      axes.set(
        axis,
        dynamic
          ? `[${placed.counts.indexOf(planAxis(placed, axis))}]`
          : `${size}`,
      );
    }
    const stored = computed.has(node) ? undefined : values.storages.get(node);
    const text = stored ? storedAs(stored) : computedAs(node);
    if (text === undefined) return false;
    numbers.set(node, numbers.size);
    parts.push(`${node.dtype} ${node.axes}: ${text}`);
    return true;
  };

  const computedAs = (node: Node): string | undefined => {
    const { primitive, inputs, params } = node;
    if (!PLAIN.has(primitive) || !inputs.every(add)) return undefined;
    const fn = primitive === "map"
      ? params.lambda.lowered ?? model.scalars.get(params.lambda)
      : params;
    return `${computed.has(node)} ${primitive} ${
      inputs.map((input) => numbers.get(input))
    } ${fn && cachedJson(fn)}`;
  };

  const last = nodes.at(-1)!;
  const to = nodes.every(add) ? storedAs(storage) : undefined;
  if (to === undefined) return undefined;
  const lengths = [...axes].map(([axis, length]) => `${axis}=${length}`);
  return { text: [opOf(last), to, ...lengths, ...parts].join("\n"), buffers };
}
