/**
 * Updates of parameters and computed states. Next values have separate buffers and are copied after the last read of
 * the old values; 16-bit parameters are rounded first. Cache writes are in place already.
 */

import { isHalf } from "../../../spec/dtype.ts";
import { ModelError } from "../../../spec/errors.ts";
import type { Node } from "../../graph/graph.ts";
import {
  about,
  amendBuffer,
  type Lowering,
  MAIN,
  type Storage,
} from "./context.ts";
import { rowMajorStorage } from "./elementwise.ts";
import { packedStorage } from "./params/pack.ts";
import { usersOf } from "../../graph/users.ts";

/** The updates of one lowering. */
export interface Updates {
  /** Called after a node is lowered, in order. */
  after(node: Node): void;
}

interface Update {
  readonly leaf: Node;
  readonly next: Node;
}

/** Finds updated parameters and states, and the earliest step for each update. */
export function startUpdates(lowering: Lowering): Updates {
  const { model: { graph } } = lowering;
  const indexOf = new Map(graph.nodes.map((node, i) => [node, i]));
  const due = new Map<Node, Update[]>();
  const users = usersOf(graph);
  for (const leaf of graph.nodes) {
    if (leaf.primitive !== "state" && leaf.primitive !== "param") continue;
    const next = graph.states[leaf.params.name];
    if (next === undefined) continue;
    // The last node that reads the old value or computes the new one.
    const last = (users.get(leaf) ?? []).reduce(
      (found, node) => indexOf.get(node)! > indexOf.get(found)! ? node : found,
      next,
    );
    due.set(last, [...due.get(last) ?? [], { leaf, next }]);
  }
  return {
    after(node) {
      for (const update of due.get(node) ?? []) emitUpdate(lowering, update);
    },
  };
}

/** A next value in the layout of its leaf. A value in a bucket is extracted. */
function madeFor(lowering: Lowering, { leaf, next }: Update): Storage {
  const made = lowering.values.storages.get(next)!;
  const old = lowering.values.storages.get(leaf)!;
  if (isHalf(old.dtype)) return packedStorage(lowering, next, old);
  return made.bucket ? rowMajorStorage(lowering, next, old.axes) : made;
}

function emitUpdate(lowering: Lowering, { leaf, next }: Update): void {
  const old = lowering.values.storages.get(leaf)!;
  if (lowering.values.storages.get(next)!.buffer === old.buffer) return;
  const made = madeFor(lowering, { leaf, next });
  if (old.dtype !== made.dtype || old.axes.join() !== made.axes.join()) {
    throw new ModelError(
      `Cannot update '${old.buffer}': it is stored as ${old.dtype}[${
        old.axes.join(" ")
      }], and its next value as ${made.dtype}[${
        made.axes.join(" ")
      }]. Store it as ${made.dtype}`,
      next.span,
    );
  }
  amendBuffer(lowering, old.buffer, {
    written: { [MAIN]: "after reads" },
  });
  const { bytes } = lowering.draft.buffers.get(old.buffer)!;
  lowering.draft.steps.push({
    op: "copy",
    ranks: lowering.progress.ranks,
    from: made.buffer,
    to: old.buffer,
    bytes,
    ...about(lowering, next),
  });
}
