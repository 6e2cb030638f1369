/** WGSL of kernels: golden files, names, constants, costs. */
// needs: cpu, gpu

import { readFileSync } from "node:fs";
import t from "tap";
import {
  add,
  binary,
  bitcast,
  call,
  convert,
  f32,
  for_,
  i32,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  neg,
  select,
  set,
  sharedStore,
  store,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import { kernelCost } from "../spec/kernel/cost.ts";
import type { BinaryOp, Binding, Expr, Kernel } from "../spec/kernel/tree.ts";
import { type KernelText, wgsl } from "../spec/kernel/text/text.ts";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import {
  elementwise,
  kernelOf,
  lengthAt,
  matmul,
  reads,
  rmsNorm,
  writes,
} from "../compiler/kernels/mod.ts";
import { blockedSum } from "../compiler/kernels/pieces/blocked_sum.ts";
import { type MatmulTile } from "../compiler/tuning/mod.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { bits, rowMajor, testKernels } from "./helpers/run_kernel.ts";

/** Recorded text of a kernel. */
function golden(name: string): string {
  return readFileSync(
    new URL(`fixtures/wgsl/${name}.wgsl`, import.meta.url),
    "utf8",
  );
}

/** A kernel that writes one f32. */
function writing(value: Expr): Kernel {
  return kernelOf({
    name: "value",
    workgroupSize: 1,
    bindings: [reads("x"), writes("y")],
    body: [store("y", u32(0), value)],
  });
}

/** The expression printed by `writing`. */
function printed(value: Expr): string {
  return /y\[0u\] = (.*);/.exec(printWgsl(writing(value)))![1]!;
}

t.test("printWgsl() of an elementwise kernel", (t) => {
  const kernel = elementwise({
    name: "silu",
    count: lengthAt(2),
    bindings: [reads("x"), writes("y")],
    body: (i) => {
      const x = load("x", i);
      return [
        store("y", i, binary("div", x, add(f32(1), call("exp", neg(x))))),
      ];
    },
  });
  t.equal(
    printWgsl(kernel),
    `@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> lengths: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = ((group.x + (group.y * 65535u)) * 64u) + lane;
  if (i < lengths[2u]) {
    y[i] = x[i] / (1.0f + exp(-x[i]));
  }
}
`,
  );
  t.end();
});

t.test("printWgsl() of a row norm and a matmul", (t) => {
  const norm = rmsNorm({
    name: "norm",
    rows: u32(3),
    length: 40,
    epsilon: 1e-5,
    bindings: [reads("x"), writes("y")],
    load: rowMajor("x", 40),
    epilogue: (
      row,
      i,
      value,
    ) => [store("y", add(mul(row, u32(40)), i), value(i))],
  });
  t.equal(printWgsl(norm), golden("norm"));
  t.equal(
    printWgsl(product({ rows: 1, columns: 2, lanes: 4 })),
    golden("matmul"),
  );
  t.end();
});

t.test("printWgsl() of variants of a matmul", (t) => {
  const variants: { readonly [file: string]: MatmulTile } = {
    matmul_workgroup: { rows: 2, columns: 2, lanes: 4, left: "workgroup" },
    matmul_vector: { rows: 1, columns: 4, lanes: 4, right: "vector" },
    matmul_split: { rows: 1, columns: 2, lanes: 8, split: 2 },
  };
  for (const [file, tile] of Object.entries(variants)) {
    t.equal(printWgsl(product(tile, { k: 96 })), golden(file), file);
  }
  t.end();
});

t.test("printWgsl() shares row loads within a subgroup", (t) => {
  const row = (n: string) => load("x", add(local(n, "u32"), local("k", "u32")));
  const kernel = (by: Expr, workgroupSize = 8): Kernel =>
    kernelOf({
      name: "rows",
      workgroupSize,
      bindings: [reads("x"), writes("y")],
      body: [
        let_("p", mul(by, u32(3))),
        let_("q", add(by, u32(5))),
        var_("sum", f32(0)),
        for_("k", u32(0), u32(9), [
          let_("a", row("p")),
          let_("b", row("q")),
          set(
            "sum",
            call(
              "fma",
              local("a", "f32"),
              local("b", "f32"),
              local("sum", "f32"),
            ),
          ),
        ]),
        store("y", id("local"), local("sum", "f32")),
      ],
    });
  const text = printWgsl(kernel(id("group.x")), { subgroup: 4 });
  t.match(text, "let p_of_a = select(p, q, subgroup_lane == 1u);");
  t.match(text, "let a_of_lanes = x[p_of_a + k];");
  t.match(text, "let b = subgroupBroadcast(a_of_lanes, 1u);");
  for (
    const [title, printed] of Object.entries({
      "not requested": printWgsl(kernel(id("group.x"))),
      "rows differ": printWgsl(kernel(id("local")), { subgroup: 4 }),
      "subgroups are not full": printWgsl(kernel(id("group.x"), 6), {
        subgroup: 4,
      }),
    })
  ) {
    t.notMatch(printed, "subgroup", title);
  }
  t.end();
});

/** Sums of products of rows. `shared`: whether the subgroup may share their loads. */
const ROWS: {
  readonly [title: string]: {
    readonly shared: boolean;
    readonly body: KernelText;
  };
} = {
  "two consecutive loops": {
    shared: true,
    body: wgsl`
      for (var k = 0u; k < 4; k++) {
        let a = x[p + k];
        let b = x[q + k];
        s = fma(a, b, s);
      }
      for (var k = 0u; k < 4; k++) {
        let a = x[p + k];
        let b = x[r + k];
        s = fma(a, b, s);
      }`,
  },
  "a nested loop with equal names": {
    shared: true,
    body: wgsl`
      for (var i = 0u; i < 3; i++) {
        for (var k = 0u; k < 2; k++) {
          let a = x[p + k];
          let b = x[q + k];
          s = fma(a, b, s);
        }
        let a = x[p + i];
        let c = x[r + i];
        s = fma(a, c, s);
      }`,
  },
  "a divergent end of the next iteration": {
    shared: false,
    body: wgsl`
      var n = 1u;
      for (var i = 0u; i < 2; i++) {
        let stop = n;
        for (var k = 0u; k < stop; k++) {
          let a = x[p + k];
          let b = x[q + k];
          s = fma(a, b, s);
        }
        n = lane + 1;
      }`,
  },
  "a barrier that depends on loads": {
    shared: false,
    body: wgsl`
      for (var k = 0u; k < 4; k++) {
        let a = x[p + k];
        let b = x[q + k];
        if (a < b) {
          workgroupBarrier();
          s = fma(a, b, s);
        }
      }`,
  },
  "a barrier that does not": {
    shared: true,
    body: wgsl`
      for (var k = 0u; k < 4; k++) {
        let a = x[p + k];
        let b = x[q + k];
        workgroupBarrier();
        s = fma(a, b, s);
      }`,
  },
};

for (const [title, { shared, body }] of Object.entries(ROWS)) {
  testKernels(
    `printWgsl() shares loads only if valid: ${title}`,
    async (t, target) => {
      const kernel = kernelOf({
        name: "rows",
        workgroupSize: 32,
        bindings: [reads("x"), writes("y")],
        body: wgsl`
          let p = group.x * 3;
          let q = group.x + 5;
          let r = 20 - group.x;
          var s = 0.0;
          ${body}
          y[group.x * 32 + lane] = s;`,
      });
      const text = printWgsl(kernel, { subgroup: 8 });
      t.equal(/subgroupBroadcast/.test(text), shared);
      const x = Float32Array.from({ length: 64 }, (_, i) => (i * 5) % 11 + 1);
      const wanted = { x: Uint32Array.from(bits(x)), y: new Uint32Array(64) };
      interpretKernel(kernel, wanted, [2, 1, 1]);
      const y = new Float32Array(64);
      const found = await target.run(kernel, { x, y }, [2, 1, 1]);
      t.notOk(wanted.y.includes(0), "sums are not empty");
      t.strictSame(bits(found["y"]!), bits(wanted.y));
    },
  );
}

t.test("matmul() and blockedSum() reject segments that are not a power of two", (t) => {
  const refused = { message: /segments are a power of two/ };
  const tile = { rows: 1, columns: 2, lanes: 4 };
  t.throws(() => product(tile, { k: 96, segments: 3 }), refused);
  t.throws(() => blockedSum("sum", { length: 96, segments: 3 }, []), refused);
  t.end();
});

/** A product with bf16 weights. */
function product(
  tile: MatmulTile,
  { k = 40, segments = 1 }: {
    readonly k?: number;
    readonly segments?: number;
  } = {},
): Kernel {
  return matmul({
    name: "matmul",
    k,
    segments,
    columns: 6,
    tile,
    rows: lengthAt(0),
    bindings: [reads("x"), reads("w", "u32"), writes("y")],
    weights: [{ binding: "w", stored: "bf16", rowStride: 8 }],
    leftRow: (row) => mul(row, u32(k)),
    left: (base, k) => load("x", add(base, k)),
    epilogue: (at, [sum]) => [
      store("y", add(mul(at.row, u32(6)), at.column), sum!),
    ],
  });
}

t.test("printWgsl() prints constants that parse to the same value", (t) => {
  t.equal(printed(f32(0.1)), "0.1f");
  t.equal(printed(f32(1)), "1.0f");
  t.equal(printed(f32(-1.5e-8)), "-1.5e-8f");
  t.equal(printed(f32(3.4028234663852886e38)), "3.4028234663852886e+38f");
  t.equal(printed(f32(Infinity)), "bitcast<f32>(special_bits.x)");
  t.equal(printed(neg(f32(-2))), "-bitcast<f32>(3221225472u | special_bits.z)");
  t.end();
});

t.test("printWgsl() prints no constant expressions, which WGSL rejects if they wrap", (t) => {
  const x = convert("u32", load("x", u32(0)));
  const plain = (fn: BinaryOp, a: Expr, b: Expr): Expr => ({
    op: "binary",
    type: "u32",
    fn,
    a,
    b,
  });
  const word = (e: Expr) => printed(convert("f32", e)).slice(4, -1);
  t.equal(word(plain("shl", x, u32(40))), "u32(x[0u]) << 8u");
  t.equal(word(plain("rem", x, u32(0))), "u32(x[0u]) % 1u");
  t.equal(
    word(plain("add", u32(2 ** 32 - 1), u32(1))),
    "(4294967295u | special_bits.z) + 1u",
  );
  t.equal(
    printed(convert("f32", i32(-(2 ** 31)))),
    "f32(bitcast<i32>(2147483648u | special_bits.z))",
  );
  t.end();
});

t.test("printWgsl() keeps the order of operations with parentheses", (t) => {
  const x = load("x", u32(0));
  t.equal(printed(binary("rem", x, add(x, f32(2)))), "x[0u] % (x[0u] + 2.0f)");
  t.equal(printed(mul(add(x, x), x)), "(x[0u] + x[0u]) * x[0u]");
  t.equal(printed(binary("min", x, f32(2))), "min(x[0u], 2.0f)");
  t.equal(
    printed(select(lt(x, f32(0)), f32(1), x)),
    "select(x[0u], 1.0f, x[0u] < 0.0f)",
  );
  t.end();
});

t.test("printWgsl() prints no comparisons that parse as a template", (t) => {
  // Only after a name: `v < 1.0f, v > 2.0f` would parse as `v<1.0f, v>` of 2.0.
  const v = local("v", "f32");
  const [a, b] = [lt(v, f32(1)), binary("gt", v, f32(2))];
  const chosen = select(lt(v, f32(3)), b, a);
  const text = printWgsl({
    ...writing(load("x", u32(0))),
    body: [
      let_("v", load("x", u32(0))),
      store("y", u32(0), select(chosen, f32(4), f32(5))),
    ],
  });
  t.match(text, "select((v < 1.0f), v > 2.0f, v < 3.0f)");
  t.end();
});

t.test("printWgsl() rejects undeclared names", (t) => {
  t.throws(
    () => printWgsl(writing(local("nowhere", "f32"))),
    { message: /Cannot print kernel 'value': 'nowhere' is not declared/ },
  );
  t.end();
});

t.test("kernelCost() counts the work of one invocation", (t) => {
  const lengths: Binding = { name: "lengths", type: "u32", access: "read" };
  const kernel = (length: Expr): Kernel => ({
    ...writing(f32(0)),
    bindings: [reads("x"), writes("y"), lengths],
    body: [
      var_("sum", f32(0)),
      for_("block", u32(0), u32(70), [
        for_(
          "k",
          local("block", "u32"),
          binary("min", add(local("block", "u32"), u32(32)), length),
          [
            set(
              "sum",
              call(
                "fma",
                load("x", local("k", "u32")),
                f32(2),
                local("sum", "f32"),
              ),
            ),
          ],
        ),
      ], u32(32)),
      store("y", u32(0), local("sum", "f32")),
    ],
  });
  t.same(kernelCost(kernel(u32(70))), {
    multiplyAdds: 70,
    loadBytes: 280,
    storeBytes: 4,
    exact: true,
  });
  t.equal(kernelCost(kernel(lengthAt(0))).exact, false);
  const x = load("x", u32(0));
  const write = (value: Expr) => store("y", u32(0), value);
  const branches: Kernel = {
    ...writing(f32(0)),
    bindings: [reads("x"), writes("y")],
    body: [
      if_(lt(x, f32(0)), [write(call("fma", x, x, x))], [write(f32(0))]),
    ],
  };
  t.match(kernelCost(branches), {
    multiplyAdds: 1,
    loadBytes: 16,
    storeBytes: 4,
  });
  t.end();
});

testKernels(
  "printWgsl() makes any name legal and keeps special values",
  async (t, target) => {
    const at = (name: string) =>
      ({ name, type: "f32", access: "read_write" }) as const;
    const names = ["layers.0.fn", "vec3f", "y"];
    const x = local("max", "f32");
    const kernel: Kernel = {
      name: "odd names",
      workgroupSize: 1,
      bindings: names.map(at),
      shared: [{ name: "group", type: "f32", length: 1 }],
      body: [
        let_("max", load("vec3f", u32(0))),
        let_("var", binary("max", x, f32(-Infinity))),
        var_("y", call("abs", local("var", "f32"))),
        sharedStore("group", u32(0), local("y", "f32")),
        if_(lt(f32(-Infinity), x), [
          store("y", u32(0), {
            op: "shared",
            type: "f32",
            array: "group",
            index: u32(0),
          }),
          store("y", u32(1), f32(-Infinity)),
          store("y", u32(2), f32(NaN)),
          store("layers.0.fn", u32(0), bitcast("f32", u32(0x3f800000))),
        ]),
      ],
    };
    const result = await target.run(kernel, {
      "layers.0.fn": new Float32Array(1),
      vec3f: Float32Array.of(-3),
      y: new Float32Array(3),
    }, [1, 1, 1]);
    t.same([...result["y"]!], [3, -Infinity, NaN]);
    t.same([...result["layers.0.fn"]!], [1]);
  },
);
