/** Constants in WGSL, which rejects constant expressions that overflow. */

import type { BinaryOp, Expr } from "../tree.ts";
import { operands } from "../walk.ts";

const LARGEST_F32 = 3.4028234663852886e38;

/** The shortest decimal that parses to the same f32. */
function printF32(value: number): string {
  const x = Math.fround(value);
  if (Number.isNaN(x)) return "bitcast<f32>(special_bits.y)";
  if (!Number.isFinite(x)) {
    return x > 0
      ? "bitcast<f32>(special_bits.x)"
      : "bitcast<f32>(special_bits.x | 0x80000000u)";
  }
  let text = String(x);
  for (let digits = 1; digits <= 9; digits++) {
    const short = String(Number(x.toPrecision(digits)));
    // A decimal above the largest f32 would be rejected although it rounds to it.
    const legal = Math.abs(Number(short)) <= LARGEST_F32;
    if (legal && Math.fround(Number(short)) === x) {
      text = short;
      break;
    }
  }
  if (Object.is(x, -0)) text = "-0";
  return /[.e]/.test(text) ? `${text}f` : `${text}.0f`;
}

type Constant = Expr & { readonly op: "const" };

/** A constant as a literal. */
export function printConstant({ type, value }: Constant): string {
  if (type === "bool") return String(value);
  if (type === "f32") return printF32(Number(value));
  if (type === "u32") return `${Number(value) >>> 0}u`;
  return Number(value) === -0x80000000 ? "i32(-2147483648)" : `${value}i`;
}

/** Whether WGSL evaluates an expression at compile time. */
export function isConstant(e: Expr): boolean {
  if (e.op === "const") return true;
  const inner = e.op === "load" || e.op === "shared" ? [] : operands(e);
  return inner.length > 0 && inner.every(isConstant);
}

/**
 * A constant operand of an operation on constants, hidden from the compiler: WGSL rejects constant expressions that
 * overflow.
 */
export function printHidden({ type, value }: Constant): string {
  if (type === "bool") return `(special_bits.z ${value ? "==" : "!="} 0u)`;
  if (type === "u32") return `(${Number(value) >>> 0}u | special_bits.z)`;
  const bits = type === "i32"
    ? Number(value) >>> 0
    : new Uint32Array(Float32Array.of(Number(value)).buffer)[0];
  return `bitcast<${type}>(${bits}u | special_bits.z)`;
}

/** The right operand of an integer operation: WGSL rejects some constants there. */
export function constantRight(fn: BinaryOp, b: Expr): Expr {
  if (b.op !== "const" || b.type === "f32") return b;
  if (fn === "shl" || fn === "shr") {
    return { ...b, value: Number(b.value) & 31 };
  }
  const divides = fn === "div" || fn === "rem";
  return divides && Number(b.value) === 0 ? { ...b, value: 1 } : b;
}
