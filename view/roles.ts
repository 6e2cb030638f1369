/** What each step is for, which is the color that it has in every picture. */

import type { Program, Step } from "../spec/plan/plan.ts";
import type { Section } from "./sections.ts";

/** What a step is for. `dense`: everything that none of the others is. */
export type Role =
  | "attention"
  | "router"
  | "dispatch"
  | "experts"
  | "combine"
  | "dense"
  | "update";

/** What people call them. */
export const ROLE_NAMES: { readonly [R in Role]: string } = {
  attention: "attention",
  router: "router",
  dispatch: "dispatch",
  experts: "experts",
  combine: "combine",
  update: "optimizer",
  dense: "embedding, dense layers and output",
};

/** What a part of a dispatch exchanges. */
const EXCHANGED: { readonly [part: string]: string } = {
  "exchange counts": "counts",
  "exchange places": "slots",
};

/** A part of a dispatch in words; of one that exchanges no rows of tokens, what it exchanges. */
export function partName(part: string): string {
  return EXCHANGED[part] ?? part;
}

/** The role of every step of a program, from its part of a dispatch, its label, and what is around it. */
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

/** The op that a label begins with: `attention` of `attention : f32[…]`. */
export function opOf({ label = "" }: Pick<Step, "label">): string {
  return /^[\w]+/.exec(label)?.[0] ?? "";
}

/** The role that an op has wherever it is. */
const BY_OP: { readonly [op: string]: Role | undefined } = {
  attention: "attention",
  cacheWrite: "attention",
  conv1d: "attention",
  linearRecurrence: "attention",
  rope: "attention",
  selectKeys: "attention",
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
  // Attention is all up to the norm of what comes after it; of gradients, which come in the other order, its block.
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
    return phase === "forward" ? "experts" : gradientRole(steps[i]!);
  });
}

/** The role of a step between dispatch and combine of gradients, where those of the router and of dense layers are too, by its axes. */
function gradientRole({ label = "" }: Step): Role {
  // Rows of experts, or their parameters.
  if (/\bslot\b|\[expert\S* \S+ /.test(label)) return "experts";
  return /\b(expert|choice)\b/.test(label) ? "router" : "dense";
}
