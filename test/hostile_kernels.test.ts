// Untrusted kernels: printing is fast, loops terminate, and WebAssembly matches the interpreter.
// needs: cpu
import t from "tap";
import fc from "fast-check";
import { divergentBarriers } from "../spec/kernel/barrier_control.ts";
import {
  add,
  barrier,
  binary,
  f32,
  for_,
  id,
  if_,
  let_,
  load,
  loads,
  local,
  lt,
  mul,
  set,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../spec/kernel/tree.ts";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import { readTree } from "../spec/kernel/verify/tree.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { runWasm } from "./helpers/run_wasm.ts";
import { RUNS } from "./helpers/seed.ts";

function kernel(body: readonly Stmt[]): Kernel {
  return {
    name: "hostile",
    workgroupSize: 16,
    shared: [],
    bindings: [
      { name: "a", type: "f32", access: "read" },
      { name: "n", type: "u32", access: "read" },
      { name: "y", type: "f32", access: "read_write" },
    ],
    body,
  };
}

const LENGTH = 160;

function data(): { [name: string]: Uint32Array } {
  const a = new Float32Array(LENGTH).map((_, i) => i + 1);
  return {
    a: new Uint32Array(a.buffer),
    n: new Uint32Array(LENGTH).map((_, i) => i < 4 ? 2 ** 32 - 1 - i : i),
    y: new Uint32Array(LENGTH),
  };
}

const u = (name: string) => local(name, "u32");
const group = id("group.x");
const at = let_("i", add(mul(group, u32(16)), id("local")));
const sumOf = (index: Expr) =>
  set("sum", add(local("sum", "f32"), load("a", index)));
const end = store("y", u("i"), local("sum", "f32"));

/** Each variable uses the previous one twice. */
function chain(length: number, fn: "add" | "mul"): Stmt[] {
  return [
    let_("c0", add(group, u32(1))),
    ...Array.from(
      { length },
      (_, n) => let_(`c${n + 1}`, binary(fn, u(`c${n}`), u(`c${n}`))),
    ),
    for_("q", u32(0), u32(8), [sumOf(add(u(`c${length}`), u("q")))]),
  ];
}

/** Each variable is the previous one plus 1. */
function ladder(length: number): Stmt[] {
  return [
    let_("c0", group),
    ...Array.from(
      { length },
      (_, n) => let_(`c${n + 1}`, add(u(`c${n}`), u32(1))),
    ),
    for_("q", u32(0), u32(8), [
      sumOf(sub(add(u(`c${length}`), u("q")), u32(length))),
    ]),
  ];
}

/** Each variable takes one more iteration to infer than the next one. */
function backward(length: number): Stmt[] {
  const before = (n: number) => n === length - 1 ? u("i") : u(`v${n + 1}`);
  return [
    ...Array.from({ length }, (_, n) => var_(`v${n}`, u32(n))),
    for_("q", u32(0), u32(3), [
      ...Array.from({ length }, (_, n) => set(`v${n}`, before(n))),
      sumOf(u("v0")),
    ]),
  ];
}

const HOSTILE: { readonly [title: string]: readonly Stmt[] } = {
  "sums of sums": chain(40, "add"),
  "products of products": chain(40, "mul"),
  "sums upon sums": ladder(4000),
  "variables that depend on the next one": backward(2000),
  "steps that overflow 32 bits in four iterations": [
    for_(
      "q",
      u32(0),
      u32(0x90000000),
      [sumOf(add(group, u("q")))],
      u32(2 ** 30),
    ),
  ],
  "the same without the counter": [
    for_("q", u32(0), u32(0x90000000), [sumOf(group)], u32(2 ** 30)),
  ],
  "strides that overflow 32 bits": [
    for_(
      "q",
      u32(0),
      u32(2 ** 16),
      [sumOf(mul(u("q"), u32(0x7fffff)))],
      u32(2 ** 12),
    ),
  ],
  "strides of an outer loop that overflow 32 bits": [
    for_("s", u32(0), u32(513), [
      for_("q", u32(0), u32(16), [
        sumOf(add(mul(u("s"), u32(2 ** 23)), u("q"))),
      ]),
    ]),
  ],
  "a constant end whose step overflows 32 bits": [
    for_("q", u32(2 ** 32 - 64), u32(2 ** 32 - 1), [sumOf(u("i"))], u32(7)),
  ],
  "a loaded end whose step overflows 32 bits": [
    for_(
      "q",
      u32(2 ** 32 - 64),
      load("n", u32(0), "u32"),
      [sumOf(u("i"))],
      u32(7),
    ),
  ],
  "divergent ends whose step overflows 32 bits": [
    for_(
      "q",
      u32(2 ** 32 - 64),
      load("n", id("local"), "u32"),
      [sumOf(u("i"))],
      u32(7),
    ),
  ],
};

for (const [title, body] of Object.entries(HOSTILE)) {
  t.test(title, (t) => {
    const k = kernel([at, var_("sum", f32(0)), ...body, end]);
    t.strictSame(readTree(k).faults, []);
    const [wanted, vectors, singles] = [data(), data(), data()];
    interpretKernel(k, wanted, [3, 1, 1]);
    runWasm(k, vectors, [3, 1, 1]);
    runWasm(k, singles, [3, 1, 1], { lanes: 1 });
    t.ok(wanted.y!.some((word) => word !== 0), "writes something");
    t.strictSame(vectors.y, wanted.y, "vectors");
    t.strictSame(singles.y, wanted.y, "single invocations");
    t.end();
  });
}

t.test("WGSL loops end where the tree's loops end", (t) => {
  const to = load("n", u32(0), "u32");
  const loops: readonly (readonly [Stmt, string])[] = [
    [for_("q", u32(0), to, [], u32(7)), "q < min(n[0u], 4294967288u); q += 7u"],
    [for_("q", u32(0), to, []), "q < n[0u]; q += 1u"],
    [
      for_("q", u32(0), u32(2 ** 32 - 1), [], u32(2)),
      "q < 4294967292u; q += 2u",
    ],
    [for_("q", u32(0), u32(64), [], u32(8)), "q < 64u; q += 8u"],
  ];
  for (const [loop, head] of loops) {
    t.match(printWgsl(kernel([loop])), `for (var q = 0u; ${head}) {`);
  }
  t.end();
});

t.test("possibly endless loops are rejected by name", (t) => {
  const v = u("v");
  const again = set("v", add(v, u32(1)));
  const wrong: readonly (readonly [readonly Stmt[], string])[] = [
    [
      [for_("q", u32(0), u32(10), [], sub(group, group))],
      "the step of loop 'q' is no constant",
    ],
    [
      [for_("q", u32(0), u32(10), [], u32(0))],
      "loop 'q' never ends: its step is 0",
    ],
    [
      [var_("v", u32(1)), for_("q", u32(0), v, [again])],
      "the end of loop 'q' changes inside of it",
    ],
    [
      [for_("q", u32(0), load("y", u32(0), "u32"), [
        store("y", u32(0), u("q")),
      ])],
      "the end of loop 'q' changes inside of it",
    ],
  ];
  for (const [body, fault] of wrong) {
    const k = kernel(body);
    const bindings = k.bindings.map((b) => ({ ...b, type: "u32" as const }));
    t.strictSame(readTree({ ...k, bindings }).faults, [fault]);
  }
  t.end();
});

t.test("the size of a kernel tree is limited", (t) => {
  const many = Array.from({ length: 20_000 }, (_, n) => let_(`v${n}`, u32(n)));
  t.match(readTree(kernel(many)).faults, [
    "its tree has 40000 statements and expressions, and at most 32768 are allowed",
  ]);
  t.end();
});

/** Bodies with barriers in loops and conditions, some of them divergent. */
const { body: NESTED } = fc.letrec<{ body: Stmt[]; stmt: Stmt }>((tie) => {
  const name = fc.constantFrom("v0", "v1", "v2", "v3");
  const value = fc.oneof(
    fc.constantFrom(group, id("local"), u32(2)),
    fc.tuple(fc.constantFrom("n", "m"), name).map(([binding, name]) =>
      load(binding, u(name), "u32")
    ),
    fc.tuple(name, name).map(([a, b]) => add(u(a), u(b))),
  );
  return {
    body: fc.array(tie("stmt"), { maxLength: 4 }),
    stmt: fc.oneof(
      { depthSize: "small" },
      fc.constant(null).map(barrier),
      fc.tuple(name, value).map(([name, value]) => set(name, value)),
      fc.tuple(value, tie("body"), tie("body")).map(([value, then, others]) =>
        if_(lt(value, u32(3)), then, others)
      ),
      fc.tuple(fc.nat(1e9), value, value, tie("body")).map(
        ([n, end, value, body]) =>
          for_(`q${n}`, u32(0), end, [
            set("v0", u(`q${n}`)),
            let_(`l${n}`, value),
            set("v1", u(`l${n}`)),
            loads([`a${n}`, `b${n}`], {
              binding: "n",
              index: value,
              type: "u32",
            }),
            set("v2", u(`b${n}`)),
            ...body,
          ]),
      ),
    ),
  };
});

t.test("divergent barriers are found by a pass over barriers alone", (t) => {
  const found = { none: 0, some: 0 };
  fc.assert(
    fc.property(NESTED, (body) => {
      const one: Kernel = {
        ...kernel([
          ...[0, 1, 2, 3].map((n) => var_(`v${n}`, u32(n))),
          ...body,
        ]),
        bindings: [
          { name: "n", type: "u32", access: "read" },
          { name: "m", type: "u32", access: "read_write" },
        ],
      };
      const { divergent } = readTree(one);
      found[divergent.size > 0 ? "some" : "none"]++;
      const faster = divergentBarriers(one);
      t.equal(faster.size, divergent.size);
      t.ok([...divergent].every((barrier) => faster.has(barrier)));
    }),
    { numRuns: 300 * RUNS },
  );
  t.ok(found.some > 10 && found.none > 10, JSON.stringify(found));
  t.end();
});
