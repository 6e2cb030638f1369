/** Kernels of chains of elementwise ops and sums over short axes: values are variables. */

import { add, f32, u32 } from "../../../spec/kernel/build.ts";
import type { Expr, Kernel } from "../../../spec/kernel/tree.ts";
import type { Node } from "../../graph/graph.ts";
import { range } from "../../../spec/range.ts";
import { outerAxes, shortAxes } from "../short_chains.ts";
import type { Lowering, Storage } from "./context.ts";
import { computeValue, emitValue, type Known, storeTo } from "./emit.ts";
import {
  indexGrid,
  type IndexSpace,
  indexSpaceOf,
  kernelAt,
} from "./index_space.ts";
import { type At, atWith } from "./indices.ts";
import { kernelOnce } from "./kernel_once.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** A chain: its other nodes in order, its last node, and the storage of that node. */
interface Chain {
  readonly others: readonly Node[];
  readonly last: Node;
  readonly storage: Storage;
}

/** Stores `last`, and computes the other nodes of its chain before. */
export function lowerShortChain(
  lowering: Lowering,
  last: Node,
  others: readonly Node[],
): void {
  const storage = storageFor(lowering, last);
  const chain = { others, last, storage };
  const scope = new KernelScope(lowering);
  const workgroups = indexGrid(spaceOf(scope, last));
  const kernel = kernelOnce(scope, [...others, last], {
    storage,
    make: () => kernelOf(scope, chain),
  });
  scope.launch(last, kernel, workgroups);
}

/** The index space of the axes that invocations do not loop over. */
function spaceOf(scope: KernelScope, last: Node): IndexSpace {
  return indexSpaceOf(scope, last, outerAxes(scope.lowering.placed, last));
}

function kernelOf(
  scope: KernelScope,
  { others, last, storage }: Chain,
): Kernel {
  const { lowering } = scope;
  const { placed } = lowering;
  const outer = outerAxes(placed, last);
  return kernelAt(scope, last, spaceOf(scope, last), (at) => {
    const bound = new Map(
      outer.map((axis) => [axis, scope.bindValue(at.get(axis))]),
    );
    const from: At = { get: (axis) => bound.get(axis) ?? at.get(axis) };
    const known = new Map<Node, (at: At) => Expr>();
    for (const node of others) {
      const axes = shortAxes(placed, node);
      const values = new Map(
        indicesOf(lowering, axes, from).map((at) => [
          keyOf(axes, at),
          scope.bindValue(valueAt(scope, node, { at, known })),
        ]),
      );
      known.set(node, (at) => values.get(keyOf(axes, at))!);
    }
    return indicesOf(lowering, shortAxes(placed, last), from).map((at) =>
      storeTo(scope, storage, at, valueAt(scope, last, { at, known }))
    );
  });
}

/** All indices along short axes. */
function indicesOf(
  { placed }: Lowering,
  axes: readonly string[],
  from: At,
): At[] {
  return axes.reduce<At[]>(
    (all, axis) =>
      all.flatMap((at) =>
        range(placed.axes[axis]!.size).map((i) =>
          atWith(at, axis, () => u32(i))
        )
      ),
    [from],
  );
}

function keyOf(axes: readonly string[], at: At): string {
  return axes.map((axis) => {
    const index = at.get(axis);
    return index.op === "const" ? index.value : "";
  }).join();
}

/** The value of a node of a chain. A sum over a short axis has one block. */
function valueAt(
  scope: KernelScope,
  node: Node,
  { at, known }: { readonly at: At; readonly known: Known },
): Expr {
  if (node.primitive !== "reduce") return computeValue(scope, node, at, known);
  const { over } = node.params;
  const x = node.inputs[0]!;
  const block = range(scope.lowering.placed.axes[over]!.size).reduce<Expr>(
    (sum, i) =>
      add(sum, emitValue(scope, x, atWith(at, over, () => u32(i)), known)),
    f32(0),
  );
  return add(f32(0), block);
}
