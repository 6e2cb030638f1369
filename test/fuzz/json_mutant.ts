/** Mutants of a JSON document: replaced, removed or duplicated values. */

import fc from "fast-check";

/** Change of one value. Numbers are taken modulo the number of choices. */
export interface JsonChange {
  readonly kind: "replace" | "remove" | "double";
  /** Index of the value, in document order. */
  readonly at: number;
  readonly value: unknown;
}

const VALUES: readonly unknown[] = [
  ...[null, true, false, "", "x", "__proto__", "constructor", [], {}, [[]]],
  ...[-1, 0, 1, 2, 3, 7, 64, 0.5, 1e6, 1e9, 2 ** 31, 2 ** 32, 2 ** 53, 1e308],
  ...[[0, 0], [1, 2, 3], { a: 1 }, "(a+)+$", "\u001b[2J", "f32", "default"],
];

const change: fc.Arbitrary<JsonChange> = fc.record({
  kind: fc.constantFrom("replace", "replace", "replace", "remove", "double"),
  at: fc.nat({ max: 1 << 20 }),
  value: fc.constantFrom(...VALUES),
});

/** One to three changes. */
export const jsonChanges: fc.Arbitrary<readonly JsonChange[]> = fc.array(
  change,
  { minLength: 1, maxLength: 3 },
);

interface Target {
  readonly parent: { [key: string]: unknown };
  readonly key: string;
}

function targetsOf(value: unknown, into: Target[]): Target[] {
  if (typeof value !== "object" || value === null) return into;
  const parent = value as Target["parent"];
  for (const key of Object.keys(parent)) {
    into.push({ parent, key });
    targetsOf(parent[key], into);
  }
  return into;
}

/** Applies changes to a copy of a document. */
export function mutateJson(
  document: object,
  changes: readonly JsonChange[],
): object {
  const mutant = structuredClone(document);
  for (const { kind, at, value } of changes) {
    const targets = targetsOf(mutant, []);
    if (targets.length === 0) return mutant;
    const { parent, key } = targets[at % targets.length]!;
    if (kind === "replace") parent[key] = structuredClone(value);
    else if (kind === "double") {
      const copy = structuredClone(parent[key]);
      if (Array.isArray(parent)) parent.splice(Number(key), 0, copy);
      else parent[`${key}2`] = copy;
    } else if (Array.isArray(parent)) parent.splice(Number(key), 1);
    else delete parent[key];
  }
  return mutant;
}
