/** The names that kernel text sees: bindings, workgroup arrays and variables, with their types. */

import type { Binding, ScalarType, SharedArray, Stmt } from "./tree.ts";

/** What declares a variable: only a `var` may be assigned to. */
export type VariableKind = "let" | "var" | "loop";

/** A variable. */
export interface Variable {
  readonly type: ScalarType;
  readonly kind: VariableKind;
}

/** Names in scope while text is read. */
export class TextScope {
  readonly shared: SharedArray[] = [];
  readonly #bindings: ReadonlyMap<string, Binding>;
  readonly #variables = new Map<string, Variable>();
  /** Variables in the order of their declarations. */
  readonly #declared: string[] = [];

  constructor(bindings: readonly Binding[]) {
    this.#bindings = new Map(bindings.map((b) => [b.name, b]));
  }

  variable(name: string): Variable | undefined {
    return this.#variables.get(name);
  }

  binding(name: string): Binding | undefined {
    return this.#bindings.get(name);
  }

  array(name: string): SharedArray | undefined {
    return this.shared.find((a) => a.name === name);
  }

  /** Whether a name stands for something already. */
  has(name: string): boolean {
    return this.#variables.has(name) || this.#bindings.has(name) ||
      this.array(name) !== undefined;
  }

  declare(name: string, variable: Variable): void {
    this.#variables.set(name, variable);
    this.#declared.push(name);
  }

  /** Declare what statements of a tree declare for those after them. */
  declareAll(body: readonly Stmt[]): void {
    for (const s of body) {
      if (s.op === "let" || s.op === "var") {
        this.declare(s.name, { type: s.value.type, kind: s.op });
      } else if (s.op === "loads") {
        s.names.forEach((name) =>
          this.declare(name, { type: s.type, kind: "let" })
        );
      }
    }
  }

  /** Read a block: what it declares ends with it. */
  block<T>(read: () => T): T {
    const { length } = this.#declared;
    const result = read();
    while (this.#declared.length > length) {
      this.#variables.delete(this.#declared.pop()!);
    }
    return result;
  }
}
