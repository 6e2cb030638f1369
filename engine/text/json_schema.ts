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

/**
 * A schema with lists of `items` (draft 7) as `prefixItems`, and their `additionalItems` as `items` (draft 2020-12).
 * Local references are to the new keywords.
 */
export function withPrefixItems(schema: object): object {
  return rewritten(schema, (keywords) => {
    const { items, additionalItems, ...others } = keywords;
    const { $ref } = keywords;
    const to = isLocal($ref) ? { $ref: withPrefixNames($ref, schema) } : {};
    if (!Array.isArray(items)) return { ...keywords, ...to };
    return {
      ...others,
      ...to,
      prefixItems: items,
      ...additionalItems === undefined ? {} : { items: additionalItems },
    };
  }) as object;
}

/** A schema for use at the pointer `root` of a larger one: its local references start there. */
export function withRoot(schema: object, root: string): object {
  return rewritten(schema, (keywords) => {
    const { $ref } = keywords;
    return isLocal($ref)
      ? { ...keywords, $ref: root + $ref.slice(1) }
      : keywords;
  }) as object;
}

/** Whether a reference is a JSON Pointer to the same schema. */
function isLocal($ref: unknown): $ref is string {
  return typeof $ref === "string" && /^#(\/|$)/.test($ref);
}

/** A reference to a place in a schema of draft 7, as one to the same place after `withPrefixItems`. */
function withPrefixNames($ref: string, schema: object): string {
  let place: unknown = schema;
  let isSchema = true;
  const names = $ref.split("/").slice(1).map((name) => {
    const parent = Array.isArray(place) || isObject(place) ? place : [];
    const hasList = isSchema && "items" in parent &&
      Array.isArray(parent.items);
    place = (parent as Keywords)[unescaped(name)];
    // Names of properties are no keywords.
    isSchema = !isSchema || !NAMED.has(name);
    return hasList && Object.hasOwn(RENAMED, name) ? RENAMED[name] : name;
  });
  return ["#", ...names].join("/");
}

/** Keywords of a schema with a list of items, from draft 7 to draft 2020-12. */
const RENAMED: { readonly [keyword: string]: string } = {
  items: "prefixItems",
  additionalItems: "items",
};

/** A name in a reference, without the escapes of URIs and JSON Pointers. */
function unescaped(name: string): string {
  let decoded = name;
  try {
    decoded = decodeURIComponent(name);
  } catch {
    // The compiler of grammars rejects the reference.
  }
  return decoded.replaceAll("~1", "/").replaceAll("~0", "~");
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
