/** Rewrites JSON Schemas of requests and files. */

/** A schema as it is given: keywords with values that are not checked. */
interface Keywords {
  readonly [keyword: string]: unknown;
}

/** Keywords with values instead of schemas. */
const VALUES: ReadonlySet<string> = new Set([
  "const",
  "enum",
  "default",
  "examples",
]);

/** Keywords with schemas by name. */
const NAMED: ReadonlySet<string> = new Set([
  "properties",
  "patternProperties",
  "$defs",
  "definitions",
  "dependencies",
  "dependentSchemas",
]);

/** A schema with lists of `items` (draft 7) as `prefixItems`, and their `additionalItems` as `items` (draft 2020-12). */
export function withPrefixItems(schema: object): object {
  return rewritten(schema, (keywords) => {
    const { items, additionalItems, ...others } = keywords;
    if (!Array.isArray(items)) return keywords;
    return {
      ...others,
      prefixItems: items,
      ...additionalItems === undefined ? {} : { items: additionalItems },
    };
  }) as object;
}

/** A schema for use at the pointer `root` of a larger one: its local references start there. */
export function withRoot(schema: object, root: string): object {
  return rewritten(schema, (keywords) => {
    const { $ref } = keywords;
    return typeof $ref === "string" && /^#(\/|$)/.test($ref)
      ? { ...keywords, $ref: root + $ref.slice(1) }
      : keywords;
  }) as object;
}

/** Applies `rewrite` to a schema and to the schemas in it. */
function rewritten(
  schema: unknown,
  rewrite: (keywords: Keywords) => Keywords,
): unknown {
  const each = (value: unknown) => rewritten(value, rewrite);
  if (Array.isArray(schema)) return schema.map(each);
  if (!isObject(schema)) return schema;
  return mapped(
    rewrite(schema),
    (value, keyword) =>
      VALUES.has(keyword)
        ? value
        : NAMED.has(keyword) && isObject(value)
        ? mapped(value, each)
        : each(value),
  );
}

function isObject(value: unknown): value is Keywords {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** An object with its values replaced. */
function mapped(
  object: Keywords,
  change: (value: unknown, name: string) => unknown,
): Keywords {
  return Object.fromEntries(
    Object.entries(object).map(([name, value]) => [name, change(value, name)]),
  );
}
