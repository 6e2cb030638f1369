/** The JSON Schema of a plan document: that of a plan, with lists in which what repeats is written once. */

import { closed, type Schema } from "./schema.ts";
import { expandedSchema } from "./schemas.ts";
import { SHORT_EXPRESSION } from "./short_trees.ts";

/** A schema with others at some of its properties. */
function withProperties(
  schema: Schema,
  properties: (known: { readonly [name: string]: Schema }) => Schema,
): Schema {
  const known = schema["properties"] as { readonly [name: string]: Schema };
  return { ...schema, properties: { ...known, ...properties(known) } };
}

/** Lists of the items of a list or a record, in which what repeats is written once. */
function repeating(of: Schema, item: (item: Schema) => Schema = (i) => i) {
  const items = item((of["items"] ?? of["additionalProperties"]) as Schema);
  const repeat = closed({
    repeat: { type: "string", pattern: "^[a-z_]{1,64}$" },
    from: { type: "integer" },
    to: { type: "integer" },
    body: { type: "array", items: { type: "object" } },
  });
  return { type: "array", items: { anyOf: [items, repeat] } };
}

/** What `$ref` finds: sizes, and the statements and expressions of kernels. */
export const definitions = expandedSchema["definitions"] as {
  readonly [name: string]: Schema;
};

const port = definitions["Port"]!;
const { buffer: name } = port["properties"] as { readonly buffer: Schema };

/** Ports as a document lists them. */
const namedPort: Schema = {
  ...withProperties(port, () => ({ name })),
  required: ["name", ...port["required"] as readonly string[]],
};

/**
 * The JSON Schema of a plan document. Objects are closed: an unknown field is an error. What stands in a repeat is held
 * against the schema when it is expanded.
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
