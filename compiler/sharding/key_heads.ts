/**
 * Key heads are sharded like the heads that read them. If there are fewer than ranks, several ranks have the same key
 * head: the mesh axis is split into `tp.0` and `tp.1`, and key heads are sharded over the first only.
 */

import { PlacementError } from "../../spec/errors.ts";
import { groupSizeOf, type Mesh } from "../../spec/mesh.ts";
import type { Graph } from "../graph/graph.ts";
import type { PlacedMesh, Request } from "./placement.ts";

/** Places the key heads of every attention. Throws PlacementError if they are not divisible. */
export function shardKeyHeads(graph: Graph, placed: PlacedMesh): PlacedMesh {
  let now = placed;
  for (const node of graph.nodes) {
    if (
      node.primitive !== "attention" && node.primitive !== "linearRecurrence"
    ) continue;
    const { head, kvHead } = node.params;
    const over = now.requests.get(head)?.over ?? [];
    if (kvHead === undefined) continue;
    const given = now.requests.get(kvHead);
    if (given) checkKeyHeads(graph, now.mesh, { head, over, kvHead, given });
    if (over.length === 0) continue;
    // Indivisible heads are rejected later, by their own name.
    const even = graph.axes[head]!.size % groupSizeOf(now.mesh, over) === 0;
    if (given || !even) continue;
    now = shardAxis(now, kvHead, { over, size: graph.axes[kvHead]!.size });
  }
  return now;
}

/** Checks that a rank has the key heads that its heads read. Throws PlacementError. */
function checkKeyHeads(
  { axes }: Graph,
  mesh: Mesh,
  { head, over, kvHead, given }: {
    readonly head: string;
    readonly over: readonly string[];
    readonly kvHead: string;
    readonly given: Request;
  },
): void {
  const ranks = groupSizeOf(mesh, given.over);
  const begins = given.over.every((name, i) => over[i] === name);
  const equal = ranks === groupSizeOf(mesh, over) ||
    ranks === axes[kvHead]!.size;
  if (begins && equal) return;
  throw new PlacementError(
    `Cannot shard axis '${kvHead}' over '${
      given.over.join("+")
    }': ranks would not have the keys that items of '${head}' there read. Place '${head}' only: '${kvHead}' follows it`,
  );
}

function shardAxis(
  { mesh, requests }: PlacedMesh,
  axis: string,
  { over, size }: { readonly over: readonly string[]; readonly size: number },
): PlacedMesh {
  const taken: string[] = [];
  let rest = size;
  for (const name of over) {
    const ranks = groupSizeOf(mesh, [name]);
    if (rest % ranks === 0) {
      taken.push(name);
      rest /= ranks;
      continue;
    }
    if (rest === 1) break;
    if (ranks % rest !== 0) {
      throw new PlacementError(
        `Cannot shard axis '${axis}' over '${
          over.join("+")
        }': its size, ${size}, and the ${
          groupSizeOf(mesh, over)
        } ranks do not divide each other. Use as many ranks as divide it, or a multiple of it`,
      );
    }
    const split = splitMeshAxis({ mesh, requests }, name, rest);
    return withRequest(split, axis, { over: [...taken, `${name}.0`] });
  }
  return withRequest({ mesh, requests }, axis, { over: taken });
}

function withRequest(
  { mesh, requests }: PlacedMesh,
  axis: string,
  request: Request,
): PlacedMesh {
  return { mesh, requests: new Map([...requests, [axis, request]]) };
}

/** The same ranks in the same order, with one mesh axis split into two. */
function splitMeshAxis(
  { mesh, requests }: PlacedMesh,
  name: string,
  first: number,
): PlacedMesh {
  const replace = (names: readonly string[]) =>
    names.flatMap((n) => n === name ? [`${name}.0`, `${name}.1`] : [n]);
  return {
    mesh: mesh.flatMap((axis): Mesh =>
      axis.name === name
        ? [
          { name: `${name}.0`, size: first },
          { name: `${name}.1`, size: axis.size / first },
        ]
        : [axis]
    ),
    requests: new Map(
      [...requests].map(([axis, request]) => [
        axis,
        { ...request, over: replace(request.over) },
      ]),
    ),
  };
}
