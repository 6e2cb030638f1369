/**
 * Loops of kernel text that are written out, `@unroll (r < 4) { … }`, and registers, whose names have indices: `sum[r][c]`. A
 * body is read once. Until numbers stand for the variables of its loops, trees call them `@r`, and registers `sum[r][c]`.
 */

import { binary, local, u32 } from "./build.ts";
import type { Variable } from "./text_scope.ts";
import type { Expr, Stmt } from "./tree.ts";

/** The variable of a loop that is written out. */
export function turnVariable(name: string): Expr {
  return local(`@${name}`, "u32");
}

/** Whether an index is known when all loops are written out. */
export function isKnown(e: Expr): boolean {
  return e.op === "const" || e.op === "local" && e.name.startsWith("@") ||
    e.op === "binary" && isKnown(e.a) && isKnown(e.b);
}

/** The values that a variable of a loop takes: from 0 below `end`. */
export interface IterationRange {
  readonly name: string;
  readonly end: number;
  readonly step: number;
}

/** Variables of an iteration as numbers: in trees, and in indices. */
interface Iteration {
  readonly values: ReadonlyMap<string, Expr>;
  readonly texts: ReadonlyMap<string, string>;
}

function iterationsOf(ranges: readonly IterationRange[]): readonly Iteration[] {
  let iterations: Iteration[] = [{ values: new Map(), texts: new Map() }];
  for (const { name, end, step } of ranges) {
    iterations = iterations.flatMap(({ values, texts }) =>
      Array.from({ length: Math.ceil(end / step) }, (_, i) => ({
        values: new Map([...values, [`@${name}`, u32(i * step)]]),
        texts: new Map([...texts, [name, String(i * step)]]),
      }))
    );
  }
  return iterations;
}

/** The name of a register: `sum`, and its indices. */
interface Name {
  readonly base: string;
  readonly indices: readonly string[];
}

/** Names of the registers of a kernel. */
export class Registers {
  /** Indices that are neither numbers nor variables: `sum[#0]`. */
  readonly #computed: Expr[] = [];
  readonly #parts = new Map<string, Name>();
  /** Names in the tree that a loop declares, and those that it reads or sets. */
  readonly #declared = new Set<string>();
  readonly #used = new Set<string>();

  /** The name that a register has in the tree: `sum1_2`, where its indices are numbers. */
  nameOf(base: string, indices: readonly Expr[]): string {
    return indices.length === 0
      ? base
      : this.#whole(base, indices.map((index) => this.#text(index)));
  }

  #whole(base: string, indices: readonly string[]): string {
    if (indices.every(isNumber)) {
      return `${base}${/\d$/.test(base) ? "_" : ""}${indices.join("_")}`;
    }
    const name = `${base}[${indices.join("][")}]`;
    this.#parts.set(name, { base, indices });
    return name;
  }

  #text(index: Expr): string {
    if (index.op === "const") return String(index.value);
    if (index.op === "local") return index.name.slice(1);
    return `#${this.#computed.push(index) - 1}`;
  }

  /** The statements of all iterations of a loop. */
  writeOut(body: readonly Stmt[], ranges: readonly IterationRange[]): Stmt[] {
    return iterationsOf(ranges).flatMap((iteration) =>
      this.#iteration(body, iteration)
    );
  }

  /** The statements of one iteration: numbers stand for variables. */
  #iteration(body: readonly Stmt[], iteration: Iteration): Stmt[] {
    const names = new Map<string, string>();
    const rename = (name: string): string => {
      if (!name.endsWith("]")) return name;
      let renamed = names.get(name);
      if (renamed === undefined) {
        const { base, indices } = this.#parts.get(name) ?? partsOfName(name);
        renamed = this.#whole(
          base,
          indices.map((text) =>
            text.startsWith("#")
              ? this.#text(of(this.#computed[Number(text.slice(1))]!))
              : iteration.texts.get(text) ?? text
          ),
        );
        names.set(name, renamed);
      }
      return renamed;
    };
    const of = (e: Expr): Expr => {
      if (e.op !== "local") return mapParts(e, of);
      const value = iteration.values.get(e.name);
      if (value !== undefined) return value;
      const name = rename(e.name);
      if (name === e.name) return e;
      this.#used.add(name);
      return local(name, e.type);
    };
    const statement = (s: Stmt): Stmt => {
      switch (s.op) {
        case "let":
        case "var":
        case "set": {
          const name = rename(s.name);
          (s.op === "set" ? this.#used : this.#declared).add(name);
          return { op: s.op, name, value: of(s.value) };
        }
        case "loads": {
          const loaded = s.names.map(rename);
          loaded.forEach((name) => this.#declared.add(name));
          return { ...s, names: loaded, index: of(s.index) };
        }
        case "store":
        case "sharedStore":
          return { ...s, index: of(s.index), value: of(s.value) };
        case "for":
          return {
            ...{ ...s, from: of(s.from), to: of(s.to) },
            body: s.body.map(statement),
          };
        case "if":
          return {
            ...{ ...s, condition: of(s.condition) },
            then: s.then.map(statement),
            ...s.else && { else: s.else.map(statement) },
          };
        case "barrier":
          return s;
      }
    };
    return body.map(statement);
  }

  /** A register that loops use, and neither they nor, as `known` says, what stands before them declares. */
  missing(known: (name: string) => boolean): string | undefined {
    const missing = [...this.#used].find((name) =>
      !name.endsWith("]") && !this.#declared.has(name) && !known(name)
    );
    this.#used.clear();
    this.#declared.clear();
    return missing;
  }
}

function isNumber(text: string): boolean {
  const first = text.charCodeAt(0);
  return first >= 48 && first <= 57;
}

/** The parts of `sum[r][c]`. */
export function partsOfName(name: string): Name {
  const [base, ...indices] = name.split(/[[\]]+/).filter((part) => part !== "");
  return { base: base!, indices };
}

/** An expression with other operands; itself where none is. */
function mapParts(e: Expr, of: (part: Expr) => Expr): Expr {
  switch (e.op) {
    case "const":
    case "id":
    case "local":
      return e;
    case "load":
    case "shared": {
      const index = of(e.index);
      return index === e.index ? e : { ...e, index };
    }
    case "unary":
    case "convert":
    case "bitcast": {
      const a = of(e.a);
      return a === e.a ? e : { ...e, a };
    }
    case "binary": {
      const [a, b] = [of(e.a), of(e.b)];
      return a === e.a && b === e.b ? e : binary(e.fn, a, b);
    }
    case "call": {
      const args = e.args.map(of);
      return args.every((arg, i) => arg === e.args[i]) ? e : { ...e, args };
    }
    case "select":
      return { ...e, condition: of(e.condition), a: of(e.a), b: of(e.b) };
  }
}

/** The variables that statements declare for those after them. */
export function declaredBy(
  body: readonly Stmt[],
): { readonly as: string; readonly is: Variable }[] {
  return body.flatMap((s) => {
    if (s.op === "loads") {
      const { type } = s;
      return s.names.map((as) => ({ as, is: { type, kind: "let" as const } }));
    }
    return s.op === "let" || s.op === "var"
      ? [{ as: s.name, is: { type: s.value.type, kind: s.op } }]
      : [];
  });
}
