/**
 * The ground floor: what a plan is, its text and JSON forms, what makes it legal, and what it predicts.
 *
 * ```ts
 * import { formatPlan, verifyPlanText } from "switchyard-moe/spec";
 *
 * const { plan, errors } = verifyPlanText("{}");
 * console.log(plan ? formatPlan(plan) : errors[0].message);
 * ```
 */

export * from "./dtype.ts";
export * from "./errors.ts";
export * from "./kernel/mod.ts";
export * from "./layout.ts";
export * from "./limits.ts";
export { blockSizes, coordinates, groupSizeOf, rankCount } from "./mesh.ts";
export type { Mesh, MeshAxis } from "./mesh.ts";
export * from "./numerics.ts";
export * from "./plan.ts";
export * from "./shown.ts";
export * from "./size.ts";
export * from "./bytes.ts";
export * from "./machine.ts";
export * from "./machine_schema.ts";
export { parsePlan, schemaProblem, stringifyPlan } from "./json.ts";
export type { SchemaProblem } from "./json.ts";
export { planSchema } from "./schema.ts";
export type { Schema } from "./schema.ts";
export { formatPlan } from "./text.ts";
export type { FormatPlanOptions } from "./text.ts";
export {
  type ExchangeSummary,
  type LayerClass,
  type LayerSeconds,
  type ModelSummary,
  type Phase,
  type PlanSummary,
  type PredictedStep,
  type RankBytes,
  type RankClass,
} from "./plan_summary.ts";
export { planSummarySchema } from "./plan_summary_schema.ts";
export type { Problem } from "./problems.ts";
export { summarizePlan } from "./summary.ts";
export {
  assertLegal,
  RULE_NAMES,
  verifyPlan,
  verifyPlanText,
} from "./verify.ts";
export type {
  LegalPlan,
  RuleName,
  VerifyError,
  VerifyPlanOptions,
} from "./verify.ts";
