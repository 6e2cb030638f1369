/** The role of each step, which determines its color in every picture. */

import type { Program, Step } from "../spec/plan/plan.ts";
import type { Section } from "./sections.ts";

/** The role of a step. `dense`: all other steps. */
export type Role =
  | "attention"
  | "router"
  | "dispatch"
  | "experts"
  | "combine"
  | "dense"
  | "update";

/** Display names of the roles. */
export const ROLE_NAMES: { readonly [R in Role]: string } = {
  attention: "attention",
  router: "router",
  dispatch: "dispatch",
  experts: "experts",
  combine: "combine",
  update: "optimizer",
  dense: "embedding, dense layers and output",
};

/** The data that a part of a dispatch exchanges. */
const EXCHANGED: { readonly [part: string]: string } = {
  "exchange counts": "counts",
  "exchange indices": "indices",
};

/** Formats a part of a dispatch. A part without rows of tokens is named by the data that it exchanges. */
export function partName(part: string): string {
  return EXCHANGED[part] ?? part;
}

/** Returns the role of every step of a program, from its part of a dispatch, its label and its neighbours. */
export function rolesOf(
  program: Program,
  sections: readonly Section[],
): Role[] {
  const roles: Role[] = [];
  for (const { start, starts, length, phase } of sections) {
    const steps = program.steps.slice(start, start + length);
    for (const [i, role] of sectionRoles(steps, phase).entries()) {
      for (const first of starts) roles[first + i] = role;
    }
  }
  return roles;
}

/** Returns the op at the start of a label: `attention` for `attention : f32[…]`. */
export function opOf({ label = "" }: Pick<Step, "label">): string {
  return /^[\w]+/.exec(label)?.[0] ?? "";
}

/** The role of an op that has the same role everywhere. */
const BY_OP: { readonly [op: string]: Role | undefined } = {
  attention: "attention",
  cacheWrite: "attention",
  conv1d: "attention",
  linearRecurrence: "attention",
  rope: "attention",
  selectKeys: "attention",
  selectBlocks: "attention",
  route: "router",
};

function sectionRoles(
  steps: readonly Step[],
  phase: Section["phase"],
): Role[] {
  const known = steps.map((step): Role | undefined =>
    step.part?.op ??
      (step.phase === "update" ? "update" : BY_OP[opOf(step)])
  );
  const dispatch = known.indexOf("dispatch");
  const combine = known.lastIndexOf("combine");
  const router = known.indexOf("router");
  const [first, last] = [
    known.indexOf("attention"),
    known.lastIndexOf("attention"),
  ];
  const blocks = new Set(
    steps.flatMap(({ block }, i) =>
      known[i] === "attention" && block !== undefined ? [block] : []
    ),
  );
  // Attention ends at the next norm. In gradients, whose order is reversed, it is the complete block.
  const norm = steps.findIndex((step, i) =>
    i > last && opOf(step) === "rmsNorm" && !blocks.has(step.block ?? "")
  );
  const attends = (i: number) =>
    first >= 0 &&
    (phase === "forward"
      ? i < norm || norm < 0
      : i > first && i < last || blocks.has(steps[i]!.block ?? ""));
  return known.map((role, i) => {
    if (role !== undefined) return role;
    if (attends(i)) return "attention";
    if (i < router) return "router";
    if (dispatch < 0 || i < dispatch || i > combine) return "dense";
    return roleByAxes(steps[i]!);
  });
}

/**
 * Returns the role of a step between dispatch and combine by its axes. Shared experts are also there, and in gradients
 * steps of the router and of dense layers.
 */
function roleByAxes({ label = "" }: Step): Role {
  // Rows of experts, or their parameters.
  if (/\bslot\b|\[expert\S* \S+ /.test(label)) return "experts";
  return /\b(expert|choice)\b/.test(label) ? "router" : "dense";
}
