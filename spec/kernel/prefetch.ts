/**
 * Loads of the next panel during the products of the current one: a loop over panels, each loaded into workgroup memory
 * and multiplied, keeps the words of the next one in variables.
 */

import { add, let_, local, min, set, u32, var_ } from "./build.ts";
import { exactJson } from "./exact_json.ts";
import { range } from "../range.ts";
import { replaceInValue } from "./replace.ts";
import type { Expr, ForStmt, LoadsStmt, MatrixStmt, Stmt } from "./tree.ts";
import {
  addLocals,
  bodiesOf,
  mapOperands,
  mapStatement,
  someNode,
  walkStatements,
} from "./walk.ts";

/** Maximum words that a loop keeps: GPUs have 255 registers per lane, most of them for sums. */
const MAX_WORDS = 48;

/** One word, or several. */
type Load = Extract<Expr, { readonly op: "load" }> | LoadsStmt;

/** A load of a panel, and the variables that keep its words. */
interface Ahead {
  readonly load: Load;
  readonly names: readonly string[];
}

/**
 * A matrix form that loads panels ahead from some bindings. Loops without constant ends, or with too many words, are
 * unchanged, and so are loads at indices that depend on other loads.
 */
export function prefetchPanels(
  form: readonly MatrixStmt[],
  bindings: ReadonlySet<string>,
): readonly MatrixStmt[] {
  let loops = 0;
  const list = (body: readonly MatrixStmt[]): readonly MatrixStmt[] =>
    body.flatMap((s): readonly MatrixStmt[] => {
      if (s.op === "for" && s.body.some(({ op }) => op === "multiply")) {
        return prefetched(s, { prefix: `ahead${loops++}`, bindings });
      }
      if (bodiesOf(s).length === 0) return [s];
      return [mapStatement(s as Stmt, {
        body: (inner) => list(inner) as readonly Stmt[],
      })];
    });
  return list(form);
}

/** Loads the words of the first panel before a loop, and those of the next panel before a product. */
function prefetched(
  loop: ForStmt<MatrixStmt>,
  { prefix, bindings }: {
    /** Of the names of variables. */
    readonly prefix: string;
    readonly bindings: ReadonlySet<string>;
  },
): readonly MatrixStmt[] {
  const last = lastOf(loop);
  if (last === undefined) return [loop];
  const isKnown = knownIndex(loop.body);
  const found = new Map<string, Ahead>();
  /** Loads whose words the next product uses first. */
  const used = new Set<Ahead>();
  let words = 0;
  const ahead = (load: Load): Ahead | undefined => {
    if (!bindings.has(load.binding) || !isKnown(load.index)) return undefined;
    const count = load.op === "loads" ? load.names.length : 1;
    const key = exactJson({ ...load, names: count });
    const known = found.get(key);
    // After the product that loads ahead, the variables have the next words.
    if (known) return used.has(known) ? known : undefined;
    const names = range(count).map((n) => `${prefix}_${words + n}`);
    words += count;
    const one = { load, names };
    found.set(key, one);
    used.add(one);
    return one;
  };
  const replaced = (e: Expr): Expr => {
    const one = e.op === "load" ? ahead(e) : undefined;
    return one ? local(one.names[0]!, e.type) : mapOperands(e, replaced);
  };
  const next = loadsAt(loop, { prefix, phase: "next" });
  const body = loop.body.flatMap((s): readonly MatrixStmt[] => {
    switch (s.op) {
      case "multiply": {
        const all = [...used];
        used.clear();
        return [...all.flatMap((one) => next(one, set)), s];
      }
      case "loads": {
        const names = ahead(s)?.names;
        return names
          ? s.names.map((name, n) => let_(name, local(names[n]!, s.type)))
          : [s];
      }
      case "let":
      case "sharedStore":
        return [mapStatement(s, { value: replaced, body: (inner) => inner })];
      default:
        return [s];
    }
  });
  if (words === 0 || words > MAX_WORDS) return [loop];
  const first = loadsAt(loop, { prefix, phase: "first" });
  return [
    let_(`${prefix}_first_${loop.name}`, loop.from),
    ...[...found.values()].flatMap((one) => first(one, var_)),
    {
      ...loop,
      body: [
        let_(
          `${prefix}_next_${loop.name}`,
          min(add(local(loop.name, "u32"), loop.step), u32(last)),
        ),
        ...body,
      ],
    },
  ];
}

/** The counter of the last of several iterations. Undefined: it is not known. */
function lastOf(
  { from, to, step }: ForStmt<MatrixStmt>,
): number | undefined {
  if (from.op !== "const" || to.op !== "const" || step.op !== "const") {
    return undefined;
  }
  const last = Number(to.value) - Number(step.value);
  const length = last - Number(from.value);
  return length > 0 && length % Number(step.value) === 0 ? last : undefined;
}

/** Whether an index follows from variables that no iteration sets, the counter, and `let`s of these. */
function knownIndex(body: readonly MatrixStmt[]): (index: Expr) => boolean {
  const unknown = new Set<string>();
  const isKnown = (e: Expr) =>
    !someNode(
      e,
      (node) =>
        node.op === "load" || node.op === "shared" ||
        node.op === "local" && unknown.has(node.name),
    );
  walkStatements(body as readonly Stmt[], (s) => {
    if (s.op === "set") unknown.add(s.name);
  });
  for (const s of body) {
    if (s.op === "loads") s.names.forEach((name) => unknown.add(name));
    if (s.op === "var") unknown.add(s.name);
    if (s.op === "let" && !isKnown(s.value)) unknown.add(s.name);
  }
  return isKnown;
}

/**
 * Statements that load words at another counter, `<prefix>_<phase>_<counter>`, and keep them. `let`s that an index uses
 * precede the first use.
 */
function loadsAt(
  { name: counter, body }: ForStmt<MatrixStmt>,
  { prefix, phase }: { readonly prefix: string; readonly phase: string },
) {
  const lets = new Map(
    body.flatMap((s) => s.op === "let" ? [[s.name, s.value] as const] : []),
  );
  const declared = new Set<string>();
  const renamed = (name: string) => `${prefix}_${phase}_${name}`;
  const at = (e: Expr) =>
    replaceInValue(e, {
      variable: (name) =>
        name === counter || lets.has(name) ? renamed(name) : name,
    });
  function before(index: Expr): readonly Stmt[] {
    const names = new Set<string>();
    addLocals(index, names);
    return [...names].flatMap((name) => {
      const value = lets.get(name);
      if (value === undefined || declared.has(name)) return [];
      declared.add(name);
      return [...before(value), let_(renamed(name), at(value))];
    });
  }
  return (
    { load, names }: Ahead,
    keep: (name: string, value: Expr) => Stmt,
  ): readonly Stmt[] => {
    const index = at(load.index);
    if (load.op === "load") {
      return [...before(load.index), keep(names[0]!, { ...load, index })];
    }
    const words = names.map((name) => `${name}_${phase}`);
    return [
      ...before(load.index),
      { ...load, names: words, index },
      ...names.map((name, n) => keep(name, local(words[n]!, load.type))),
    ];
  };
}
