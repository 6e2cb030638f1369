/** A kernel of all functions of floats, for comparisons of printers. */

import {
  add,
  call,
  f32,
  id,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import type { CallName, Kernel } from "../../spec/kernel/tree.ts";

/** Functions in the order of their results. `pow` has the exponent 1.7. */
export const FUNCTIONS: readonly CallName[] = [
  ...["exp", "log", "sin", "cos", "tanh", "sign", "roundF16"] as const,
  ...["sqrt", "rsqrt", "floor", "round", "pow"] as const,
];

/** Values of `x` in two workgroups. */
export const INPUTS = 64;

const [at, x] = [local("at", "u32"), local("x", "f32")];

/** For each function, stores its results for all values of `x` to `y`. */
export const functions: Kernel = {
  name: "functions",
  workgroupSize: 32,
  bindings: [
    { name: "x", type: "f32", access: "read" },
    { name: "y", type: "f32", access: "write" },
  ],
  shared: [],
  body: [
    let_("at", add(mul(id("group.x"), u32(32)), id("local"))),
    let_("x", load("x", at)),
    ...FUNCTIONS.map((fn, i) =>
      store(
        "y",
        add(at, u32(INPUTS * i)),
        fn === "pow" ? call(fn, x, f32(1.7)) : call(fn, x),
      )
    ),
  ],
};
