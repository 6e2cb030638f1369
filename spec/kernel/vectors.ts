/** Loads of several elements at once: which bindings have them, and the same element by element. */

import { invariant } from "../errors.ts";
import { add, let_, load, mul, u32 } from "./build.ts";
import type { Kernel, LoadsStmt, Stmt } from "./tree.ts";

/** One load for each element. */
export function scalarLoads(s: LoadsStmt): Stmt[] {
  const { names, type, binding, index } = s;
  const first = mul(index, u32(names.length));
  return names.map((name, i) =>
    let_(name, load(binding, add(first, u32(i)), type))
  );
}

/** Statements with one load for each element, for what has no vectors. */
export function withScalarLoads(body: readonly Stmt[]): readonly Stmt[] {
  return body.flatMap((s): readonly Stmt[] => {
    switch (s.op) {
      case "loads":
        return scalarLoads(s);
      case "for":
        return [{ ...s, body: withScalarLoads(s.body) }];
      case "if":
        return [{
          ...s,
          then: withScalarLoads(s.then),
          ...s.else ? { else: withScalarLoads(s.else) } : {},
        }];
      default:
        return [s];
    }
  });
}

/** How many elements are loaded at once from each binding of which several are. */
export function vectorWidths({ body }: Kernel): Map<string, number> {
  const widths = new Map<string, number>();
  const visit = (list: readonly Stmt[]): void => {
    for (const s of list) {
      if (s.op === "for") visit(s.body);
      else if (s.op === "if") [s.then, s.else ?? []].forEach(visit);
      else if (s.op === "loads") {
        const { length } = s.names;
        const known = widths.get(s.binding) ?? length;
        invariant(known === length, `'${s.binding}' has vectors of two widths`);
        widths.set(s.binding, length);
      }
    }
  };
  visit(body);
  return widths;
}
