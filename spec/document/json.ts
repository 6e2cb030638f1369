/** The JSON form of a plan. The reader treats the text as untrusted: it parses and then validates. */

import { PlanError } from "../errors.ts";
import type { Plan } from "../plan/plan.ts";
import { documentOf, expandDocument } from "./document.ts";
import { MAX_DEPTH, pathOfDeep } from "../parse_json.ts";
import { isRepeat } from "./repeat.ts";
import { planErrors } from "./plan_validator.ts";
import { deepestError, errorText } from "./schema_error.ts";

/** Placeholders for numbers that JSON.stringify would lose, and their text. */
const LOST_NUMBERS: { readonly [mark: string]: string } = {
  "\u0000+": "1e999",
  "\u0000-": "-1e999",
  "\u0000z": "-0",
};

function keepNumber(_key: string, value: unknown): unknown {
  if (typeof value !== "number") return value;
  if (value === Infinity) return "\u0000+";
  if (value === -Infinity) return "\u0000-";
  return Object.is(value, -0) ? "\u0000z" : value;
}

/**
 * Number of levels of a field that are written over several lines; deeper values are on one line, so that documents can
 * be diffed.
 */
const INDENTED_DEPTH: { readonly [field: string]: number } = {
  axes: 1,
  allocations: 1,
  buffers: 1,
  kernels: 2,
  weights: 1,
  programs: 4,
  compiledFrom: 2,
};

function indented(value: unknown, given: number, indent: string): string {
  // Each item of a repeat has a separate line.
  const levels = isRepeat(value) ? 2 : given;
  if (levels === 0 || typeof value !== "object" || value === null) {
    return JSON.stringify(value, keepNumber);
  }
  const isList = Array.isArray(value);
  const inner = indent + " ";
  const items = Object.entries(value)
    .filter(([, item]) => item !== undefined)
    .map(([key, item]) =>
      inner + (isList ? "" : `${JSON.stringify(key)}: `) +
      indented(item, levels - 1, inner)
    );
  const [open, close] = isList ? "[]" : "{}";
  return items.length === 0
    ? `${open}${close}`
    : `${open}\n${items.join(",\n")}\n${indent}${close}`;
}

/** The JSON text of a plan. Infinities are written as `1e999`, which every JSON reader parses as infinity. */
export function stringifyPlan(plan: Plan): string {
  const fields = Object.entries(documentOf(plan)).map(([key, value]) =>
    ` ${JSON.stringify(key)}: ${indented(value, INDENTED_DEPTH[key] ?? 0, " ")}`
  );
  const json = `{\n${fields.join(",\n")}\n}\n`;
  return json.replace(
    /"\\u0000([+\-z])"/g,
    (_, mark: string) => LOST_NUMBERS["\u0000" + mark]!,
  );
}

/** The first schema error of a document. */
export interface SchemaProblem {
  /** JSON pointer into the document. */
  readonly path: string;
  /** `main[12]` if the error is in a step. */
  readonly step: string | null;
  readonly message: string;
}

/** The first schema error of a plan or possible plan. Undefined if there is none. */
export function schemaProblem(document: unknown): SchemaProblem | undefined {
  const deep = pathOfDeep(document);
  if (deep !== undefined) {
    return problemAt(document, deep, `is nested deeper than ${MAX_DEPTH}`);
  }
  const error = deepestError(planErrors(document));
  return error && problemAt(document, error.path, error.state);
}

function problemAt(
  document: unknown,
  path: string,
  state: string,
): SchemaProblem {
  const step = stepAt(document, path);
  return {
    path,
    step,
    message: `Cannot read the plan: ${step ? `${step} at ` : ""}${
      errorText({ path, state })
    }. Compile it again`,
  };
}

/** `main[12]` for a path into step 12 of the program main. */
function stepAt(document: unknown, path: string): string | null {
  const match = /^\/programs\/(\d+)\/steps\/(\d+)/.exec(path);
  if (!match) return null;
  const program = (document as { programs: { name?: unknown }[] })
    .programs[Number(match[1])];
  const name = program && typeof program.name === "string"
    ? program.name
    : `programs[${match[1]}]`;
  return `${name}[${match[2]}]`;
}

/** The position of a JSON syntax error, in words. */
function describeSyntax(text: string, error: unknown): string {
  const reason = error instanceof Error ? error.message : String(error);
  const at = /position (\d+)/.exec(reason);
  const ends = /end of JSON|Unterminated/.test(reason) ||
    (at !== null && Number(at[1]) >= text.length);
  const position = ends ? text.length : at ? Number(at[1]) : 0;
  const before = text.slice(0, position).split("\n");
  const location = `line ${before.length} column ${before.at(-1)!.length + 1}`;
  if (ends) {
    return `the JSON ends too early, at ${location}. Write the file again`;
  }
  const where = at ? `, at ${location}` : "";
  return `it is not JSON${where}. Give a document that 'switchyard plan --out' wrote`;
}

/** A plan, or the error of the document. */
export type ReadPlan =
  | { readonly plan: Plan; readonly problem?: undefined }
  | { readonly plan?: undefined; readonly problem: SchemaProblem };

/** Expands a parsed document and validates it. */
export function readDocument(document: unknown): ReadPlan {
  const version = typeof document === "object" && document !== null
    ? (document as { version?: unknown }).version
    : undefined;
  const refused = (message: string): ReadPlan => ({
    problem: { path: "", step: null, message },
  });
  if (version === undefined) {
    return refused(
      "Cannot read the plan: it has no version. Give a document that 'switchyard plan --out' wrote",
    );
  }
  if (typeof version === "number" && version !== 2) {
    return refused(
      `Cannot read the plan: it has version ${version}, and this program reads version 2. Compile the model again`,
    );
  }
  const deep = pathOfDeep(document);
  if (deep !== undefined) {
    return {
      problem: problemAt(document, deep, `is nested deeper than ${MAX_DEPTH}`),
    };
  }
  let plan: unknown;
  try {
    plan = expandDocument(document);
  } catch (error) {
    if (!(error instanceof PlanError)) throw error;
    return refused(error.message);
  }
  const problem = schemaProblem(plan);
  return problem ? { problem } : { plan: plan as Plan };
}

/** Parses the text of a document. Throws a PlanError with the position of a syntax error. */
export function parseDocument(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new PlanError(`Cannot read the plan: ${describeSyntax(text, error)}`);
  }
}

/** Parses and validates a plan document. Throws a PlanError with the position. */
export function parsePlan(text: string): Plan {
  const { plan, problem } = readDocument(parseDocument(text));
  if (problem) throw new PlanError(problem.message);
  return plan;
}
