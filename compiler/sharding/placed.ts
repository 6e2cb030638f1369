/** Axes as the passes after sharding see them. */

import type { Mesh } from "../../spec/mesh.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";

/** The mesh, every local axis, and which lengths are known at run time. */
export interface Placed {
  readonly mesh: Mesh;
  readonly ranks: number;
  readonly axes: { readonly [name: string]: LocalAxis };
  /** Axes whose length is known at run time, in the order of the counts buffer. */
  readonly counts: readonly string[];
  /** Dynamic axes that ops renamed -> the axis whose length they have, and under whose name the plan knows them. */
  readonly aliases: { readonly [name: string]: string };
}
