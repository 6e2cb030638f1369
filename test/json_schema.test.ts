// Schemas of response formats and of tools, as the grammar compiler gets them.

import t from "tap";
import { schemaGrammar } from "../engine/mod.ts";
import { grammarOf } from "../engine/server/structured.ts";

type Schema = { readonly [keyword: string]: unknown };

/** Schemas of draft 7, and the same in draft 2020-12. */
const CASES: readonly (readonly [name: string, given: Schema, want: object])[] =
  [
    [
      "a list of items",
      { items: [{ const: 1 }, { items: [{}] }] },
      { prefixItems: [{ const: 1 }, { prefixItems: [{}] }] },
    ],
    [
      "a list of items and further ones",
      { items: [{}], additionalItems: { items: [{}] } },
      { prefixItems: [{}], items: { prefixItems: [{}] } },
    ],
    ["items of one schema", { items: { items: [{}] } }, {
      items: { prefixItems: [{}] },
    }],
    ...["properties", "$defs", "dependencies"].map((keyword) =>
      [
        `${keyword} with the names of keywords`,
        {
          [keyword]: {
            items: ["a"],
            default: { items: [{}] },
            const: { items: [{}] },
            enum: { items: [{}] },
          },
        },
        {
          [keyword]: {
            items: ["a"],
            default: { prefixItems: [{}] },
            const: { prefixItems: [{}] },
            enum: { prefixItems: [{}] },
          },
        },
      ] as const
    ),
    ...["default", "const", "enum", "examples"].map((keyword) =>
      [
        `values of ${keyword}`,
        { [keyword]: [{ items: [{}] }] },
        { [keyword]: [{ items: [{}] }] },
      ] as const
    ),
  ];

/** The schema that the grammar compiler gets for a demanded call of a tool with these parameters. */
async function toolSchema(parameters: Schema): Promise<unknown> {
  const checked: unknown[] = [];
  const source = await grammarOf(
    {
      tools: [{ type: "function", function: { name: "fell", parameters } }],
      tool_choice: "required",
    },
    {
      openGrammars: () =>
        Promise.resolve({
          check: (source) => {
            checked.push(source);
            return Promise.resolve();
          },
          start: () => Promise.reject(new Error("not started")),
          close: () => {},
        }),
    },
  );
  if (source?.kind !== "schema") throw new Error("no schema");
  t.strictSame(checked, [source]);
  return (source.schema as { $defs: { [name: string]: unknown } }).$defs[
    "tool0"
  ];
}

for (const [name, given, want] of CASES) {
  t.test(name, async (t) => {
    t.strictSame(schemaGrammar(given), { kind: "schema", schema: want });
    t.strictSame(await toolSchema(given), want);
  });
}

t.test("references to items are to the rewritten ones", (t) => {
  const given = {
    properties: {
      "a/b%": { items: [{ items: [{}] }], additionalItems: { const: 1 } },
      items: { items: [{}] },
      plain: { items: { $ref: "#/properties/plain/items" } },
    },
    items: [{}, { $ref: "#/items/0" }],
    anyOf: [
      { $ref: "#/properties/a~1b%25/items/0/items/0" },
      { $ref: "#/properties/a~1b%25/additionalItems" },
      { $ref: "#/properties/items/items/0" },
      { $ref: "#/anyOf/0" },
      { $ref: "#/properties/missing/items/0" },
      { $ref: "#/%zz/items/0" },
      { $ref: "https://a.example#/items/0" },
    ],
  };
  t.match(schemaGrammar(given), {
    schema: {
      properties: { plain: { items: { $ref: "#/properties/plain/items" } } },
      prefixItems: [{}, { $ref: "#/prefixItems/0" }],
      anyOf: [
        { $ref: "#/properties/a~1b%25/prefixItems/0/prefixItems/0" },
        { $ref: "#/properties/a~1b%25/items" },
        { $ref: "#/properties/items/prefixItems/0" },
        { $ref: "#/anyOf/0" },
        { $ref: "#/properties/missing/items/0" },
        { $ref: "#/%zz/items/0" },
        { $ref: "https://a.example#/items/0" },
      ],
    },
  });
  t.end();
});

t.test("references of a tool's parameters start at its schema", async (t) => {
  t.strictSame(
    await toolSchema({
      properties: { $ref: { $ref: "#/$defs/a" }, b: { $ref: "#" } },
      const: { $ref: "#" },
      $defs: { a: { $ref: "https://a.example#/b" } },
    }),
    {
      properties: {
        $ref: { $ref: "#/$defs/tool0/$defs/a" },
        b: { $ref: "#/$defs/tool0" },
      },
      const: { $ref: "#" },
      $defs: { a: { $ref: "https://a.example#/b" } },
    },
  );
});
