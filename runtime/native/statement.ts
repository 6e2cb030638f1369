/** Statements of the kernel tree to C, for the invocations of one vector. Conditions that differ between lanes become masks. */

import { invariant } from "../../spec/errors.ts";
import { endOf, mul } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { someExpression } from "../../spec/kernel/walk.ts";
import { hasUniformTrip, spanOf } from "../vector/analyze.ts";
import { findPointers, type PointerGroup } from "../vector/pointers.ts";
import type { ArrayNames, Expressions } from "./expression.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Iterations of a loop that are known and so few that it need not look whether it shall stop. */
const SHORT_LOOP = 4096;

/** Iterations of an innermost loop that are printed as one. */
const UNROLL = 4;

/** Prints statements into one function. */
export class Statements {
  readonly #x: Expressions;
  readonly #writable: ReadonlySet<string>;
  /** Name of the mask of active lanes; undefined: all are. */
  #mask: string | undefined;
  #maskDepth = 0;
  /** A loop before this one has put addresses to prefetch into `later`. */
  #prefetchesLater = false;
  readonly #declaredAt = new Map<string, number>();

  constructor(x: Expressions, writable: ReadonlySet<string>) {
    this.#x = x;
    this.#writable = writable;
  }

  /** Whether a variable is a scalar in C. */
  isScalar(name: string): boolean {
    const { type, shape } = this.#x.shapes.variables.get(name)!;
    return type !== "f32" && shape.stride !== null;
  }

  /** The C type of a variable. */
  typeOf(name: string): string {
    const { type } = this.#x.shapes.variables.get(name)!;
    return this.isScalar(name) ? "u" : this.#x.vectorType(type);
  }

  /** Declare a variable for all of the function. */
  declare(name: string): void {
    const local = this.#x.writer.name(name);
    this.#x.locals.set(name, local);
    this.#x.writer.line(`${this.typeOf(name)} ${local} = { 0 };`);
  }

  list(body: readonly Stmt[]): void {
    for (const s of body) this.statement(s);
  }

  statement(s: Stmt): void {
    switch (s.op) {
      case "let":
      case "var":
        return this.#declaration(s);
      case "set":
        return this.#set(s.name, s.value);
      case "store":
        return this.#store(s, s.binding);
      case "sharedStore":
        return this.#store(s, s.array);
      case "if":
        return this.#if(s);
      case "for":
        return hasUniformTrip(s, this.#x.shapes)
          ? this.#for(s)
          : this.#maskedFor(s);
      case "loads":
      case "barrier":
        throw new Error("internal: '" + s.op + "' inside a phase");
    }
  }

  #valueOf(name: string, value: Expr): string {
    return this.isScalar(name) ? this.#x.scalar(value) : this.#x.vector(value);
  }

  #declaration(s: Extract<Stmt, { op: "let" | "var" }>): void {
    const { writer, locals } = this.#x;
    this.#x.begin(s.value);
    this.#declaredAt.set(s.name, this.#maskDepth);
    const value = this.#valueOf(s.name, s.value);
    const known = locals.get(s.name);
    if (known !== undefined) return writer.line(`${known} = ${value};`);
    const name = writer.name(s.name);
    locals.set(s.name, name);
    const head = s.op === "let" ? "const " : "";
    writer.line(`${head}${this.typeOf(s.name)} ${name} = ${value};`);
  }

  #set(name: string, value: Expr): void {
    const { writer, locals, shapes } = this.#x;
    this.#x.begin(value);
    const local = locals.get(name);
    const declared = this.#declaredAt.get(name);
    invariant(
      local !== undefined && declared !== undefined,
      `variable '${name}' is not declared`,
    );
    const text = this.#valueOf(name, value);
    if (declared === this.#maskDepth) {
      return writer.line(`${local} = ${text};`);
    }
    // Lanes that are not active keep the value that they have.
    const pick = shapes.variables.get(name)!.type === "f32" ? "pickf" : "pick";
    writer.line(`${local} = ${pick}(${this.#mask!}, ${text}, ${local});`);
  }

  #if(s: Extract<Stmt, { op: "if" }>): void {
    const x = this.#x;
    const { writer } = x;
    x.begin(s.condition);
    if (x.isScalar(s.condition)) {
      const condition = x.scalar(s.condition);
      writer.block(`if (${condition})`, () => this.list(s.then));
      if (s.else) {
        const other = s.else;
        writer.block("else", () => this.list(other));
      }
      return;
    }
    const condition = x.keep("vu", x.vector(s.condition));
    const outer = this.#mask;
    const within = (mask: string) =>
      outer === undefined ? mask : `${outer} & ${mask}`;
    this.#masked(within(condition), s.then);
    if (s.else) this.#masked(within(`~${condition}`), s.else);
  }

  /** Run `body` with a mask, if any lane is active. */
  #masked(mask: string, body: readonly Stmt[]): void {
    const name = this.#x.keep("vu", mask);
    this.#x.writer.block(`if (any(${name}))`, () => this.#under(name, body));
  }

  #under(mask: string, body: readonly Stmt[]): void {
    const outer = this.#mask;
    this.#mask = mask;
    this.#maskDepth++;
    this.list(body);
    this.#maskDepth--;
    this.#mask = outer;
  }

  #keepScalar(e: Expr): string {
    this.#x.begin(e);
    return this.#x.keep("u", this.#x.scalar(e));
  }

  /** What every turn of a loop begins with that nobody knows the length of. */
  #look(s: ForStmt): void {
    if (!(spanOf(s) <= SHORT_LOOP)) this.#x.writer.line("if (*stop) return;");
  }

  #for(s: ForStmt): void {
    const { writer, locals } = this.#x;
    writer.block("", () => {
      const from = this.#keepScalar(s.from);
      const to = this.#keepScalar(endOf(s));
      const step = this.#keepScalar(s.step);
      const counter = writer.name(s.name);
      locals.set(s.name, counter);
      const head = `for (u ${counter} = ${from}; ${counter} < ${to}; ` +
        `${counter} += ${step})`;
      const checked = () =>
        writer.block(head, () => {
          this.#look(s);
          this.list(s.body);
        });
      const groups = this.#pointersOf(s);
      if (groups.length === 0) return checked();
      const transposed = groups.some(({ apart }) => apart > 1);
      const pointers = groups.map((group) => this.#pointer(group, from));
      const inRange = groups.map((group, n) =>
        this.#inRange(group, { ...pointers[n]!, last: `${to} - 1` })
      );
      const test = [`${from} < ${to}`, ...inRange].join(" && ");
      writer.block(`if (${test})`, () => {
        groups.forEach(({ loads, apart }, n) => {
          for (const [load, constant] of loads) {
            if (apart > 1) continue;
            this.#x.pointed.set(load, `(${pointers[n]!.name} + ${constant})`);
          }
        });
        const iterations = (head: string, unroll: number) => {
          // Of what loads lanes one by one, an iteration is long enough.
          if (!this.#gathers(s.body)) {
            writer.line(`#pragma GCC unroll ${unroll}`);
          }
          writer.block(head, () => {
            this.#look(s);
            this.list(s.body);
            for (const [n, { name, stride }] of pointers.entries()) {
              if (groups[n]!.apart > 1) continue;
              writer.line(`${name} += (uint64_t)${stride} * ${step};`);
            }
          });
        };
        if (!transposed) {
          if (this.#prefetchesLater) writer.line("prefetch_ahead(&later);");
          iterations(head, UNROLL);
        } else {
          // What fills workgroup memory is followed by loops that compute with it.
          const later = s.body.some(({ op }) => op === "sharedStore");
          this.#prefetchesLater ||= later;
          this.#inTiles(
            { counter, from, to },
            groups.map((group, n) => ({ ...group, name: pointers[n]!.name })),
            { later: later ? "&later" : "0", iterations },
          );
        }
        for (const { loads } of groups) {
          for (const load of loads.keys()) this.#x.pointed.delete(load);
        }
      });
      this.#again(s);
      writer.line("else");
      this.#x.rarely(checked);
    });
  }

  /**
   * As many iterations at a time as there are lanes: what lanes load in these from places apart is loaded in vectors along
   * the iterations, and transposed.
   */
  #inTiles(
    loop: {
      readonly counter: string;
      readonly from: string;
      readonly to: string;
    },
    groups: readonly (PointerGroup & { readonly name: string })[],
    { later, iterations }: {
      readonly later: string;
      iterations(head: string, unroll: number): void;
    },
  ): void {
    const { writer, pointed } = this.#x;
    const { counter, from, to } = loop;
    const start = writer.name("start");
    const apart = groups.filter((group) => group.apart > 1);
    const head =
      `for (u ${start} = ${from}; ${start} < ${to}; ${start} += LANES)`;
    writer.block(head, () => {
      for (const group of apart) {
        const array = this.#arrayOf(group.array).address;
        for (const [load, constant] of group.loads) {
          const tile = writer.name("tile");
          writer.line(`vu ${tile}[LANES];`);
          writer.line(
            `turn(${tile}, ${array}, ${group.name} - ${array} + ${constant}, ${group.apart}, ${later}, &along);`,
          );
          pointed.set(load, `${tile}[${counter} - ${start}]`);
        }
        writer.line(`${group.name} += LANES;`);
      }
      // As many together as were transposed.
      iterations(
        `for (u ${counter} = ${start}; ${counter} < ${start} + LANES; ${counter}++)`,
        this.#x.shapes.lanes,
      );
    });
  }

  /** Whether lanes are loaded one by one. */
  #gathers(body: readonly Stmt[]): boolean {
    const { pointed, shapes } = this.#x;
    return someExpression(body, (node) => {
      if (node.op !== "load" && node.op !== "shared") return false;
      const { stride } = shapes.of(node.index);
      return stride !== 0 && stride !== 1 && !pointed.has(node);
    });
  }

  /** The body is printed a second time: what it declares gets new names. */
  #again(s: ForStmt): void {
    for (const inner of s.body) {
      if (inner.op === "let" || inner.op === "var") {
        this.#x.locals.delete(inner.name);
      }
    }
  }

  /** The loads of an innermost loop whose range is checked once, before it. */
  #pointersOf(s: ForStmt): readonly PointerGroup[] {
    const nested = s.body.some(({ op }) => op === "for" || op === "if");
    if (nested || s.step.op !== "const") return [];
    const { shapes } = this.#x;
    if (!shapes.isUniform(s.from)) return [];
    const apart = spanOf(s) % shapes.lanes === 0 && Number(s.step.value) === 1;
    return findPointers(s, shapes, { writable: this.#writable, apart });
  }

  /** A pointer to a group's first element. */
  #pointer(
    group: PointerGroup,
    from: string,
  ): { name: string; base: string; stride: string } {
    const x = this.#x;
    const terms = group.terms.map((term) => {
      x.begin(term);
      return x.keep("u", x.scalar(term));
    });
    const base = x.keep("u", ["0u", ...terms].join(" + "));
    const stride = typeof group.stride === "number"
      ? `${group.stride}u`
      : this.#keepScalar(group.stride.reduce((a, b) => mul(a, b)));
    const name = x.writer.name("p");
    const { address } = this.#arrayOf(group.array);
    x.writer.line(
      `const word *${name} = ${address} + ((uint64_t)${base} + (uint64_t)${stride} * ${from});`,
    );
    return { name, base, stride };
  }

  /** In 64 bits nothing wraps: base + constant + stride * last counter < length. */
  #inRange(
    group: PointerGroup,
    at: {
      readonly base: string;
      readonly stride: string;
      readonly last: string;
    },
  ): string {
    const constant = Math.max(...group.loads.values()) +
      (group.apart > 1 ? group.apart * (this.#x.shapes.lanes - 1) : 0);
    const { length } = this.#arrayOf(group.array);
    return `(uint64_t)${at.base} + ${constant} + (uint64_t)${at.stride} * (${at.last}) < ${length}`;
  }

  #maskedFor(s: ForStmt): void {
    const x = this.#x;
    const { writer } = x;
    writer.block("", () => {
      const end = endOf(s);
      const scalar = this.isScalar(s.name);
      const value = (e: Expr) => scalar ? x.scalar(e) : x.vector(e);
      const type = scalar ? "u" : "vu";
      x.begin(s.from, end, s.step);
      const from = value(s.from);
      const to = x.keep("vu", x.vector(end));
      const step = x.keep(type, value(s.step));
      const counter = writer.name(s.name);
      writer.line(`${type} ${counter} = ${from};`);
      x.locals.set(s.name, counter);
      const mask = writer.name("mask");
      writer.line(`vu ${mask} = ${this.#mask ?? "~(vu){ 0 }"};`);
      writer.block("for (;;)", () => {
        this.#look(s);
        x.begin();
        const now = x.vector({ op: "local", type: "u32", name: s.name });
        writer.line(`${mask} &= (vu)(${now} < ${to});`);
        writer.line(`if (!any(${mask})) break;`);
        this.#under(mask, s.body);
        writer.line(`${counter} += ${step};`);
      });
    });
  }

  #arrayOf(name: string): ArrayNames {
    const array = this.#x.arrays.get(name);
    invariant(array, `array '${name}' is not declared`);
    return array;
  }

  #store(
    s: Extract<Stmt, { op: "store" | "sharedStore" }>,
    name: string,
  ): void {
    const x = this.#x;
    const { address, length } = this.#arrayOf(name);
    x.begin(s.index, s.value);
    const { stride } = x.shapes.of(s.index);
    const mask = this.#mask;
    const store = (how: string, ...args: readonly string[]) =>
      x.writer.line(`${how}(${[address, length, ...args].join(", ")});`);
    if (stride === 0) {
      // All lanes store to one element; of different values the last stays.
      const same = x.shapes.isUniform(s.value);
      if (same || mask === undefined) {
        const lane = same ? 0 : x.shapes.lanes - 1;
        const value = x.lane(s.value, lane);
        return store("store", x.scalar(s.index), value);
      }
    }
    if (stride === 1) {
      const args = [x.scalar(s.index), x.words(s.value)];
      return mask === undefined
        ? store("store_run", ...args)
        : store("store_run_masked", ...args, mask);
    }
    const args = [x.vector(s.index), x.words(s.value)];
    store("scatter", ...args, mask ?? "~(vu){ 0 }");
  }
}
