/** Tiles of experts in the grid of a launch. */

import type { Size } from "../../../spec/size.ts";
import type { RoutingRows } from "./routings.ts";
import type { Workload } from "./workload.ts";

/**
 * The size of a launch that counts tiles of experts, `min(rows, ceil(rows / tile) + experts)`, and the rows per tile.
 */
export function tileOf(
  sizes: readonly Size[],
): { readonly size: Size; readonly rows: number } | undefined {
  for (const size of sizes) {
    const rows = divisorOf(unconditional(size));
    if (rows !== undefined) return { size, rows };
  }
  return undefined;
}

/** A size without its conditions on numbers of rows. */
export function unconditional(size: Size): Size {
  if (typeof size === "number") return size;
  if ("upTo" in size) return unconditional(size.upTo[2]);
  return "above" in size ? unconditional(size.above[2]) : size;
}

function divisorOf(size: Size): number | undefined {
  if (typeof size === "number" || "count" in size) return undefined;
  if ("ceilDiv" in size || "upTo" in size || "above" in size) return undefined;
  const terms = "mul" in size ? size.mul : "min" in size ? size.min : size.add;
  for (const term of terms) {
    if (typeof term !== "number" && "ceilDiv" in term && "add" in size) {
      return term.ceilDiv[1];
    }
    const found = divisorOf(term);
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * Expected tiles of the experts of a rank: exact for even loads; for others, the last tile of each expert is half full.
 */
export function expectedTiles(
  { max, localExperts }: RoutingRows,
  tile: number,
  { experts }: Workload,
): number {
  const tiles = experts === undefined || experts.kind === "even"
    ? localExperts * Math.ceil(max / localExperts / tile)
    : max / tile + localExperts * (tile - 1) / (2 * tile);
  return Math.max(max > 0 ? 1 : 0, Math.ceil(Math.min(max, tiles)));
}
