/**
 * The base layer: plans, their text and JSON forms, verification, and predictions.
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
export * from "./plan/plan.ts";
export * from "./shown.ts";
export * from "./size.ts";
export * from "./plan/bytes.ts";
export * from "./machine.ts";
export { parsePlan, schemaProblem, stringifyPlan } from "./document/json.ts";
export type { SchemaProblem } from "./document/json.ts";
export { planSchema } from "./document/plan_schema.ts";
export type { Schema } from "./document/schema.ts";
export type * from "./values.ts";
export { formatPlan } from "./text/plan.ts";
export type { FormatPlanOptions } from "./text/plan.ts";
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
export { machineSchema, planSummarySchema } from "./document/schemas.ts";
export type { Problem } from "./problems.ts";
export { summarizePlan } from "./text/summary.ts";
export {
  assertLegal,
  RULE_NAMES,
  verifyPlan,
  verifyPlanText,
} from "./verify/mod.ts";
export type {
  LegalPlan,
  RuleName,
  VerifyError,
  VerifyPlanOptions,
} from "./verify/mod.ts";
