/** The JSON Schema of a plan document: that of a plan, with lists that may contain repeats. */

import type { Repeat } from "./repeat.ts";
import { closed, type Schema, withProperties } from "./schema.ts";
import { expandedSchema } from "./schemas.ts";
import { SHORT_EXPRESSION } from "./short_trees.ts";

/** A list of the items of a list or a record, which may contain repeats. */
function repeating(of: Schema, item: (item: Schema) => Schema = (i) => i) {
  const items = item((of["items"] ?? of["additionalProperties"]) as Schema);
  const repeat = closed(
    {
      repeat: { type: "string", pattern: "^[a-z_]{1,64}$" },
      from: { type: "integer" },
      to: { type: "integer" },
      body: { type: "array", items: { type: "object" } },
    } satisfies { readonly [F in keyof Repeat]: Schema },
  );
  return { type: "array", items: { anyOf: [items, repeat] } };
}

/** Targets of `$ref`: sizes, and the statements and expressions of kernels. */
export const definitions = expandedSchema["definitions"] as {
  readonly [name: string]: Schema;
};

const port = definitions["Port"]!;
const { buffer: name } = port["properties"] as { readonly buffer: Schema };

/** Ports in the list form of a document. */
const namedPort: Schema = {
  ...withProperties(port, () => ({ name })),
  required: ["name", ...port["required"] as readonly string[]],
};

/**
 * The JSON Schema of a plan document. Objects are closed: an unknown field is an error. The contents of repeats are
 * validated after expansion.
 */
export const planSchema: Schema = {
  ...withProperties(expandedSchema, (plan) => ({
    allocations: repeating(plan["allocations"]!),
    buffers: repeating(plan["buffers"]!),
    weights: repeating(plan["weights"]!),
    programs: {
      ...plan["programs"],
      items: withProperties(
        plan["programs"]!["items"] as Schema,
        (program) => ({
          inputs: repeating(program["inputs"]!, () => namedPort),
          outputs: repeating(program["outputs"]!, () => namedPort),
          steps: repeating(program["steps"]!),
        }),
      ),
    },
  })),
  title: "Switchyard plan, version 2",
  definitions: {
    ...definitions,
    Expr: {
      anyOf: [
        { type: "string", pattern: SHORT_EXPRESSION },
        definitions["Expr"],
      ],
    },
  },
};
