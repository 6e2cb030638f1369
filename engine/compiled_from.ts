/**
 * Saved plans include their source. A process that runs one compiles the source again and compares. An equal plan has
 * the properties of every compiled plan: each launch writes each element of its result exactly once.
 */

import {
  compileDocument,
  type CompileOptions,
  type DocumentTraining,
  type Model,
  modelDocument,
} from "../compiler/mod.ts";
import { markCompiled } from "../compiler/compiled.ts";
import { PlanError } from "../spec/errors.ts";
import { assertLegal, type LegalPlan } from "../spec/mod.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { isSame } from "../spec/same.ts";
import { shown } from "../spec/shown.ts";
import { Sandbox, UntrustedError } from "./untrusted/sandbox.ts";

/** Compiles a model to a plan that includes its source and can be saved. */
export async function compileDocumented(
  model: Model,
  how: {
    readonly options: CompileOptions;
    readonly training?: DocumentTraining;
  },
): Promise<LegalPlan> {
  const compiledFrom = { ...await modelDocument(model, how) };
  const plan = markCompiled({
    ...compileDocument(compiledFrom),
    compiledFrom,
  });
  assertLegal(plan, { fitsSchema: true });
  return plan;
}

const REMEDY =
  "Compile the model again, or run its kernels without guaranteed results (--allow-kernels)";

/** Memory limit for compiling the model of a plan, in MiB. */
const MEMORY = 4096;

/** CPU time limit for compiling the model of a plan: seconds, plus one second per this many steps. */
const SECONDS = 10, STEPS_A_SECOND = 100;

/** Limits for compiling the model of a plan. */
export interface CompileBounds {
  /** Seconds of CPU time. Default: 10, plus 1 per 100 steps of the plan. */
  readonly seconds?: number;
  /** MiB. Default: 4096. */
  readonly memory?: number;
}

/**
 * Throws PlanError unless a plan equals the compiled model in it: its kernels, launches, bindings and offsets. The
 * model is untrusted: it is compiled in a sandbox with limits of time and memory.
 */
export async function assertCompiled(
  plan: Plan,
  bounds: CompileBounds = {},
): Promise<void> {
  const steps = plan.programs.reduce((n, { steps }) => n + steps.length, 0);
  const { seconds = SECONDS + Math.floor(steps / STEPS_A_SECOND) } = bounds;
  const sandbox = new Sandbox({ memory: bounds.memory ?? MEMORY });
  let why: unknown;
  try {
    why = await sandbox.call("whyNotCompiled", [plan], seconds);
  } catch (error) {
    if (!(error instanceof UntrustedError)) throw error;
    why = `the model in it does not compile, ${shown(error.state)}`;
  } finally {
    sandbox.close();
  }
  if (why === undefined) return;
  throw new PlanError(`Cannot run the plan: ${why}. ${REMEDY}`);
}

/** The difference between a plan and the compiled model in it. Undefined if they are equal. */
export function whyNotCompiled(plan: Plan): string | undefined {
  const { compiledFrom, ...given } = plan;
  if (compiledFrom === undefined) {
    return "it does not say which model it was compiled from";
  }
  let again: Plan;
  try {
    again = compileDocument(compiledFrom);
  } catch (error) {
    // Any error: the document is untrusted, but the compiler assumes trusted models.
    const why = isInternal(error)
      ? "its nodes do not fit together"
      : error instanceof Error
      ? error.message
      : String(error);
    return `the model in it does not compile, ${shown(why)}`;
  }
  const different = difference(given, again);
  return different &&
    `${different} is not what the model in it compiles to`;
}

/** Whether an error is one of JavaScript, whose message says nothing of a model. */
function isInternal(error: unknown): boolean {
  return [TypeError, RangeError, ReferenceError].some((known) =>
    error instanceof known
  );
}

/** The first differing part of two plans: a kernel, a step, or a field. */
function difference(given: Plan, wanted: Plan): string | undefined {
  for (const [name, kernel] of Object.entries(given.kernels)) {
    if (!isSame(kernel, wanted.kernels[name])) return `kernel '${shown(name)}'`;
  }
  for (const [p, { name, steps }] of given.programs.entries()) {
    const others = wanted.programs[p]?.steps ?? [];
    const at = steps.findIndex((step, i) => !isSame(step, others[i]));
    if (at >= 0) return `step ${shown(name)}[${at}]`;
  }
  const fields = new Set([...Object.keys(given), ...Object.keys(wanted)]);
  for (const field of fields as Set<keyof Plan>) {
    if (!isSame(given[field], wanted[field])) return `'${field}'`;
  }
  return undefined;
}
