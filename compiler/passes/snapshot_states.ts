/**
 * Snapshot states: adds rows for snapshots to the states of recurrences and convolutions, which otherwise contain only
 * the last token of each sequence. Postcondition: these states have the axis `stateRow` instead of the axis of
 * sequences; ops that update them have the table `states`, an input of the program, as last operand. A sequence may
 * continue from one row and write another, so that a snapshot is neither copied nor overwritten. Bits do not change.
 */

import { groupSizeOf } from "../../spec/mesh.ts";
import { STATES, WITHIN } from "../../spec/pages.ts";
import type { Node } from "../graph/graph.ts";
import { mapNodes } from "../graph/map_nodes.ts";
import { localName } from "../graph/sharding.ts";
import type { Localized } from "../sharding/localize.ts";
import { fullAxis, pageAxes, tableNode, withAxes } from "./page_axes.ts";

/** Maximum default number of snapshots of a rank. */
const SNAPSHOTS = 8;

/**
 * Adds rows for snapshots; default: one per sequence of a rank, at most 8, and none for a single sequence. Without
 * rows, or if another state cannot be shared, the graph is unchanged.
 */
export function snapshotStates(
  localized: Localized,
  given?: number,
): Localized {
  const { graph, placed } = localized;
  const updated = new Set<Node>(
    graph.nodes.flatMap((node) => isUpdate(node) ? [node.inputs[0]!] : []),
  );
  const [first] = updated;
  const sequence = first?.axes[0];
  if (
    sequence === undefined ||
    graph.nodes.some((node) =>
      node.primitive === "state" && !updated.has(node) &&
        !node.axes.includes(WITHIN) ||
      updated.has(node) &&
        (node.primitive !== "state" || node.axes[0] !== sequence)
    )
  ) return localized;
  const { over, size: sequences } = placed.axes[sequence]!;
  const snapshots = given ??
    (sequences === 1 ? 0 : Math.min(sequences, SNAPSHOTS));
  if (snapshots === 0) return localized;
  const rows = { axis: STATES.row, count: sequences + snapshots, over };
  const added = {
    ...pageAxes(rows, groupSizeOf(placed.mesh, over)),
    [STATES.use]: fullAxis(STATES.use, 2),
  };
  const row = localName(STATES.row, over);
  const table = tableNode(STATES.input, sequence, STATES.use);
  const { nodes, ...rest } = mapNodes(graph, (node, before) => {
    const isState = updated.has(before) ||
      node.primitive === "nextState" &&
        updated.has(before.inputs[0]!.inputs[0]!);
    return {
      ...node,
      ...isUpdate(before) ? { inputs: [...node.inputs, table] } : {},
      ...isState ? { axes: [row, ...node.axes.slice(1)] } : {},
    } as Node;
  });
  return withAxes({
    graph: { ...rest, axes: graph.axes, nodes: [table, ...nodes] },
    placed,
  }, added);
}

function isUpdate({ primitive }: Node): boolean {
  return primitive === "conv1d" || primitive === "linearRecurrence";
}
