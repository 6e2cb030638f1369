/** All of a placed axis on every rank: a collective of rows, and a launch that orders them where they are not. */

import { storedDType } from "../../../spec/dtype.ts";
import { load } from "../../../spec/kernel/build.ts";
import type { NodeOf } from "../../graph/graph.ts";
import { atMapped } from "./at.ts";
import {
  about,
  addScratch,
  bufferAxes,
  fixedProduct,
  type Lowering,
  type Storage,
} from "./context.ts";
import { dealtBuffer } from "./dealt.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { loadFrom, storeTo } from "./emit.ts";
import { writeAll } from "./places.ts";
import { KernelScope } from "./scope.ts";

/** Rows of every rank, one rank's after another's; where sequences are dealt, they are brought into global order. */
export function lowerGather(lowering: Lowering, node: NodeOf<"gather">): void {
  const { axis, to } = node.params;
  const x = node.inputs[0]!;
  const rest = x.axes.filter((name) => name !== axis);
  const words = fixedProduct(lowering, node, rest);
  const dtype = storedDType(node.dtype);
  const { over, deal, size } = lowering.placed.axes[axis]!;
  const ordered = deal!.by === "blocks";
  const inner = bufferAxes(lowering, rest);
  const gathered = addScratch(
    lowering,
    "gathered",
    dtype,
    ordered
      ? bufferAxes(lowering, [to, ...rest])
      : [{ axis: `${axis} by rank`, size, dynamic: true }, ...inner],
  );
  lowering.steps.push({
    op: "allGather",
    ranks: "all",
    over: over!,
    from: rowMajorBuffer(lowering, x, [axis, ...rest]),
    to: gathered,
    bytes: words * 4,
    rows: { axis, counts: dealtBuffer(lowering, axis, "counts") },
    ...about(lowering, node),
  });
  const raw: Storage = { buffer: gathered, dtype, axes: [to, ...rest] };
  if (ordered) {
    lowering.storages.set(node, raw);
    return;
  }
  const buffer = addScratch(
    lowering,
    "whole",
    dtype,
    bufferAxes(lowering, raw.axes),
  );
  const whole: Storage = { ...raw, buffer };
  const rows = dealtBuffer(lowering, axis, "rows");
  const scope = new KernelScope(lowering);
  writeAll(scope, node, whole.axes, (at) => {
    const row = load(scope.read(rows), at.get(to), "u32");
    const there = atMapped((name) => name === to ? row : at.get(name));
    return [storeTo(scope, whole, at, loadFrom(scope, raw, there))];
  });
  lowering.storages.set(node, whole);
}
