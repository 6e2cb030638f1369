/** What a kernel costs, read off its tree. */

import { STORED_BYTES } from "../dtype.ts";
import type { Expr, Kernel, ScalarType, Stmt } from "./tree.ts";

/** Cost of one invocation that takes the dearer of two branches, and every optional one. */
export interface KernelCost {
  /** Multiply-adds: `fma` nodes. */
  readonly multiplyAdds: number;
  /** Bytes loaded from and stored to bindings. */
  readonly loadBytes: number;
  readonly storeBytes: number;
  /** False where the bounds of a loop are known only at run time; its body is then counted once. */
  readonly exact: boolean;
}

type Known = ReadonlyMap<string, number>;

/** The value of a u32 expression of constants and known loop counters. */
function valueOf(e: Expr, known: Known): number | undefined {
  if (e.op === "const") return Number(e.value);
  if (e.op === "local") return known.get(e.name);
  if (e.op !== "binary") return undefined;
  const a = valueOf(e.a, known);
  const b = valueOf(e.b, known);
  if (a === undefined || b === undefined) return undefined;
  if (e.fn === "add") return a + b;
  if (e.fn === "sub") return a - b;
  if (e.fn === "mul") return a * b;
  if (e.fn === "div") return Math.floor(a / b);
  if (e.fn === "min") return Math.min(a, b);
  if (e.fn === "max") return Math.max(a, b);
  return undefined;
}

function bytesOf(type: ScalarType): number {
  return type === "bool" ? 4 : STORED_BYTES[type];
}

/** Count a kernel's work per invocation. */
export function kernelCost(kernel: Kernel): KernelCost {
  let [multiplyAdds, loadBytes, storeBytes, exact] = [0, 0, 0, true];

  function expression(e: Expr, times: number): void {
    switch (e.op) {
      case "load":
        loadBytes += times * bytesOf(e.type);
        return expression(e.index, times);
      case "shared":
        return expression(e.index, times);
      case "binary":
        expression(e.a, times);
        return expression(e.b, times);
      case "call":
        if (e.fn === "fma") multiplyAdds += times;
        return e.args.forEach((a) => expression(a, times));
      case "select":
        return [e.condition, e.a, e.b].forEach((a) => expression(a, times));
      case "unary":
      case "convert":
      case "bitcast":
        return expression(e.a, times);
    }
  }

  function block(body: readonly Stmt[], times: number, known: Known): void {
    for (const s of body) statement(s, times, known);
  }

  function statement(s: Stmt, times: number, known: Known): void {
    switch (s.op) {
      case "let":
      case "var":
      case "set":
        return expression(s.value, times);
      case "store":
        storeBytes += times * bytesOf(s.value.type);
        expression(s.index, times);
        return expression(s.value, times);
      case "sharedStore":
        expression(s.index, times);
        return expression(s.value, times);
      case "if":
        expression(s.condition, times);
        return dearer(
          () => block(s.then, times, known),
          () => block(s.else ?? [], times, known),
        );
      case "for":
        return loop(s, times, known);
    }
  }

  /** Count the larger of two branches. */
  function dearer(first: () => void, second: () => void): void {
    const before = [multiplyAdds, loadBytes, storeBytes] as const;
    first();
    const one = [multiplyAdds, loadBytes, storeBytes] as const;
    [multiplyAdds, loadBytes, storeBytes] = before;
    second();
    multiplyAdds = Math.max(multiplyAdds, one[0]);
    loadBytes = Math.max(loadBytes, one[1]);
    storeBytes = Math.max(storeBytes, one[2]);
  }

  function loop(
    s: Stmt & { readonly op: "for" },
    times: number,
    known: Known,
  ): void {
    const [from, to, step] = [s.from, s.to, s.step].map((e) =>
      valueOf(e, known)
    );
    if (from === undefined || to === undefined || !step) {
      exact = false;
      return block(s.body, times, known);
    }
    const turns = Math.max(0, Math.ceil((to - from) / step));
    // Bounds of an inner loop may depend on this counter, so loops around loops are walked.
    if (!s.body.some((inner) => inner.op === "for")) {
      return block(s.body, times * turns, known);
    }
    for (let i = from; i < to; i += step) {
      block(s.body, times, new Map(known).set(s.name, i));
    }
  }

  block(kernel.body, 1, new Map());
  return { multiplyAdds, loadBytes, storeBytes, exact };
}
