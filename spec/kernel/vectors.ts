/** Vector loads: the bindings with them, and their replacement by scalar loads. */

import { invariant } from "../errors.ts";
import { add, binary, let_, load, local, mul, u32 } from "./build.ts";
import { replaceIn } from "./replace.ts";
import type { Expr, Kernel, LoadsStmt, Stmt } from "./tree.ts";
import {
  bodiesOf,
  mapStatement,
  walkExpressions,
  walkStatements,
} from "./walk.ts";

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
  return replaceLoads(body, scalarLoads);
}

function replaceLoads(
  body: readonly Stmt[],
  by: (s: LoadsStmt) => readonly Stmt[],
): readonly Stmt[] {
  return body.flatMap((s): readonly Stmt[] =>
    s.op === "loads"
      ? by(s)
      : bodiesOf(s).length > 0
      ? [mapStatement(s, { body: (inner) => replaceLoads(inner, by) })]
      : [s]
  );
}

/** The number of elements of each load from a binding. */
export type LoadWidths = ReadonlyMap<string, number>;

/** The width of loads from a binding that has loads of several widths. */
const MIXED = 0;

const widthsOfLoads = new WeakMap<readonly Stmt[], LoadWidths>();

/** The bindings that statements load from, and the widths of these loads. Cached by body. */
export function loadWidths(body: readonly Stmt[]): LoadWidths {
  const known = widthsOfLoads.get(body) ?? findLoadWidths(body);
  widthsOfLoads.set(body, known);
  return known;
}

function findLoadWidths(body: readonly Stmt[]): LoadWidths {
  const widths = new Map<string, number>();
  walkStatements(body, (s) => {
    if (s.op === "loads") addLoadWidth(widths, s.binding, s.names.length);
  });
  walkExpressions(body, (e) => {
    if (e.op === "load") addLoadWidth(widths, e.binding, 1);
  });
  return widths;
}

/** Adds loads of a width from a binding. */
export function addLoadWidth(
  widths: Map<string, number>,
  binding: string,
  width: number,
): void {
  const known = widths.get(binding) ?? width;
  widths.set(binding, known === width ? width : MIXED);
}

/** Statements with scalar loads from bindings that have loads of several widths. */
export function withOneWidth(
  body: readonly Stmt[],
  widths: LoadWidths,
): readonly Stmt[] {
  if (![...widths.values()].includes(MIXED)) return body;
  return replaceLoads(body, (s) => {
    if (widths.get(s.binding) !== MIXED) return [s];
    const at = `at_${s.names[0]!}`;
    return [
      let_(at, mul(s.index, u32(s.names.length))),
      ...s.names.map((name, i) =>
        let_(name, load(s.binding, add(local(at, "u32"), u32(i)), s.type))
      ),
    ];
  });
}

/** Statements with loads of words in place of loads of bytes, for targets that load only aligned words. */
export function withWordLoads(body: readonly Stmt[]): readonly Stmt[] {
  return replaceIn(body, { load: wordLoads });
}

/** Four bytes, from two words. */
export function wordLoads(e: Extract<Expr, { op: "load" }>): Expr | undefined {
  if (!e.bytes) return undefined;
  const at = binary("shr", e.index, u32(2));
  const shift = binary("shl", binary("and", e.index, u32(3)), u32(3));
  const word = (index: Expr) => load(e.binding, index, "u32");
  // A shift by 32 is one by 0, so the upper word is shifted twice.
  const upper = binary("shl", word(add(at, u32(1))), u32(1));
  return binary(
    "or",
    binary("shr", word(at), shift),
    binary("shl", upper, binary("xor", shift, u32(31))),
  );
}

const widthsByBody = new WeakMap<Kernel["body"], ReadonlyMap<string, number>>();

/** The width of vector loads from each binding that has them. Cached by body. */
export function vectorWidths({ body }: Kernel): ReadonlyMap<string, number> {
  const known = widthsByBody.get(body) ?? widthsIn(body);
  widthsByBody.set(body, known);
  return known;
}

function widthsIn(body: Kernel["body"]): ReadonlyMap<string, number> {
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
