/** A kernel under construction: its bindings, and the statements that precede its expressions. */

import { invariant } from "../../../spec/errors.ts";
import { let_, local } from "../../../spec/kernel/build.ts";
import type { KernelText } from "../../../spec/kernel/text/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../../spec/kernel/tree.ts";
import type { StoredDType } from "../../../spec/dtype.ts";
import type { Node } from "../../graph/graph.ts";
import { addLaunch, type Launch } from "./context.ts";
import type { Lowering } from "./lowering.ts";

/** Bindings by buffer, in the order of first use. Names are x0, x1, … for reads and y0, … for writes. */
export class KernelScope {
  readonly lowering: Lowering;
  readonly #byBuffer = new Map<string, Binding>();
  #sink: Stmt[] = [];
  #names = 0;

  constructor(lowering: Lowering) {
    this.lowering = lowering;
  }

  /** The binding through which the kernel reads `buffer`. */
  read(buffer: string): string {
    return this.#bind(buffer, "read");
  }

  /** The binding through which the kernel writes `buffer`. */
  write(buffer: string): string {
    return this.#bind(buffer, "write");
  }

  /** Binds `buffer` for reading under a given name. */
  readAs(name: string, buffer: string): void {
    this.#bind(buffer, "read", name);
  }

  /** Binds `buffer` for writing under a given name. Text that reads it binds it for both. */
  writeAs(name: string, buffer: string): void {
    this.#bind(buffer, "write", name);
  }

  #bind(buffer: string, access: "read" | "write", given?: string): string {
    const known = this.#byBuffer.get(buffer);
    if (known) {
      invariant(
        known.access === access,
        `buffer '${buffer}' is read and written by one kernel`,
      );
      return known.name;
    }
    const draft = this.lowering.draft.buffers.get(buffer);
    invariant(draft, `no buffer '${buffer}'`);
    const name = given ??
      `${access === "read" ? "x" : "y"}${this.#byBuffer.size}`;
    this.bind(buffer, { name, type: wordType(draft.dtype), access });
    return name;
  }

  /** The bindings; grows during construction. */
  readonly bindings: Binding[] = [];

  /** Binds a buffer as in an equal kernel. */
  bind(buffer: string, binding: Binding): void {
    if (this.#byBuffer.has(buffer)) return;
    this.#byBuffer.set(buffer, binding);
    this.bindings.push(binding);
  }

  /** The buffers with their bindings, in the order of first use. */
  get bound(): (readonly [buffer: string, Binding])[] {
    return [...this.#byBuffer];
  }

  /** Adds a launch of the kernel for a node. */
  launch(
    node: Node,
    kernel: Kernel,
    workgroups: Launch["workgroups"],
    part?: Launch["part"],
  ): void {
    const bindings = this.buffers;
    addLaunch(this.lowering, node, kernel, { bindings, workgroups, part });
  }

  /** Binding name -> buffer. */
  get buffers(): { [binding: string]: string } {
    return Object.fromEntries(
      [...this.#byBuffer].map(([buffer, { name }]) => [name, buffer]),
    );
  }

  /** Binds a value to a new name in the current statements. */
  bindValue(value: Expr): Expr {
    if (value.op === "const" || value.op === "local" || value.op === "id") {
      return value;
    }
    const name = `v${this.#names++}`;
    this.#sink.push(let_(name, value));
    return local(name, value.type);
  }

  /** Collects the statements of `make`, preceded by those that its expressions need. */
  block<S extends Stmt | KernelText = Stmt>(
    make: () => readonly S[],
  ): (Stmt | S)[] {
    const outer = this.#sink;
    const inner: Stmt[] = this.#sink = [];
    const last = make();
    this.#sink = outer;
    return [...inner, ...last];
  }
}

/** The element type of a buffer of this dtype in a kernel. */
export function wordType(dtype: StoredDType): Binding["type"] {
  return dtype === "f16" || dtype === "bf16" || dtype === "u8" ? "u32" : dtype;
}
