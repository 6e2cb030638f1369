/** Keys of expressions, for `kernelOnce`. */

import { cachedJson } from "../../../spec/kernel/exact_json.ts";
import type { Node } from "../../graph/graph.ts";
import { isUneven, planAxis } from "../../sharding/lengths.ts";
import { LENGTHS, type Lowering, opOf, type Storage } from "./context.ts";
import { ropeKey } from "./emit.ts";

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
    "cacheWrite",
    "cast",
    "concat",
    "map",
    "merge",
    "reduce",
    "rename",
    "rmsNorm",
    "rope",
    "slice",
    "split",
    "transpose",
  ] satisfies Node["primitive"][],
);

/** Whether the kernel of a cache write depends on the rank's positions or on gathered keys. */
function isPositioned({ placed }: Lowering, node: Node): boolean {
  const [state, , , , table] = node.inputs as [Node, Node, Node, Node, Node?];
  const context = table?.axes[1] ?? state.axes[1]!;
  return placed.axes[context]!.over.length > 0 ||
    table?.primitive === "keyTable";
}

/**
 * The key of the kernel that computes `nodes`, in order, and stores the last. Undefined if the kernel depends on other
 * facts, such as dispatched rows or lengths that differ between ranks.
 */
export function expressionKey(
  lowering: Lowering,
  nodes: readonly Node[],
  storage: Storage,
): ExpressionKey | undefined {
  const { model, placed, values, draft, options } = lowering;
  const buffers = [LENGTHS];
  const numbers = new Map<Node, number>();
  const axes = new Map<string, string>();
  const computed = new Set(nodes);
  const parts: string[] = [];

  const numberOf = (buffer: string): number => {
    const number = buffers.indexOf(buffer);
    return number < 0 ? buffers.push(buffer) - 1 : number;
  };

  const storedAs = (storage: Storage): string | undefined => {
    const { buffer, dtype, rowStride, packed, wire, rows, bucket } = storage;
    if (packed || wire || rows || bucket) return undefined;
    const { dtype: held } = draft.buffers.get(buffer)!;
    return `${numberOf(buffer)} ${dtype} ${held} ${rowStride} ${storage.axes}`;
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
    const { primitive, inputs } = node;
    if (!PLAIN.has(primitive) || !inputs.every(add)) return undefined;
    if (primitive === "cacheWrite" && isPositioned(lowering, node)) {
      return undefined;
    }
    return `${computed.has(node)} ${primitive} ${
      inputs.map((input) => numbers.get(input))
    } ${paramsOf(node)}`;
  };

  const paramsOf = (node: Node): string => {
    switch (node.primitive) {
      case "map": {
        const { lambda } = node.params;
        return cachedJson(lambda.lowered ?? model.scalars.get(lambda)!);
      }
      case "rmsNorm": {
        const { over, epsilon } = node.params;
        const { size } = placed.axes[over]!;
        return `${over} ${size} ${epsilon} ${options.tuning.wideRows}`;
      }
      case "rope": {
        const { over, interleaved, inverseFrequencies } = node.params;
        const table = numberOf(values.ropeTables.get(ropeKey(node))!);
        return `${over} ${interleaved} ${inverseFrequencies.length} ${table}`;
      }
      default:
        return cachedJson(node.params);
    }
  };

  const last = nodes.at(-1)!;
  const to = nodes.every(add) ? storedAs(storage) : undefined;
  if (to === undefined) return undefined;
  const lengths = [...axes].map(([axis, length]) => `${axis}=${length}`);
  return { text: [opOf(last), to, ...lengths, ...parts].join("\n"), buffers };
}
