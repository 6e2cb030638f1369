/** Verifies that a kernel tree is well formed, and collects its use of bindings. Independent of plans. */

import {
  type Binding,
  type Expr,
  isReadOnly,
  type Kernel,
  type ScalarType,
  type Stmt,
} from "../tree.ts";
import { cachedWith } from "../../bounded_cache.ts";
import { exactJson } from "../exact_json.ts";
import { binaryType, fitsType, FUNCTIONS, UNARY } from "../semantics.ts";
import { scalarLoads } from "../vectors.ts";
import { loopFaults, MAX_NODES, treeNodes } from "./loops.ts";

/** Facts about a kernel tree. */
export interface KernelFacts {
  /** Bindings with loads. */
  readonly loads: ReadonlySet<string>;
  /** Bindings with stores. */
  readonly stores: ReadonlySet<string>;
  /** Bindings that are loaded before the kernel itself has stored to them. */
  readonly needs: ReadonlySet<string>;
  /** Constant indices into each binding. */
  readonly indices: ReadonlyMap<string, ReadonlySet<number>>;
  /** Constant terms of other indices into each binding: `7 + i`. */
  readonly bases: ReadonlyMap<string, ReadonlySet<number>>;
  /** u32 constants of the tree. */
  readonly words: ReadonlySet<number>;
  /** Errors of the tree, in words. */
  readonly faults: readonly string[];
  /** Barriers that some invocations may not reach. */
  readonly divergent: ReadonlySet<Stmt>;
  /** Loops whose iterations may differ between invocations; complete if rounds repeat. */
  readonly scattered: ReadonlySet<Stmt>;
  /** Declarations whose value may differ between invocations of a workgroup; complete if rounds repeat. */
  readonly varying: ReadonlySet<Stmt>;
}

/** Options for the uniformity analysis. */
export interface TreeOptions {
  /**
   * Bindings from which all invocations load the same value at one index. Default: as in WGSL, with repeated rounds
   * only for barriers.
   */
  readonly isFixed?: (binding: Binding) => boolean;
  /** Declarations that count as varying. Default: none. */
  readonly varying?: readonly Stmt[];
}

interface Local {
  readonly type: ScalarType;
  readonly kind: "let" | "var" | "loop";
  readonly declared: Stmt;
}

/**
 * Walks the tree once per round. If there are barriers, or varying values are requested, rounds repeat until no further
 * variable turns out to be varying.
 */
class Reader {
  readonly loads = new Set<string>();
  readonly stores = new Set<string>();
  readonly needs = new Set<string>();
  readonly indices = new Map<string, Set<number>>();
  readonly bases = new Map<string, Set<number>>();
  readonly words = new Set<number>();
  readonly faults = new Set<string>();
  readonly divergent = new Set<Stmt>();
  readonly scattered = new Set<Stmt>();
  /** Declarations whose value may differ between invocations of a workgroup. */
  readonly varying;
  hasBarrier = false;
  /** Treats every variable as varying. */
  pessimistic = false;
  readonly isFixed;
  readonly #bindings;
  readonly #shared;
  #scopes: Map<string, Local>[] = [];
  /** Vector loads as scalar loads. */
  readonly #elements = new Map<Stmt, Stmt[]>();
  /** Vector widths by binding; NaN if they differ. */
  readonly #widths = new Map<string, number>();
  /** Bindings with scalar loads. */
  readonly #loaded = new Set<string>();
  #inVector = false;

  constructor(
    readonly kernel: Kernel,
    { isFixed = isReadOnly, varying = [] }: TreeOptions,
  ) {
    this.isFixed = isFixed;
    this.varying = new Set(varying);
    this.#bindings = new Map(kernel.bindings.map((b) => [b.name, b]));
    this.#shared = new Map(kernel.shared.map((s) => [s.name, s]));
    const names = [...kernel.bindings, ...kernel.shared].map((x) => x.name);
    for (const name of new Set(names)) {
      if (names.indexOf(name) !== names.lastIndexOf(name)) {
        this.faults.add(`'${name}' is declared twice`);
      }
    }
  }

  round(): void {
    this.divergent.clear();
    this.scattered.clear();
    this.#scopes = [];
    this.#block(this.kernel.body, true);
    for (const [name, width] of this.#widths) {
      const binding = this.#bindings.get(name);
      if (this.#loaded.has(name) || Number.isNaN(width)) {
        this.faults.add(`'${name}' is loaded from in more than one width`);
      }
      if (binding && binding.access !== "read") {
        this.faults.add(
          `'${name}' is loaded from in vectors and its access is not 'read'`,
        );
      }
    }
  }

  #find(name: string): Local | undefined {
    for (let i = this.#scopes.length - 1; i >= 0; i--) {
      const found = this.#scopes[i]!.get(name);
      if (found) return found;
    }
    return undefined;
  }

  #declare(
    name: string,
    value: Expr,
    kind: Local["kind"],
    declared: Stmt,
  ): void {
    if (this.#find(name)) this.faults.add(`'${name}' is bound twice`);
    this.#scopes.at(-1)!.set(name, { type: value.type, kind, declared });
  }

  #block(body: readonly Stmt[], uniform: boolean, first?: () => void): void {
    this.#scopes.push(new Map());
    first?.();
    for (const stmt of body) this.#stmt(stmt, uniform);
    this.#scopes.pop();
  }

  /** Formats the message only on error, because this runs for every node. */
  #expect(expr: Expr, type: ScalarType, what: string, name?: string): void {
    if (expr.type === type) return;
    const subject = name === undefined ? what : `${what} '${name}'`;
    this.faults.add(`${subject} is ${expr.type} and must be ${type}`);
  }

  #stmt(stmt: Stmt, uniform: boolean): void {
    switch (stmt.op) {
      case "let":
      case "var":
        if (!this.#expr(stmt.value)) this.varying.add(stmt);
        this.#declare(stmt.name, stmt.value, stmt.op, stmt);
        return;
      case "loads": {
        if (stmt.names.length !== 2 && stmt.names.length !== 4) {
          this.faults.add(`a vector has ${stmt.names.length} elements`);
        }
        let each = this.#elements.get(stmt);
        if (!each) this.#elements.set(stmt, each = scalarLoads(stmt));
        const { length } = stmt.names;
        const known = this.#widths.get(stmt.binding) ?? length;
        this.#widths.set(stmt.binding, known === length ? length : NaN);
        this.#inVector = true;
        for (const element of each) this.#stmt(element, uniform);
        this.#inVector = false;
        return;
      }
      case "set": {
        const local = this.#find(stmt.name);
        const same = this.#expr(stmt.value);
        if (!local) this.faults.add(`'${stmt.name}' is set and not bound`);
        else if (local.kind !== "var") {
          this.faults.add(`'${stmt.name}' is set and not a 'var'`);
        } else {
          this.#expect(stmt.value, local.type, "the value of", stmt.name);
          if (!same || !uniform) this.varying.add(local.declared);
        }
        return;
      }
      case "store": {
        this.#index(stmt.binding, stmt.index);
        this.#expr(stmt.value);
        const binding = this.#bindings.get(stmt.binding);
        if (!binding) {
          this.faults.add(`'${stmt.binding}' is stored to and is no binding`);
        } else {
          if (binding.access === "read") {
            this.faults.add(
              `'${stmt.binding}' is stored to and its access is 'read'`,
            );
          }
          this.#expect(
            stmt.value,
            binding.type,
            "the value stored to",
            stmt.binding,
          );
        }
        this.stores.add(stmt.binding);
        return;
      }
      case "sharedStore": {
        this.#sharedIndex(stmt.array, stmt.index);
        this.#expr(stmt.value);
        const type = this.#shared.get(stmt.array)?.type;
        if (type) {
          this.#expect(stmt.value, type, "the value stored to", stmt.array);
        }
        return;
      }
      case "for": {
        // No short circuit: every part must be read.
        const [from, to, step] = [stmt.from, stmt.to, stmt.step].map((e) =>
          this.#expr(e)
        );
        this.#expect(stmt.from, "u32", "the start of loop", stmt.name);
        this.#expect(stmt.to, "u32", "the end of loop", stmt.name);
        this.#expect(stmt.step, "u32", "the step of loop", stmt.name);
        for (const fault of loopFaults(stmt)) this.faults.add(fault);
        const same = from! && to! && step!;
        if (!same) this.varying.add(stmt);
        if (!same || !uniform) this.scattered.add(stmt);
        this.#block(stmt.body, uniform && same, () => {
          this.#declare(stmt.name, stmt.from, "loop", stmt);
        });
        return;
      }
      case "if": {
        const same = this.#expr(stmt.condition);
        this.#expect(stmt.condition, "bool", "a condition");
        this.#block(stmt.then, uniform && same);
        if (stmt.else) this.#block(stmt.else, uniform && same);
        return;
      }
      case "barrier":
        this.hasBarrier = true;
        if (!uniform) this.divergent.add(stmt);
        return;
      default:
        stmt satisfies never;
    }
  }

  #index(binding: string, index: Expr): boolean {
    const same = this.#expr(index);
    this.#expect(index, "u32", "the index into", binding);
    const adds = index.op === "binary" && index.fn === "add";
    const constant = adds ? index.a : index;
    if (constant.op === "const" && typeof constant.value === "number") {
      const all = adds ? this.bases : this.indices;
      const known = all.get(binding);
      if (known) known.add(constant.value);
      else all.set(binding, new Set([constant.value]));
    }
    return same;
  }

  #sharedIndex(array: string, index: Expr): void {
    this.#expr(index);
    this.#expect(index, "u32", "the index into", array);
    const declared = this.#shared.get(array);
    if (!declared) this.faults.add(`'${array}' is no workgroup array`);
    else if (
      index.op === "const" && typeof index.value === "number" &&
      index.value >= declared.length
    ) {
      this.faults.add(
        `index ${index.value} is outside '${array}', which has ${declared.length} elements`,
      );
    }
  }

  /** Reads an expression. Returns true if its value is uniform over a workgroup. */
  #expr(expr: Expr): boolean {
    switch (expr.op) {
      case "const":
        if (!fitsType(expr.type, expr.value)) {
          this.faults.add(`${expr.value} is no ${expr.type}`);
        }
        if (expr.type === "u32") this.words.add(Number(expr.value));
        return true;
      case "local": {
        const local = this.#find(expr.name);
        if (!local) {
          this.faults.add(`'${expr.name}' is not bound`);
          return false;
        }
        this.#expect(expr, local.type, "the value of", expr.name);
        if (this.pessimistic && local.kind === "var") return false;
        return !this.varying.has(local.declared);
      }
      case "id":
        this.#expect(expr, "u32", "the value of", expr.name);
        return expr.name !== "local";
      case "load": {
        const same = this.#index(expr.binding, expr.index);
        const binding = this.#bindings.get(expr.binding);
        if (!binding) {
          this.faults.add(`'${expr.binding}' is loaded from and is no binding`);
          return false;
        }
        if (binding.access === "write") {
          this.faults.add(
            `'${expr.binding}' is loaded from and its access is 'write'`,
          );
        }
        this.#expect(expr, binding.type, "a load from", expr.binding);
        if (expr.bytes && binding.type !== "u32") {
          this.faults.add(
            `bytes are loaded from '${expr.binding}', whose type is ${binding.type}`,
          );
        }
        this.loads.add(expr.binding);
        // The index of a vector load may be a load from another binding.
        if (!this.#inVector) this.#loaded.add(expr.binding);
        if (!this.stores.has(expr.binding)) this.needs.add(expr.binding);
        return same && this.isFixed(binding);
      }
      case "shared": {
        this.#sharedIndex(expr.array, expr.index);
        const type = this.#shared.get(expr.array)?.type;
        if (type) this.#expect(expr, type, "a load from", expr.array);
        return false;
      }
      case "unary": {
        const same = this.#expr(expr.a);
        const { type } = expr.a;
        if (!Object.hasOwn(UNARY[type], expr.fn)) {
          this.faults.add(`'${expr.fn}' does not take ${type}`);
        }
        this.#expect(expr, type, "the value of", expr.fn);
        return same;
      }
      case "binary": {
        const a = this.#expr(expr.a);
        const b = this.#expr(expr.b);
        const type = binaryType(expr.fn, expr.a.type, expr.b.type);
        if (type === undefined) {
          this.faults.add(
            `'${expr.fn}' does not take ${expr.a.type} and ${expr.b.type}`,
          );
        } else this.#expect(expr, type, "the value of", expr.fn);
        return a && b;
      }
      case "call": {
        const same = expr.args.map((a) => this.#expr(a)).every(Boolean);
        const row = Object.hasOwn(FUNCTIONS, expr.fn)
          ? FUNCTIONS[expr.fn]
          : undefined;
        if (!row) {
          this.faults.add(`'${expr.fn}' is no function`);
          return same;
        }
        const given = expr.args.map((a) => a.type).join(", ");
        if (row.args.join(", ") !== given) {
          this.faults.add(
            `'${expr.fn}' takes ${row.args.join(", ")} and is given ${given}`,
          );
        }
        const table = expr.args.slice(row.constantFrom ?? expr.args.length);
        if (table.some(({ op }) => op !== "const")) {
          this.faults.add(`the table of '${expr.fn}' is not constant`);
        }
        this.#expect(expr, row.type, "the value of", expr.fn);
        return same;
      }
      case "select": {
        const parts = [expr.condition, expr.a, expr.b].map((e) =>
          this.#expr(e)
        );
        this.#expect(expr.condition, "bool", "the condition of a select");
        this.#expect(expr.a, expr.type, "the first value of a select");
        this.#expect(expr.b, expr.type, "the second value of a select");
        return parts.every(Boolean);
      }
      case "convert":
        return this.#expr(expr.a);
      case "bitcast":
        if (expr.type === "bool" || expr.a.type === "bool") {
          this.faults.add("a bool has no bits to cast");
        }
        return this.#expr(expr.a);
      default:
        return expr satisfies never;
    }
  }
}

/** Facts of kernels that were read without options. Kernels are immutable. */
const read = new WeakMap<Kernel, KernelFacts>();

/** The same by body: plans compiled one after the other share most bodies. */
const readBodies = new WeakMap<Kernel["body"], Map<string, KernelFacts>>();

/** Reads a kernel tree, once without options. Never throws on a tree that fits the schema. */
export function readTree(kernel: Kernel, options?: TreeOptions): KernelFacts {
  if (options) return readWith(kernel, options);
  let facts = read.get(kernel);
  if (!facts) read.set(kernel, facts = readByBody(kernel));
  return facts;
}

function readByBody(kernel: Kernel): KernelFacts {
  const { workgroupSize, bindings, shared, body } = kernel;
  return cachedWith(readBodies, body, {
    key: exactJson([workgroupSize, bindings, shared]),
    create: () => readWith(kernel, {}),
  });
}

function readWith(kernel: Kernel, options: TreeOptions): KernelFacts {
  const reader = new Reader(kernel, options);
  const nodes = treeNodes(kernel);
  if (nodes > MAX_NODES) {
    reader.faults.add(
      `its tree has ${nodes} statements and expressions, and at most ${MAX_NODES} are allowed`,
    );
  }
  for (let rounds = 0, before = -1; reader.varying.size > before; rounds++) {
    before = reader.varying.size;
    // A hostile tree may need as many rounds as it has variables.
    reader.pessimistic = rounds >= 8;
    reader.round();
    // With `isFixed`, varying values are requested, for which later iterations of a loop matter even without barriers.
    const asksValues = options.isFixed !== undefined;
    if (reader.pessimistic || !reader.hasBarrier && !asksValues) break;
  }
  const { loads, stores, needs, indices, bases, words, faults } = reader;
  const { divergent, scattered, varying } = reader;
  return {
    loads,
    stores,
    needs,
    indices,
    bases,
    words,
    faults: [...faults],
    divergent,
    scattered,
    varying,
  };
}
