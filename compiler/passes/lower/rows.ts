/** Reductions along an axis: norms and softmax keep the axis, sums remove it. */

import { binary } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { reduce } from "../../kernels/reduce.ts";
import {
  rmsNorm,
  rowsGrid,
  type RowsOptions,
  softmax,
} from "../../kernels/rows.ts";
import { lengthOf, type Lowering, type Storage } from "./context.ts";
import { resultOf, targetStorage, writeTarget } from "./epilogue.ts";
import { type At, atWith } from "./indices.ts";
import { joinedPart } from "./joined.ts";
import { emitValue, loadFrom } from "./emit.ts";
import { alongRow, indexSpaceOf } from "./index_space.ts";
import { dotsWithNorm, forRows } from "./matmul/inline_norms.ts";
import { kernelOnce } from "./kernel_once.ts";
import { KernelScope } from "./scope.ts";

interface RowParts {
  readonly scope: KernelScope;
  readonly storage: Storage;
  readonly options: RowsOptions;
  readonly size: Size;
}

/** Common parts of norms and softmax: one row per workgroup. */
function rowParts(
  lowering: Lowering,
  node: NodeOf<"softmax"> | NodeOf<"rmsNorm">,
  { target = node, gain }: { readonly target?: Node; readonly gain?: Node } =
    {},
): RowParts {
  const scope = new KernelScope(lowering);
  const { over } = node.params;
  const x = node.inputs[0]!;
  const { storages } = lowering.values;
  const storage = targetStorage(lowering, target);
  const { size, dynamic } = lowering.placed.axes[over]!;
  const length = lengthOf(scope, over);
  const outer = node.axes.filter((axis) => axis !== over);
  const rows = indexSpaceOf(scope, node, outer);
  const indexAt = (row: Expr, i: Expr) =>
    alongRow(node.axes, over, {
      at: rows.at(row),
      row,
      i,
      length,
    });
  const written = target.primitive === "cacheWrite"
    ? target.inputs[1]!
    : target;
  const joined = written.primitive === "concat" ? written : undefined;
  const part = joined && joinedPart(scope, joined, node);
  const to = { scope, node: target, storage, roots: [joined ?? node] };
  const targetAt = (row: Expr, i: Expr): At =>
    joined ? atWith(rows.at(row), joined.params.to, () => i) : indexAt(row, i);
  const options: RowsOptions = {
    name: `${node.primitive}_${size}`,
    rows: rows.count,
    length: size,
    actual: dynamic ? length : undefined,
    bindings: scope.bindings,
    wide: lowering.options.tuning.wideRows,
    load: (row, i) => emitValue(scope, x, indexAt(row, i)),
    epilogue: (row, i, valueAt) => {
      const value = (at: At) => {
        const inner = part ? part.within(at) : at;
        const value = valueAt(inner.get(over));
        return gain
          ? binary("mul", loadFrom(scope, storages.get(gain)!, inner), value)
          : value;
      };
      return writeTarget(to, targetAt(row, i), [value]);
    },
    ...part
      ? {
        others: {
          end: lowering.placed.axes[joined.params.to]!.size,
          store: (row, i) =>
            writeTarget(to, targetAt(row, i), [(at) => part.outside(at)]),
        },
      }
      : {},
  };
  return { scope, storage, options, size: rows.size };
}

/** gain * x / sqrt(mean(x^2) + epsilon), with the epilogue `target`. */
export function lowerRmsNorm(
  lowering: Lowering,
  node: NodeOf<"rmsNorm">,
  target: Node = node,
): void {
  const parts = rowParts(lowering, node, { target, gain: node.inputs[1]! });
  const { epsilon } = node.params;
  const { scope, storage, size: rows } = parts;
  const nodes = target === node ? [node] : [node, target];
  const kernel = kernelOnce(scope, nodes, {
    storage,
    make: () => rmsNorm({ ...parts.options, epsilon }),
  });
  const inline = target === node ? dotsWithNorm(lowering, node) : undefined;
  if (!inline) return launchRows(target, parts, kernel);
  launchRows(node, { ...parts, size: forRows(rows, { rows }).more }, kernel);
  const launch = lowering.draft.steps.at(-1)!;
  lowering.values.norms.set(node, { node, rows, launch, ...inline });
}

/** exp(x - max) / sum */
export function lowerSoftmax(
  lowering: Lowering,
  node: NodeOf<"softmax">,
): void {
  const parts = rowParts(lowering, node);
  launchRows(node, parts, softmax(parts.options));
}

function launchRows(
  node: Node,
  { scope, size }: RowParts,
  kernel: ReturnType<typeof softmax>,
): void {
  scope.launch(node, kernel, rowsGrid(size));
}

/** Sum, mean, maximum or log-sum-exp; removes the axis. */
export function lowerReduce(
  lowering: Lowering,
  node: NodeOf<"reduce"> | NodeOf<"logSumExp">,
): void {
  const { over } = node.params;
  const kind = node.primitive === "reduce" ? node.params.kind : "logSumExp";
  const x = node.inputs[0]!;
  const source = lowering.values.storages.get(x)!;
  const { scope, space, storage, epilogue, launch } = resultOf(lowering, node);
  const length = lengthOf(scope, over);
  const terms = (row: Expr, i: Expr) => {
    const element = { at: space.at(row), row, i, length };
    return [loadFrom(scope, source, alongRow(x.axes, over, element))];
  };
  launch(kernelOnce(scope, [node], {
    storage,
    make: () =>
      reduce({
        name: kind,
        kind,
        count: space.count,
        length,
        bindings: scope.bindings,
        terms,
        epilogue,
      }),
  }));
}
