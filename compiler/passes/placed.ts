/** Where everything lies, as the passes after placement see it. */

import type { Mesh } from "../../spec/mesh.ts";
import type { PlanAxis } from "../../spec/plan.ts";

/** The mesh, every axis with its placement, and lengths on ranks. */
export interface Placed {
  readonly mesh: Mesh;
  readonly ranks: number;
  readonly axes: { readonly [name: string]: PlanAxis };
  /** Axes whose length is known at run time, in the order of the counts buffer. */
  readonly counts: readonly string[];
  /** Run-time axes that verbs renamed -> the axis whose length they have, and under whose name the plan knows them. */
  readonly aliases: { readonly [name: string]: string };
  /** Axes that experts are numbered on; placed by table, and only for parameters used on dispatched rows. */
  readonly expertAxes: ReadonlySet<string>;
}
