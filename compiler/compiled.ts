/** Plans that the compiler of this process made. They run without being compiled again; see spec/security.md. */

import type { Plan } from "../spec/plan/plan.ts";

const compiled = new WeakSet<Plan>();

/** Records that the compiler made a plan. Returns it. */
export function markCompiled(plan: Plan): Plan {
  compiled.add(plan);
  return plan;
}

/** Whether the compiler of this process made this object. A copy, or a plan that was read, is not. */
export function isCompiled(plan: Plan): boolean {
  return compiled.has(plan);
}
