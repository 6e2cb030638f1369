/** Visible names of kernel text: bindings, workgroup arrays and variables, with their types. */

import type { Binding, ScalarType, SharedArray, Stmt } from "../tree.ts";

/** Declaration of a variable: only a `var` may be assigned. `unrolled`: the variable of an unrolled loop. */
export type VariableKind = "let" | "var" | "loop" | "unrolled";

/** A variable, or the registers of a name. */
export interface Variable {
  readonly type: ScalarType;
  readonly kind: VariableKind;
  /** Its name in the tree. Default: that in the text. */
  readonly as?: string;
  /** For the variable of an unrolled loop. */
  readonly value?: number;
}

/** Names in scope while text is resolved. */
export class TextScope {
  /** All workgroup arrays, the visible ones, and their names in the order of declaration. */
  readonly #shared = new Map<string, SharedArray>();
  readonly #arrays = new Map<string, SharedArray>();
  readonly #ofBlock: string[] = [];
  readonly #bindings: ReadonlyMap<string, Binding>;
  readonly #variables = new Map<string, Variable>();
  /** Registers, which are variables too. */
  readonly #registers = new Map<string, Variable>();
  /** Variables in the order of declaration, and names with registers. */
  readonly #declared: string[] = [];
  readonly #registered: string[] = [];
  /** Names that end with an iteration of an unrolled loop. */
  readonly #ofIteration: string[] = [];

  constructor(bindings: readonly Binding[]) {
    this.#bindings = new Map(bindings.map((b) => [b.name, b]));
  }

  variable(name: string): Variable | undefined {
    return this.#variables.get(name);
  }

  /** The registers of a name. */
  registers(name: string): Variable | undefined {
    return this.#registers.get(name);
  }

  binding(name: string): Binding | undefined {
    return this.#bindings.get(name);
  }

  array(name: string): SharedArray | undefined {
    return this.#arrays.get(name);
  }

  /** The workgroup arrays: one for all blocks that declare a name, as long as the longest. */
  get shared(): readonly SharedArray[] {
    return [...this.#shared.values()];
  }

  /** Declares a workgroup array; other blocks must declare the name with the same type. */
  declareArray(array: SharedArray): void {
    const { name, length } = array;
    const known = this.#shared.get(name);
    this.#arrays.set(name, array);
    this.#ofBlock.push(name);
    if (!known || known.length < length) this.#shared.set(name, array);
  }

  /** The workgroup array of this name that any block has declared so far. */
  declaredArray(name: string): SharedArray | undefined {
    return this.#shared.get(name);
  }

  /** Whether a name is declared. */
  has(name: string): boolean {
    return this.#variables.has(name) || this.isArray(name);
  }

  /** Whether a name is that of a binding or of a workgroup array. */
  isArray(name: string): boolean {
    return this.#bindings.has(name) || this.array(name) !== undefined;
  }

  declare(name: string, variable: Variable): void {
    this.#variables.set(name, variable);
    this.#declared.push(name);
  }

  /** Declares the registers of a name. */
  declareRegisters(name: string, variable: Variable): void {
    this.#registers.set(name, variable);
    this.#registered.push(name);
  }

  /** Declares a name for the current iteration. */
  declareInIteration(name: string, variable: Variable): void {
    this.#variables.set(name, variable);
    this.#ofIteration.push(name);
  }

  /** Declares the names that a statement of a tree declares for later ones. */
  declareTree(s: Stmt): void {
    if (s.op === "loads") {
      const { type } = s;
      s.names.forEach((name) => this.declare(name, { type, kind: "let" }));
    } else if (s.op === "let" || s.op === "var") {
      this.declare(s.name, { type: s.value.type, kind: s.op });
    }
  }

  /** Resolves a block: its declarations end with it. */
  block<T>(read: () => T): T {
    const variables = this.#declared.length;
    const registers = this.#registered.length;
    const arrays = this.#ofBlock.length;
    const result = read();
    forget(this.#variables, this.#declared, variables);
    forget(this.#registers, this.#registered, registers);
    forget(this.#arrays, this.#ofBlock, arrays);
    return result;
  }

  /** Whether a loop is being unrolled. */
  inIteration(): boolean {
    return this.#ofIteration.length > 0;
  }

  /** Resolves an iteration of an unrolled loop: its names end with it. */
  iteration(read: () => void): void {
    const { length } = this.#ofIteration;
    read();
    forget(this.#variables, this.#ofIteration, length);
  }
}

/** Removes the names after the first `length`. */
function forget(
  from: Map<string, unknown>,
  names: string[],
  length: number,
): void {
  while (names.length > length) from.delete(names.pop()!);
}
