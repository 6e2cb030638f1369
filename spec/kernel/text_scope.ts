/** The names that kernel text sees: bindings, workgroup arrays and variables, with their types. */

import type { Binding, ScalarType, SharedArray, Stmt } from "./tree.ts";
import { declaredBy } from "./unroll.ts";

/** What declares a variable: only a `var` may be assigned to. `turn`: a loop that is written out. */
export type VariableKind = "let" | "var" | "loop" | "turn";

/** A variable; or the registers of a name, which ends in `[]` then. */
export interface Variable {
  readonly type: ScalarType;
  readonly kind: VariableKind;
  /** Its name in the tree. Default: that in the text. */
  readonly as?: string;
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
    declaredBy(body).forEach(({ as, is }) => this.declare(as, is));
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

  /** Read the body of a loop that is written out: registers of an index stay, what else it declares ends with it. */
  turns<T>(read: () => T): T {
    const { length } = this.#declared;
    const result = read();
    for (const name of this.#declared.splice(length)) {
      if (name.endsWith("[]")) this.#declared.push(name);
      else this.#variables.delete(name);
    }
    return result;
  }
}
