/** Elementwise selection: clamping, and selection between two tensors. */

import type { DType } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import {
  binary,
  eq,
  f32,
  i32,
  local,
  max,
  min,
  select,
  u32,
} from "../../spec/kernel/build.ts";
import type { Expr, ScalarType } from "../../spec/kernel/tree.ts";
import { fitsType } from "../../spec/kernel/semantics.ts";
import { callSite } from "../../spec/call_site.ts";
import { scalarType } from "../graph/evaluate/scalar.ts";
import { scalarMap } from "./scalar_map.ts";
import { apply, refuse, type Tensor, traceOf } from "./tensor.ts";
import type { Broadcast, CanBroadcast } from "./types.ts";

function constant(type: ScalarType, value: number): Expr {
  if (type === "i32") return i32(value);
  return type === "u32" ? u32(value) : f32(value);
}

/**
 * `x` limited to the numbers `low` to `high`. Either may be infinite.
 *
 * Axes: those of `x`. Dtype: any; limits of integers are integers. Errors: `low` above `high`; a limit that the dtype
 * cannot represent. Gradient: 1 from `low` to `high`, 0 outside. Sharding: that of the operands along every axis; sends
 * nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 3 }, (m) => ({ y: clamp(m.input("x", "n"), -1, 2) }));
 * const { outputs } = evaluate(trace(f), { inputs: { x: [-5, 1, 5] } });
 * console.assert(String(outputs.y?.data) === "-1,1,2");
 * ```
 */
export function clamp<A extends string, D extends DType>(
  x: Tensor<A, D>,
  low: number,
  high: number,
): Tensor<A, D> {
  traceOf([x], clamp);
  const type = scalarType(x.dtype);
  const fits = (low === -Infinity || fitsType(type, low)) &&
    (high === Infinity || fitsType(type, high));
  if (!(low <= high) || !fits) {
    const error = new ModelError(
      `Cannot clamp '${x.axes}' to ${low} and ${high}: its dtype is '${x.dtype}'. Give ${
        type === "f32" ? "two numbers" : "two whole numbers"
      }, the smaller first`,
      callSite(clamp),
    );
    return refuse(error, [x]);
  }
  if (low === -Infinity && high === Infinity) return x;
  const above = low > -Infinity
    ? max(local("p0", type), constant(type, low))
    : local("p0", type);
  const result = high < Infinity ? min(above, constant(type, high)) : above;
  return scalarMap(clamp, [x], { parameters: [type], lets: [], result });
}

/**
 * `a` where `condition` is not 0, else `b`; operands broadcast by axis name.
 *
 * Axes: one operand has all axes of the others; the result has its axes in its order. Dtype: `a` and `b` equal, any;
 * `condition` any. Errors: no operand has all axes; dtypes differ. Gradient: that of the result for the selected
 * operand, 0 for the other; `condition` has none. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 2 }, (m) => {
 *   const mask = m.input("mask", "n", { dtype: "i32" });
 *   return { y: where(mask, m.input("a", "n"), m.input("b", "n")) };
 * });
 * const { outputs } = evaluate(trace(f), { inputs: { mask: [1, 0], a: [1, 2], b: [3, 4] } });
 * console.assert(String(outputs.y?.data) === "1,4");
 * ```
 */
export function where<
  C extends string,
  A extends string,
  B extends string,
  D extends DType,
>(
  condition: Tensor<C>,
  a: CanBroadcast<C, A, Tensor<A, D>>,
  b: CanBroadcast<Broadcast<C, A>, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<Broadcast<C, A>, B>, D> {
  const [yes, no] = [a as unknown as Tensor, b as unknown as Tensor];
  traceOf([condition, yes, no], where);
  const type = scalarType(yes.dtype);
  const test = condition.dtype === yes.dtype
    ? condition
    : apply<"cast", string, DType>(where, "cast", [isNonzero(condition)], {}, {
      axes: [],
      dtype: yes.dtype,
    });
  return scalarMap(where, [test, yes, no], {
    parameters: [type, type, type],
    lets: [],
    result: select(
      eq(local("p0", type), constant(type, 0)),
      local("p2", type),
      local("p1", type),
    ),
  });
}

/** 1 for values that are not 0. A cast would round small numbers to 0. */
function isNonzero(x: Tensor): Tensor {
  const type = scalarType(x.dtype);
  return scalarMap(where, [x], {
    parameters: [type],
    lets: [],
    result: select(
      binary("ne", local("p0", type), constant(type, 0)),
      constant(type, 1),
      constant(type, 0),
    ),
  });
}
