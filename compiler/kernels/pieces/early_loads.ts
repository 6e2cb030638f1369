/** Loads that a kernel issues before it computes the other operands of the statements that use them. */

import { exactJson } from "../../../spec/kernel/exact_json.ts";
import { replaceIn } from "../../../spec/kernel/replace.ts";
import { someNode, walkStatements } from "../../../spec/kernel/walk.ts";
import type { Expr, KernelText, Stmt } from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";

/** Statements whose loads are separate. */
export interface EarlyLoads {
  /** Declares a variable for each load. */
  readonly declared: readonly KernelText[];
  /** Loads the variables. */
  readonly loaded: readonly KernelText[];
  /** The statements with the variables. */
  readonly rest: readonly Stmt[];
}

/** A load of one word. */
type Load = Extract<Expr, { readonly op: "load" }>;

/** The zero of each type. */
const ZERO = {
  f32: wgsl`0.0`,
  i32: wgsl`0i`,
  u32: wgsl`0u`,
  bool: wgsl`false`,
};

/** Most words that are loaded early: lanes need their registers for products. */
const MAX_EARLY = 16;

/**
 * Moves loads at indices that follow from `known` variables out of statements, unless these store in the same binding.
 * Variables are `<prefix>0`, `<prefix>1` and so on.
 */
export function loadEarly(
  statements: readonly Stmt[],
  { prefix, known }: {
    readonly prefix: string;
    readonly known: readonly string[];
  },
): EarlyLoads {
  const stored = new Set<string>();
  walkStatements(statements, (s) => {
    if (s.op === "store") stored.add(s.binding);
  });
  const found = new Map<string, { name: string; load: Load }>();
  const rest = replaceIn(statements, {
    load: (load) => {
      if (stored.has(load.binding) || !followsFrom(load.index, known)) {
        return undefined;
      }
      const key = exactJson(load);
      if (!found.has(key) && found.size === MAX_EARLY) return undefined;
      const { name } = found.get(key) ??
        { name: `${prefix}${found.size}` };
      found.set(key, { name, load });
      return local(name, load.type);
    },
  });
  const all = [...found.values()];
  return {
    declared: all.map(({ name, load: { type } }) =>
      wgsl`var ${name} = ${ZERO[type]};`
    ),
    loaded: all.map(({ name, load }) => wgsl`${name} = ${load};`),
    rest,
  };
}

/** Whether an index follows from variables, without loads. */
export function followsFrom(index: Expr, known: readonly string[]): boolean {
  return !someNode(
    index,
    (node) =>
      node.op === "load" || node.op === "shared" ||
      node.op === "local" && !known.includes(node.name),
  );
}
