/** The document of a plan: the plan in JSON with repetition written once. */

import { PlanError } from "../errors.ts";
import { findRepeats } from "./find_repeats.ts";
import type { Plan, Port } from "../plan/plan.ts";
import { expandRepeats, type Json } from "./repeat.ts";
import { longTree, shortTree } from "./short_trees.ts";

type Fields = { readonly [field: string]: unknown };

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Named ports as a list, so that repetition can be found. */
function portList(ports: { readonly [name: string]: Port }): unknown {
  return once(Object.entries(ports).map(([name, port]) => ({ name, ...port })));
}

function once(list: readonly unknown[]): unknown {
  return findRepeats(list as readonly Json[]);
}

/** The document of a plan. */
export function documentOf(plan: Plan): Fields {
  return {
    ...plan,
    allocations: once(plan.allocations),
    buffers: once(Object.values(plan.buffers)),
    kernels: Object.fromEntries(
      Object.entries(plan.kernels).map(([name, kernel]) => [
        name,
        { ...kernel, tree: shortTree(kernel.tree) },
      ]),
    ),
    weights: once(plan.weights),
    programs: plan.programs.map(({ name, inputs, outputs, steps }) => ({
      name,
      inputs: portList(inputs),
      outputs: portList(outputs),
      steps: once(steps),
    })),
  };
}

/** A list with its repeats expanded; other values are unchanged. */
function expanded(list: unknown, what: string): unknown {
  return Array.isArray(list) ? expandRepeats(list as Json[], what) : list;
}

/** The items of a list by name. Throws a PlanError for a missing or repeated name. */
function byName(
  list: unknown,
  { what, keepsName }: { readonly what: string; readonly keepsName: boolean },
): unknown {
  const items = expanded(list, what);
  if (!Array.isArray(items)) return items;
  const named = new Map<string, unknown>();
  for (const item of items) {
    if (!isFields(item) || typeof item.name !== "string") {
      throw new PlanError(
        `Cannot read the plan: one of its ${what} has no name. Compile it again`,
      );
    }
    const { name, ...rest } = item;
    if (named.has(name)) {
      throw new PlanError(
        `Cannot read the plan: two ${what} are named '${
          name.slice(0, 100)
        }'. Compile it again`,
      );
    }
    named.set(name, keepsName ? item : rest);
  }
  return Object.fromEntries(named);
}

/**
 * The plan of a document, as far as its form allows; the schema rejects the rest. Throws a PlanError if repeats are too
 * long or names are not unique.
 */
export function expandDocument(document: unknown): unknown {
  if (!isFields(document)) return document;
  const { allocations, buffers, kernels, weights, programs } = document;
  const programOf = (program: unknown): unknown => {
    if (!isFields(program)) return program;
    const { inputs, outputs, steps } = program;
    return {
      ...program,
      inputs: byName(inputs, { what: "inputs", keepsName: false }),
      outputs: byName(outputs, { what: "outputs", keepsName: false }),
      steps: expanded(steps, "steps"),
    };
  };
  return {
    ...document,
    allocations: expanded(allocations, "allocations"),
    buffers: byName(buffers, { what: "buffers", keepsName: true }),
    kernels: isFields(kernels)
      ? Object.fromEntries(
        Object.entries(kernels).map(([name, kernel]) => [
          name,
          isFields(kernel) && "tree" in kernel
            ? { ...kernel, tree: longTree(kernel.tree) }
            : kernel,
        ]),
      )
      : kernels,
    weights: expanded(weights, "weights"),
    programs: Array.isArray(programs) ? programs.map(programOf) : programs,
  };
}
