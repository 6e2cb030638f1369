/** A dispatch in two levels, on a rank that forwards rows between nodes and the ranks of its node. */

import type { Binding, Kernel } from "../kernel.ts";
import { bindings, elementwise, reads, wgsl, writes } from "../kernel.ts";

/** A move of rows. Its grid is `elementwiseGrid(rows * row)`. */
export interface MoveRowsOptions {
  readonly name: string;
  /** Elements of a row, and their type. */
  readonly row: number;
  readonly type: Binding["type"];
  /**
   * Rows as received from nodes are ordered for the ranks of the node (forward), or returned to their offsets (back).
   */
  readonly direction: "forward" | "back";
}

/** forward: y[g] = x[index[g]]. back: y[index[g]] = x[g]. For each row g below rowCount[0]. */
export function moveRows(o: MoveRowsOptions): Kernel {
  const { row, type } = o;
  const other = wgsl`index[i / ${row}] * ${row} + i % ${row}`;
  return elementwise({
    name: o.name,
    count: wgsl`rowCount[0] * ${row}`,
    bindings: [
      reads("rowCount", "u32"),
      reads("index", "u32"),
      reads("x", type),
      writes("y", type),
    ],
    body: o.direction === "forward"
      ? wgsl`y[i] = x[${other}];`
      : wgsl`y[${other}] = x[i];`,
  });
}

/** Counts of a node. Its grid is `elementwiseGrid(experts)`. */
export interface NodeCountsOptions {
  readonly name: string;
  readonly nodes: number;
  /** Experts of a node. */
  readonly experts: number;
  /** Counts per rank in `all`. */
  readonly countsPerRank: number;
}

/** counts[e] = the rows that this rank receives from all nodes for expert e of its node. */
export function nodeCounts(o: NodeCountsOptions): Kernel {
  return elementwise({
    name: o.name,
    count: wgsl`${o.experts}u`,
    bindings: bindings({
      all: "u32 [node, expert, then unit]",
      groupRank: "u32 [1]",
    }, { counts: "u32 [expert]" }),
    body: wgsl`
      var rows = 0u;
      for (var s = 0u; s < ${o.nodes}; s++) {
        rows += all[s * ${o.countsPerRank} + groupRank[0] * ${o.experts} + i];
      }
      counts[i] = rows;`,
  });
}
