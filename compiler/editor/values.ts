/** Values of a model in an editor: axes, sizes, bytes, and their sharding on a mesh. */

import {
  axisFacts,
  type Placement,
  readPlacement,
  shard,
} from "../sharding/mod.ts";
import { shortAxis } from "../../spec/axis_name.ts";
import { STORED_BYTES, storedDType } from "../../spec/dtype.ts";
import { meshAxes } from "../../spec/mesh.ts";
import { sizeText } from "../../spec/size_text.ts";
import type { Node } from "../graph/graph.ts";
import { formatSharding, overOf, REPLICATED } from "../graph/sharding.ts";
import type { TracedGraph } from "../graph/trace.ts";
import { localAxis } from "../sharding/local_axes.ts";
import { pathOf } from "../source/frame.ts";
import type { TracedModel } from "../source/traced.ts";

/** The value of a call. */
export interface ShownValue {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** One line for the value and one for the mesh. */
  readonly text: string;
}

/** A mesh and a placement, as in `compile`. */
export interface ShownMesh {
  readonly mesh?: { readonly [meshAxis: string]: number };
  readonly place?: Placement;
}

/** The values of a model, the last one for each call site. */
export function shownValues(
  { made, graph }: TracedModel,
  options: ShownMesh,
): ShownValue[] {
  const sharded = graph && shardedText(graph, options);
  const values = new Map<string, ShownValue>();
  for (const node of made) {
    if (!node.span) continue;
    const { file, line, column } = node.span;
    const text = [valueText(node, graph), sharded?.(node) ?? ""]
      .filter((part) => part !== "").join("\n");
    values.set(`${file}:${line}:${column}`, {
      file: pathOf(file),
      line,
      column,
      text,
    });
  }
  return [...values.values()];
}

/** `token embed: f32, 4096 × 512, at most 8.0 MiB` */
function valueText(node: Node, graph: TracedGraph<string> | undefined): string {
  const name = node.axes.map(shortAxis).join(" ") || "scalar";
  const axes = node.axes.map((axis) => graph?.axes[axis]);
  const sizes = axes.flatMap((axis) => axis ? [axis.size] : []);
  if (sizes.length < axes.length) return `${name}: ${node.dtype}`;
  const bound = axes.some((axis) => axis?.dynamic) ? "at most " : "";
  const shape = sizes.length > 0 ? `, ${sizes.join(" × ")}` : "";
  return `${name}: ${node.dtype}${shape}, ${bound}${bytesText(node, sizes)}`;
}

function bytesText({ dtype }: Node, sizes: readonly number[]): string {
  const elements = sizes.reduce((n, size) => n * size, 1);
  return sizeText(elements * STORED_BYTES[storedDType(dtype)]);
}

/** Shardings of values on a mesh, one per line: `ep=4: expert/ep slot embed, at most 2.0 MiB a rank`. */
function shardedText(
  graph: TracedGraph<string>,
  { mesh = {}, place }: ShownMesh,
): ((node: Node) => string) | undefined {
  const axes = meshAxes(mesh);
  if (axes.length === 0) return undefined;
  const title = axes.map(({ name, size }) => `${name}=${size}`).join(",");
  try {
    const placed = readPlacement(graph, axes, { place });
    const facts = axisFacts(graph, placed.mesh, placed.requests);
    const { nodes } = shard(facts, { shardsState: () => false });
    return (node) => {
      const same = nodes.findLast((other) =>
        other.span === node.span && other.primitive === node.primitive &&
        other.axes.join() === node.axes.join()
      );
      if (!same) return "";
      const sharding = same.sharding ?? REPLICATED;
      const text = `${title}: ${formatSharding(node.axes, sharding)}`;
      // The number of rows of an expert is dynamic.
      if (node.axes.some((axis) => !graph.axes[axis])) return text;
      const locals = node.axes.map((axis) =>
        localAxis(facts, axis, overOf(sharding, axis))
      );
      const bound = locals.some(({ dynamic }) => dynamic) ? "at most " : "";
      const bytes = bytesText(node, locals.map(({ size }) => size));
      return `${text}, ${bound}${bytes} a rank`;
    };
  } catch (error) {
    // A mesh that does not fit the model is reported next to the value; it is not a mistake in the file.
    const why = error instanceof Error ? error.message : String(error);
    return () => `${title}: ${why}`;
  }
}
