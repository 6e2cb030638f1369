/** Kernels that are linear in some bindings: only those accept partial sums. */

import t from "tap";
import {
  add,
  barrier,
  binary,
  bitcast,
  call,
  div,
  f32,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  mul,
  neg,
  select,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Expr, Stmt } from "../spec/kernel/tree.ts";
import { degreesOf } from "../spec/kernel/verify/linear.ts";

const I = id("group.x");
const x = (index: Expr = I) => load("x", index);
const w = (index: Expr = I) => load("w", index);
const acc = local("acc", "f32");
const put = (value: Expr): Stmt[] => [store("y", I, value)];

/** Sums `each(k)` over a loop. */
const sum = (each: (k: Expr) => Expr, start = 0): Stmt[] => [
  var_("acc", f32(start)),
  for_("k", u32(0), u32(4), [
    set("acc", add(acc, each(local("k", "u32")))),
  ]),
  ...put(acc),
];

/** Through shared memory: one invocation stores, another adds. */
const through = (value: Expr): Stmt[] => [
  sharedStore("s", I, value),
  barrier(),
  ...put(add(shared("s", u32(0)), x())),
];

const LINEAR: { readonly [name: string]: Stmt[] } = {
  "a copy": put(x()),
  "a copy of bits": put(bitcast("f32", bitcast("u32", x()))),
  "a factor": put(mul(w(), neg(x()))),
  "a quotient": put(div(x(), add(w(), f32(1)))),
  "a difference": put(sub(x(), mul(x(u32(3)), w()))),
  "zero": put(f32(0)),
  "nothing there": put(select(lt(I, u32(3)), x(), f32(0))),
  "a dot product": sum((k) => mul(w(k), x(k))),
  "a fused dot product": sum((k) => call("fma", w(k), x(k), neg(x(k)))),
  "a sum in shared memory": through(mul(x(), w())),
  "only some elements": [
    let_("v", x()),
    if_(lt(w(), f32(2)), put(local("v", "f32"))),
  ],
};

const OTHER: { readonly [name: string]: Stmt[] } = {
  "a square": put(mul(x(), x())),
  "an added constant": put(add(x(), f32(1))),
  "a bias": put(add(x(), w())),
  "independent of the binding": put(w()),
  "a function": put(call("exp", x())),
  "a maximum": put(max(x(), f32(0))),
  "its inverse": put(div(w(), x())),
  "a selection by the binding": put(select(lt(x(), f32(0)), f32(0), x())),
  "a branch on the binding": [if_(lt(x(), f32(0)), put(x()))],
  "a loop bound by the binding": [
    var_("acc", f32(0)),
    for_("k", u32(0), bitcast("u32", x()), [set("acc", x())]),
    ...put(acc),
  ],
  "a store index from the binding": [store("y", bitcast("u32", x()), x())],
  "a load index from the binding": put(x(bitcast("u32", x()))),
  "arithmetic on its bits": put(
    bitcast("f32", binary("and", bitcast("u32", x()), u32(7))),
  ),
  "a nonzero initial value": sum((k) => x(k), 1),
  "a product over a loop": [
    var_("acc", x()),
    for_("k", u32(0), u32(4), [set("acc", mul(acc, x(local("k", "u32"))))]),
    ...put(acc),
  ],
  "a constant in shared memory": through(f32(2)),
};

function degreeOf(body: readonly Stmt[]) {
  const binding = (name: string, access: "read" | "write") =>
    ({ name, type: "f32", access }) as const;
  return degreesOf({
    name: "k",
    workgroupSize: 1,
    bindings: [
      binding("x", "read"),
      binding("w", "read"),
      binding("y", "write"),
    ],
    shared: [{ name: "s", type: "f32", length: 1 }],
    body,
  }, new Set(["x"])).get("y");
}

t.test("linear kernels", (t) => {
  for (const [name, body] of Object.entries(LINEAR)) {
    t.equal(degreeOf(body), name === "zero" ? "zero" : "linear", name);
  }
  t.end();
});

t.test("other kernels", (t) => {
  for (const [name, body] of Object.entries(OTHER)) {
    const found = degreeOf(body);
    t.ok(found === "other" || found === "free", `${name}: ${found}`);
  }
  t.end();
});

t.test("slowly converging and deep trees take no time", (t) => {
  const many = Array.from({ length: 400 }, (_, i) => i);
  const slow: Stmt[] = [
    ...many.map((i) => var_(`v${i}`, f32(0))),
    ...many.slice(1).map((i) => set(`v${i - 1}`, local(`v${i}`, "f32"))),
    set("v399", x()),
    ...put(local("v0", "f32")),
  ];
  t.equal(degreeOf(slow), "other", "the analysis gives up");
  let deep = x();
  for (let i = 0; i < 400; i++) deep = call("fma", w(), deep, x());
  t.equal(degreeOf(put(deep)), "linear");
  t.end();
});
