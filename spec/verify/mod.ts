/**
 * The verifier: checks whether a plan is legal. It is independent of the compiler and trusts nothing in the plan. The
 * table of rules below defines legality; `plan.md` describes each rule. Whether the plan computes its model is checked
 * elsewhere.
 */

import { PlanError } from "../errors.ts";
import {
  parseDocument,
  readDocument,
  schemaProblem,
} from "../document/json.ts";
import type { Plan } from "../plan/plan.ts";
import { checkAxes, checkPlacement, checkPorts } from "./axes.ts";
import { checkGroups, checkShapes } from "./collectives.ts";
import { checkFlight, checkHandles } from "./flight.ts";
import { checkAliasing } from "./dataflow.ts";
import {
  type Check,
  collectFacts,
  locationOf,
  type Report,
} from "../plan/facts.ts";
import {
  checkBarriers,
  checkBindings,
  checkCopies,
  checkTrees,
  checkWork,
} from "./launch.ts";
import {
  checkBytes,
  checkContents,
  checkLimits,
  checkPeak,
  checkStaging,
} from "./memory.ts";
import { checkCapacity } from "./capacity.ts";
import {
  checkParts,
  checkPermutation,
  checkRegroup,
  checkReturns,
  checkRoutings,
  checkTransposed,
} from "./routing.ts";
import { checkChunks } from "./returns.ts";
import { checkReferences } from "./references.ts";
import {
  checkMesh,
  checkNumerics,
  checkRanks,
  type StructureCheck,
} from "./structure.ts";
import { checkLengths } from "./lengths.ts";
import { checkOverlap, checkUsage } from "./overlap.ts";
import { checkStages } from "./stages.ts";
import { checkUnreduced } from "./unreduced.ts";
import { checkWeights } from "./weights.ts";
import { checkRounds } from "./rounds.ts";
import { checkOnce, checkReads, checkUpdates, checkWrites } from "./writes.ts";

/** Rules that the others depend on. If one fails, the others are skipped. */
const STRUCTURE = {
  ranks: checkRanks,
  references: checkReferences,
  mesh: checkMesh,
  numerics: checkNumerics,
  handles: checkHandles,
} as const satisfies { readonly [rule: string]: StructureCheck };

/** The rules of a legal plan. */
const RULES = {
  placement: checkPlacement,
  axes: checkAxes,
  ports: checkPorts,
  bytes: checkBytes,
  peak: checkPeak,
  staging: checkStaging,
  limits: checkLimits,
  contents: checkContents,
  weights: checkWeights,
  tree: checkTrees,
  barriers: checkBarriers,
  bindings: checkBindings,
  work: checkWork,
  copies: checkCopies,
  aliasing: checkAliasing,
  stages: checkStages,
  reads: checkReads,
  writes: checkWrites,
  once: checkOnce,
  updates: checkUpdates,
  overlap: checkOverlap,
  lengths: checkLengths,
  usage: checkUsage,
  unreduced: checkUnreduced,
  groups: checkGroups,
  shapes: checkShapes,
  flight: checkFlight,
  parts: checkParts,
  owned: checkRoutings,
  transposed: checkTransposed,
  chunks: checkChunks,
  permutation: checkPermutation,
  rounds: checkRounds,
  regroup: checkRegroup,
  returns: checkReturns,
  capacity: checkCapacity,
} as const satisfies { readonly [rule: string]: Check };

/** The name of a rule. `json`: the text is not JSON; `schema`: the document does not fit the schema. */
export type RuleName =
  | "json"
  | "schema"
  | keyof typeof STRUCTURE
  | keyof typeof RULES;

/** The rules in order. */
export const RULE_NAMES = [
  "json",
  "schema",
  ...Object.keys(STRUCTURE),
  ...Object.keys(RULES),
] as readonly RuleName[];

/** A violation in a plan. */
export interface VerifyError {
  /** `main[12]`, if the error is in a step. */
  readonly step: string | null;
  readonly rule: RuleName;
  readonly message: string;
}

declare const legal: unique symbol;

/** A plan without violations, as returned by `assertLegal`. Only such plans are run. */
export type LegalPlan = Plan & { readonly [legal]: true };

/** Options of `verifyPlan`. */
export interface VerifyPlanOptions {
  /** Whether the plan comes from `parsePlan` or the compiler and thus fits the schema. Default: false. */
  readonly fitsSchema?: boolean;
}

/** Maximum number of listed errors per rule. */
const MAX_ERRORS = 20;

/** All violations in a plan; empty if it may be run. Never throws, for any argument. */
export function verifyPlan(
  plan: Plan,
  options: VerifyPlanOptions = {},
): VerifyError[] {
  if (!options.fitsSchema) {
    const problem = schemaProblem(plan);
    if (problem) {
      const { step, message } = problem;
      return [{ step, rule: "schema", message }];
    }
  }
  const errors: VerifyError[] = [];
  for (const [rule, check] of Object.entries(STRUCTURE)) {
    check(plan, reporter(errors, rule as RuleName));
  }
  if (errors.length > 0) return errors;
  const facts = collectFacts(plan);
  for (const [rule, check] of Object.entries(RULES)) {
    check(facts, reporter(errors, rule as RuleName));
  }
  return errors;
}

function reporter(errors: VerifyError[], rule: RuleName): Report {
  let reported = 0;
  return (cannot, because, at) => {
    if (++reported > MAX_ERRORS) return;
    const where = at ? ` in ${locationOf(at)}` : "";
    errors.push({
      step: at?.name ?? null,
      rule,
      message: `Cannot ${cannot}${where}: ${because}`,
    });
  };
}

/**
 * Reads and verifies the text of a plan, of `file` if known. `plan` is undefined if it cannot be read. Never throws.
 */
export function verifyPlanText(
  text: string,
  options: { readonly file?: string } = {},
): { readonly plan: Plan | undefined; readonly errors: VerifyError[] } {
  const what = options.file === undefined ? "the plan" : `'${options.file}'`;
  const refused = (
    message: string,
    where: Pick<VerifyError, "step" | "rule">,
  ) => ({
    plan: undefined,
    errors: [{
      ...where,
      message: message.replace(
        /^Cannot read the plan/,
        () => `Cannot read ${what}`,
      ),
    }],
  });
  let document: unknown;
  try {
    document = parseDocument(text);
  } catch (error) {
    if (!(error instanceof PlanError)) throw error;
    return refused(error.message, { step: null, rule: "json" });
  }
  const { plan, problem } = readDocument(document);
  if (problem) {
    return refused(problem.message, { step: problem.step, rule: "schema" });
  }
  return { plan, errors: verifyPlan(plan, { fitsSchema: true }) };
}

/** Throws a PlanError with the violations, if there are any. */
export function assertLegal(
  plan: Plan,
  options: VerifyPlanOptions = {},
): asserts plan is LegalPlan {
  const errors = verifyPlan(plan, options);
  if (errors.length === 0) return;
  const [first] = errors;
  const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
  throw new PlanError(`${first!.message}${more}`);
}
