/** Plans compiled in this process. They run without being compiled again; see spec/security.md. */

import type { Plan } from "../spec/plan/plan.ts";

const compiled = new WeakSet<Plan>();

/** Records that the compiler created a plan. Returns the plan. */
export function markCompiled(plan: Plan): Plan {
  compiled.add(plan);
  return plan;
}

/** Whether the compiler of this process created this object. Copies and parsed plans are not recorded. */
export function isCompiled(plan: Plan): boolean {
  return compiled.has(plan);
}
