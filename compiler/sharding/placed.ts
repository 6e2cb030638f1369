/** Axes as the passes after sharding see them. */

import type { Mesh } from "../../spec/mesh.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";

/** The mesh, every local axis, and the dynamic lengths. */
export interface Placed {
  readonly mesh: Mesh;
  readonly ranks: number;
  readonly axes: { readonly [name: string]: LocalAxis };
  /** Dynamic axes, in the order of the counts buffer. */
  readonly counts: readonly string[];
  /** Renamed dynamic axes -> the axis with their length, whose name the plan uses. */
  readonly aliases: { readonly [name: string]: string };
}
