/** Vector loads: the bindings with them, and their replacement by scalar loads. */

import { invariant } from "../errors.ts";
import { add, let_, load, mul, u32 } from "./build.ts";
import type { Kernel, LoadsStmt, Stmt } from "./tree.ts";
import { bodiesOf, mapStatement, walkStatements } from "./walk.ts";

/** One load for each element. */
export function scalarLoads(s: LoadsStmt): Stmt[] {
  const { names, type, binding, index } = s;
  const first = mul(index, u32(names.length));
  return names.map((name, i) =>
    let_(name, load(binding, add(first, u32(i)), type))
  );
}

/** Statements with one load per element, for targets without vectors. */
export function withScalarLoads(body: readonly Stmt[]): readonly Stmt[] {
  return body.flatMap((s): readonly Stmt[] =>
    s.op === "loads"
      ? scalarLoads(s)
      : bodiesOf(s).length > 0
      ? [mapStatement(s, { body: withScalarLoads })]
      : [s]
  );
}

/** The width of vector loads from each binding that has them. */
export function vectorWidths({ body }: Kernel): Map<string, number> {
  const widths = new Map<string, number>();
  walkStatements(body, (s) => {
    if (s.op !== "loads") return;
    const { length } = s.names;
    const known = widths.get(s.binding) ?? length;
    invariant(known === length, `'${s.binding}' has vectors of two widths`);
    widths.set(s.binding, length);
  });
  return widths;
}
