/** Simplifies launch grids: removes the split over two dimensions if one suffices for the longest input. */

import { boundOf } from "../../../spec/plan/bytes.ts";
import { isSame } from "../../../spec/same.ts";
import type { Size } from "../../../spec/size.ts";
import { type Grid, GRID_LIMIT } from "../../kernels/kernel.ts";
import type { Placed } from "../../sharding/placed.ts";

/**
 * The same grid in fewer words. `ceil(n / limit)` becomes 1: if n is 0, the other dimension is 0 too, and nothing is
 * launched. `ceil(n / k)` of at most one row becomes n, so that launches for one row have equal grids.
 */
export function tidyGrid(placed: Placed, [x, y, z]: Grid): Grid {
  return [tidy(placed, x), tidy(placed, y), tidy(placed, z)];
}

function tidy(placed: Placed, size: Size): Size {
  if (typeof size === "number") return size;
  if ("min" in size) {
    const [value, limit] = size.min;
    return limit === GRID_LIMIT && boundOf(value!, placed) <= GRID_LIMIT
      ? tidy(placed, value!)
      : size;
  }
  if ("ceilDiv" in size) {
    const [value, limit] = size.ceilDiv;
    if (isAtMostOne(value)) return value;
    return limit === GRID_LIMIT && boundOf(value, placed) <= GRID_LIMIT
      ? 1
      : size;
  }
  return size;
}

/** Whether a size is `n if n <= 1`. */
function isAtMostOne(size: Size): boolean {
  if (typeof size === "number" || !("upTo" in size)) return false;
  const [by, limit, then] = size.upTo;
  return limit === 1 && isSame(by, then);
}
