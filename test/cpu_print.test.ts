/** Kernels printed as WebAssembly: the bits of the interpreter. */

import t, { type Test } from "tap";
import {
  add,
  and,
  barrier,
  binary,
  bitcast,
  call,
  convert,
  div,
  eq,
  f32,
  fma,
  for_,
  i32,
  id,
  if_,
  let_,
  load,
  loadStored,
  local,
  lt,
  max,
  min,
  mul,
  neg,
  rem,
  select,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../spec/kernel/tree.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { runWasm } from "./helpers/run_wasm.ts";

function kernel(
  body: readonly Stmt[],
  options: {
    workgroupSize?: number;
    shared?: Kernel["shared"];
    outType?: "f32" | "u32";
  } = {},
): Kernel {
  return {
    name: "test",
    workgroupSize: options.workgroupSize ?? 16,
    shared: options.shared ?? [],
    bindings: [
      { name: "a", type: "f32", access: "read" },
      { name: "n", type: "u32", access: "read" },
      { name: "y", type: options.outType ?? "f32", access: "read_write" },
    ],
    body,
  };
}

const LENGTH = 203;
function data(): { [name: string]: Uint32Array } {
  const a = new Float32Array(LENGTH).map((_, i) => Math.sin((i + 1) * 1.7) * 3);
  return {
    a: new Uint32Array(a.buffer),
    n: new Uint32Array(LENGTH).map((_, i) => ((i + 1) * 7919) % 31),
    y: new Uint32Array(LENGTH),
  };
}

/** Checks that vectors, single invocations and the interpreter store the same bits. */
function check(
  test: Test,
  k: Kernel,
  groups: readonly [number, number, number] = [3, 1, 1],
) {
  const [vectors, singles, wanted] = [data(), data(), data()];
  interpretKernel(k, wanted, groups);
  runWasm(k, vectors, groups);
  runWasm(k, singles, groups, { lanes: 1 });
  test.ok(wanted.y!.some((w) => w !== 0), "writes something");
  test.same(vectors.y, wanted.y, "vectors");
  test.same(singles.y, wanted.y, "single invocations");
}

const g = id("group.x");
const l = id("local");
const at = let_("i", add(mul(g, u32(16)), l));
const i = local("i", "u32");

const BODIES: { readonly [name: string]: Stmt[] } = {
  "contiguous load and store": [at, store("y", i, load("a", i))],
  "a store beyond the end is dropped": [
    at,
    store("y", add(i, u32(LENGTH - 20)), load("a", i)),
  ],
  "uniform, strided and gathered loads": [
    at,
    store(
      "y",
      i,
      add(
        load("a", add(g, u32(3))),
        load("a", mul(i, u32(2))),
        load("a", load("n", i, "u32")),
        load("a", div(l, u32(8))),
        load("a", rem(l, u32(8))),
        load("a", div(i, u32(3))),
      ),
    ),
  ],
  "a contiguous load that begins before the array": [
    at,
    store(
      "y",
      i,
      select(lt(u32(1), i), load("a", sub(i, u32(2))), f32(-1)),
    ),
  ],
  "a scattered store": [
    at,
    store("y", add(mul(i, u32(3)), u32(1)), load("a", i)),
  ],
  "a divergent if and else, with an outer variable": [
    at,
    var_("v", f32(1)),
    if_(lt(load("n", i, "u32"), u32(12)), [
      set("v", load("a", i)),
      if_(eq(rem(i, u32(3)), u32(0)), [set("v", f32(9))]),
      var_("w", f32(2)),
      set("w", add(local("w", "f32"), local("v", "f32"))),
      store("y", i, local("w", "f32")),
    ], [
      set("v", f32(5)),
      store("y", i, neg(local("v", "f32"))),
    ]),
    store("y", add(i, u32(64)), local("v", "f32")),
  ],
  "a uniform if": [
    at,
    if_(eq(g, u32(1)), [store("y", i, f32(1))], [store("y", i, f32(2))]),
  ],
  "a guard within a vector": [
    at,
    if_(lt(i, u32(37)), [store("y", i, load("a", i))]),
  ],
  "a guard at a multiple of four": [
    at,
    if_(lt(i, u32(36)), [store("y", i, load("a", i))]),
  ],
  "a loop with a bound per invocation": [
    at,
    var_("s", f32(0)),
    for_("k", u32(0), load("n", i, "u32"), [
      set(
        "s",
        fma(load("a", add(i, local("k", "u32"))), f32(0.5), local("s", "f32")),
      ),
    ]),
    store("y", i, local("s", "f32")),
  ],
  "a loop from the invocation index": [
    at,
    var_("s", f32(0)),
    for_("k", l, u32(51), [
      set("s", add(local("s", "f32"), load("a", local("k", "u32")))),
    ], u32(16)),
    store("y", i, local("s", "f32")),
  ],
  "an unrolled loop over rows, with a remainder": [
    at,
    let_("row", mul(g, u32(40))),
    var_("s", f32(0)),
    for_("k", u32(1), add(u32(30), g), [
      let_("c", add(local("row", "u32"), local("k", "u32"))),
      set(
        "s",
        fma(
          load("a", local("c", "u32")),
          load("a", add(mul(local("k", "u32"), u32(4)), l, u32(2))),
          local("s", "f32"),
        ),
      ),
    ]),
    store("y", i, local("s", "f32")),
  ],
  "a loop with loads beyond the array": [
    at,
    var_("s", f32(0)),
    for_("k", u32(0), u32(32), [
      let_("c", add(i, mul(local("k", "u32"), u32(9)))),
      set(
        "s",
        add(
          local("s", "f32"),
          select(
            lt(local("c", "u32"), u32(LENGTH)),
            load("a", local("c", "u32")),
            f32(0.25),
          ),
        ),
      ),
    ]),
    store("y", i, local("s", "f32")),
  ],
  "a dynamic stride": [
    at,
    let_("stride", load("n", u32(1), "u32")),
    var_("s", f32(0)),
    for_("b", u32(0), u32(2), [
      for_("k", u32(0), u32(5), [
        set(
          "s",
          fma(
            load(
              "a",
              add(
                mul(
                  add(mul(local("b", "u32"), u32(2)), local("k", "u32")),
                  local("stride", "u32"),
                ),
                l,
              ),
            ),
            f32(1.5),
            local("s", "f32"),
          ),
        ),
      ]),
    ]),
    store("y", i, local("s", "f32")),
  ],
  "sixteen-bit floats": [
    at,
    store(
      "y",
      i,
      add(loadStored("n", "f16", i), loadStored("a", "bf16", i)),
    ),
  ],
  "nested loops, within arrays and beyond; a variable that only the outer one sets":
    [
      at,
      var_("total", f32(0.5)),
      for_("segment", u32(0), u32(4), [
        let_("first", mul(local("segment", "u32"), u32(16))),
        var_("part", f32(0)),
        for_("k", local("first", "u32"), add(local("first", "u32"), u32(16)), [
          set(
            "part",
            fma(
              load("a", add(mul(g, u32(70)), local("k", "u32"))),
              load("a", add(i, mul(local("segment", "u32"), u32(40)))),
              local("part", "f32"),
            ),
          ),
        ]),
        if_(lt(load("n", i, "u32"), u32(20)), [
          set("total", add(local("total", "f32"), local("part", "f32"))),
        ]),
      ]),
      store("y", i, local("total", "f32")),
    ],
  "nested loops far beyond arrays, and at the end of 32 bits": [
    at,
    var_("total", f32(0.5)),
    for_("segment", u32(0), u32(4), [
      for_("k", u32(0), u32(16), [
        let_(
          "c",
          add(mul(local("segment", "u32"), u32(16)), local("k", "u32")),
        ),
        set(
          "total",
          add(
            local("total", "f32"),
            load("a", add(mul(g, u32(2 ** 16 + 8)), local("c", "u32"))),
            load("a", add(mul(g, u32(2 ** 32 - 20)), local("c", "u32"))),
          ),
        ),
      ]),
    ]),
    store("y", i, local("total", "f32")),
  ],
  "loops whose ends are limited at 2^32": [
    at,
    var_("total", f32(0.5)),
    let_("from", add(g, u32(2 ** 32 - 9))),
    ...[u32(2 ** 32 - 9), local("from", "u32")].map((from) =>
      for_("k", from, add(from, u32(8)), [
        set("total", add(local("total", "f32"), load("a", g))),
      ], u32(2))
    ),
    store("y", i, local("total", "f32")),
  ],
  "the same name twice": [
    at,
    for_("k", u32(0), u32(2), [
      let_("v", f32(1)),
      store("y", i, local("v", "f32")),
    ]),
    for_("k", u32(0), u32(3), [
      let_("v", convert("f32", local("k", "u32"))),
      store("y", add(i, u32(50)), local("v", "f32")),
    ]),
  ],
  "one invocation stores": [
    if_(eq(rem(add(l, u32(3)), u32(4)), u32(3)), [
      store("y", g, convert("f32", add(g, l))),
    ]),
  ],
};

for (const [name, body] of Object.entries(BODIES)) {
  t.test(`printKernels(): ${name}`, (test) => {
    for (const workgroupSize of [16, 4, 6, 1]) {
      check(test, kernel(body, { workgroupSize }));
    }
    test.end();
  });
}

t.test("printKernels(): barriers, shared memory and variables live across them", (test) => {
  for (const workgroupSize of [16, 4, 8, 6]) {
    const w = u32(workgroupSize);
    const at = let_("i", add(mul(g, w), l));
    check(
      test,
      kernel([
        at,
        let_("scale", load("a", g)),
        var_("total", f32(0)),
        var_("count", u32(0)),
        for_("round", u32(0), add(g, u32(2)), [
          let_("mine", add(l, local("round", "u32"))),
          sharedStore("s", l, load("a", local("mine", "u32"))),
          sharedStore("n", sub(sub(w, u32(1)), l), local("mine", "u32")),
          barrier(),
          set("count", add(local("count", "u32"), u32(1))),
          for_("k", u32(0), w, [
            set(
              "total",
              fma(
                shared("s", local("k", "u32")),
                local("scale", "f32"),
                local("total", "f32"),
              ),
            ),
          ]),
          set(
            "total",
            add(
              local("total", "f32"),
              convert("f32", shared("n", local("mine", "u32"), "u32")),
            ),
          ),
          barrier(),
        ]),
        if_(eq(g, u32(1)), [
          sharedStore("s", l, local("total", "f32")),
          barrier(),
          set("total", shared("s", sub(sub(w, u32(1)), l))),
        ]),
        store(
          "y",
          local("i", "u32"),
          add(local("total", "f32"), convert("f32", local("count", "u32"))),
        ),
      ], {
        workgroupSize,
        shared: [
          { name: "s", type: "f32", length: workgroupSize },
          { name: "n", type: "u32", length: workgroupSize + 4 },
        ],
      }),
    );
  }
  test.end();
});

t.test("printKernels(): phases of the first invocations of a workgroup", (test) => {
  const workgroupSize = 16;
  const word = local("place", "u32");
  check(
    test,
    kernel([
      let_("team", div(l, u32(4))),
      let_(
        "place",
        add(mul(g, u32(40)), add(l, mul(local("team", "u32"), u32(2)))),
      ),
      sharedStore("s", l, load("a", word)),
      barrier(),
      if_(lt(l, u32(5)), [store("y", word, shared("s", sub(u32(15), l)))]),
      barrier(),
      if_(lt(local("team", "u32"), u32(3)), [
        store("y", add(word, u32(20)), shared("s", add(l, u32(4)))),
      ]),
      barrier(),
      if_(lt(u32(5), l), [store("y", add(word, u32(10)), f32(7))]),
    ], {
      workgroupSize,
      shared: [{ name: "s", type: "f32", length: workgroupSize }],
    }),
  );
  test.end();
});

t.test("printKernels(): phases of the first invocations by a divisor of 0", (test) => {
  const workgroupSize = 64;
  check(
    test,
    kernel([
      if_(lt(div(l, u32(0)), u32(40)), [
        store("y", add(mul(g, u32(64)), l), f32(7)),
      ]),
    ], { workgroupSize }),
  );
  test.end();
});

t.test("printKernels(): group numbers in three dimensions", (test) => {
  const index = add(
    mul(add(mul(id("group.z"), u32(3)), id("group.y")), u32(2)),
    g,
  );
  check(
    test,
    kernel([
      store(
        "y",
        add(mul(index, u32(4)), l),
        convert("f32", add(index, u32(1))),
      ),
    ], { workgroupSize: 4 }),
    [2, 3, 4],
  );
  test.end();
});

t.test("printKernels(): a barrier in a divergent condition is rejected", (test) => {
  test.throws(
    () =>
      runWasm(
        kernel([if_(lt(l, u32(3)), [barrier()])]),
        data(),
        [1, 1, 1],
      ),
    /Cannot print kernel 'test': not every invocation/,
  );
  test.end();
});

const UINT: { readonly [name: string]: Expr } = {
  "i32 division": bitcast(
    "u32",
    div(
      sub(i32(9), convert("i32", load("n", i, "u32"))),
      sub(convert("i32", i), i32(5)),
    ),
  ),
  "u32 remainder by zero": rem(load("n", i, "u32"), rem(i, u32(3))),
  "i32 division by a u32 that is -1": bitcast(
    "u32",
    div(convert("i32", add(i, u32(2 ** 31))), convert("i32", u32(2 ** 32 - 1))),
  ),
  "uniform division by zero": div(add(g, u32(7)), g),
  "shifts": binary(
    "xor",
    binary("shl", load("n", i, "u32"), i),
    binary("shr", mul(i, u32(0x9e3779b1)), add(g, u32(3))),
  ),
  "signed shift and comparison": select(
    lt(convert("i32", load("n", i, "u32")), i32(-1)),
    u32(1),
    bitcast("u32", binary("shr", neg(convert("i32", i)), u32(2))),
  ),
  "conversion of large and negative floats": add(
    convert("u32", mul(load("a", i), f32(3e9))),
    bitcast("u32", convert("i32", mul(load("a", i), f32(-3e9)))),
  ),
  "bools": convert(
    "u32",
    and(
      { op: "unary", type: "bool", fn: "not", a: lt(load("a", i), f32(0)) },
      binary("lor", eq(g, u32(1)), lt(u32(3), l)),
    ),
  ),
  "min, max": min(max(load("n", i, "u32"), u32(7)), add(g, u32(15))),
};
for (const [name, value] of Object.entries(UINT)) {
  t.test(`printKernels(): ${name}`, (test) => {
    for (const workgroupSize of [16, 6]) {
      check(
        test,
        kernel([at, store("y", i, value)], { workgroupSize, outType: "u32" }),
      );
    }
    test.end();
  });
}

for (
  const fn of [
    "abs",
    "floor",
    "ceil",
    "trunc",
    "round",
    "sign",
    "sqrt",
    "rsqrt",
    "roundF16",
  ] as const
) {
  t.test(`printKernels(): ${fn} is exact`, (test) => {
    const x = mul(
      load("a", i),
      load("a", add(i, u32(1))),
      f32(fn === "roundF16" ? 1e-5 : 1.5),
    );
    check(
      test,
      kernel([
        at,
        store("y", i, call(fn, fn.endsWith("sqrt") ? call("abs", x) : x)),
      ]),
    );
    test.end();
  });
}
