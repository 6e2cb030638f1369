/** Constants in C. */

import type { Value } from "../vector/ir.ts";

/** A constant: one element if `plain`, else all lanes. */
export function constantInC(
  { type, value }: Extract<Value, { op: "const" }>,
  plain: boolean,
): string {
  if (type === "u" || type === "vu") {
    const word = `${Number(value) >>> 0}u`;
    return plain || type === "u" ? word : `splat(${word})`;
  }
  if (type === "vl") {
    const long = `(int64_t)${BigInt.asUintN(64, BigInt(value))}u`;
    return plain ? `(${long})` : `splatl(${long})`;
  }
  const float = floatInC(Number(value), type as "vf" | "vd");
  return plain ? float : `splat${type[1]}(${float})`;
}

/** An f32 or f64 constant in C, with the same bits. */
function floatInC(value: number, type: "vf" | "vd"): string {
  const x = type === "vf" ? Math.fround(value) : value;
  if (Number.isNaN(x)) return "number(0x7fc00000u)";
  if (!Number.isFinite(x)) return x > 0 ? "INFINITY" : "-INFINITY";
  const digits = type === "vf"
    ? `${Math.abs(x).toExponential(9)}f`
    : Math.abs(x).toExponential();
  return `${x < 0 || Object.is(x, -0) ? "-" : ""}${digits}`;
}
