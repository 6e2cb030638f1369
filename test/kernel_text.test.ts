/** Kernel text: parsed trees, and messages and positions of mistakes. */

import t from "tap";
import {
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
  loads,
  local,
  mul,
  select,
  set,
  shared,
  sharedStore,
  store,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import { expr, resolveStatements } from "../spec/kernel/text/resolve.ts";
import {
  type KernelText,
  KernelTextError,
  wgsl,
} from "../spec/kernel/text/text.ts";
import type { Expr, Stmt } from "../spec/kernel/tree.ts";
import { bindings, kernelOf } from "../compiler/kernels/kernel.ts";
import { MachineError } from "../spec/errors.ts";
import { MAX_ELEMENTS } from "../spec/limits.ts";

const BINDINGS = bindings(
  { x: "f32", words: "u32", index: "i32" },
  { y: "f32", counts: "u32" },
);

function statements(text: KernelText): readonly Stmt[] {
  return resolveStatements(text, BINDINGS).body;
}

/** Returns the expression of `let v = …;` after some variables. */
function valueOf(text: KernelText): Expr {
  const body = statements(wgsl`
    let a = 1u; let b = 2u; let c = 3i; let f = 1.0; let p = true;
    let v = ${text};`);
  const last = body.at(-1)!;
  return last.op === "let" ? last.value : u32(0);
}

const [A, B] = [local("a", "u32"), local("b", "u32")];
const [C, F] = [local("c", "i32"), local("f", "f32")];
const P = local("p", "bool");

const VALUES: readonly (readonly [KernelText, Expr])[] = [
  [wgsl`a + b * 2`, binary("add", A, mul(B, u32(2)))],
  [wgsl`(a + b) * 2`, mul(binary("add", A, B), u32(2))],
  [wgsl`a - b - 1`, binary("sub", binary("sub", A, B), u32(1))],
  [wgsl`a + 0`, A],
  [wgsl`6 * a / 1`, mul(u32(6), A)],
  [wgsl`0xffu`, u32(255)],
  [wgsl`-5i`, i32(-5)],
  [wgsl`-f`, { op: "unary", type: "f32", fn: "neg", a: F }],
  [wgsl`f * 2`, mul(F, f32(2))],
  [wgsl`1.5e-3`, f32(1.5e-3)],
  [wgsl`a & 7`, binary("and", A, u32(7))],
  [wgsl`(a >> 3u) & 1`, binary("and", binary("shr", A, u32(3)), u32(1))],
  [
    wgsl`a == 1 || b < 2`,
    binary("lor", binary("eq", A, u32(1)), binary("lt", B, u32(2))),
  ],
  [wgsl`!p`, { op: "unary", type: "bool", fn: "not", a: P }],
  [wgsl`u32(c)`, convert("u32", C)],
  [wgsl`f32(3)`, f32(3)],
  [wgsl`bitcast<u32>(f)`, bitcast("u32", F)],
  [wgsl`select(b, a, p)`, select(P, A, B)],
  [wgsl`select(0, f, p)`, select(P, F, f32(0))],
  [wgsl`max(a, 1)`, binary("max", A, u32(1))],
  [wgsl`fma(f, 2, x[a])`, call("fma", F, f32(2), load("x", A))],
  [wgsl`inverseSqrt(f)`, call("rsqrt", F)],
  [
    wgsl`unpack2x16float(words[a]).y`,
    call("unpackF16Hi", load("words", A, "u32")),
  ],
  [
    wgsl`group.z * 64 + lane`,
    binary("add", mul(id("group.z"), u32(64)), id("local")),
  ],
  [wgsl`u32(index[a])`, convert("u32", load("index", A, "i32"))],
  [wgsl`${3}u`, u32(3)],
  [wgsl`f + ${0.5}`, binary("add", F, f32(0.5))],
  [wgsl`max(f, ${-Infinity})`, binary("max", F, f32(-Infinity))],
  [wgsl`${B} * ${wgsl`a + b`}`, mul(B, binary("add", A, B))],
  [wgsl`x[${"a"}]`, load("x", A)],
];

t.test("expressions", (t) => {
  for (const [text, tree] of VALUES) {
    t.strictSame(valueOf(text), tree, text.template.strings.join("…"));
  }
  t.strictSame(
    expr`${A} + 1`,
    binary("add", A, u32(1)),
    "an expression of holes",
  );
  t.end();
});

t.test("statements", (t) => {
  const { body, shared: arrays } = resolveStatements(
    wgsl`
      var<workgroup> cells: array<u32, ${64}>;
      var total: f32 = 0; // declared with its type
      cells[lane] = 0;
      for (var k = lane; k < 64; k += ${2}) {
        let (s, t) = vec2(x)[k];
        total += s * t;
        cells[k]++;
      }
      workgroupBarrier();
      if (lane == 0) { y[0] = total; } else if (lane == 1) { counts[1] = cells[1]; } else { total = 1; }`,
    BINDINGS,
  );
  const [lane, k] = [id("local"), local("k", "u32")];
  const total = local("total", "f32");
  const product = mul(local("s", "f32"), local("t", "f32"));
  const cell = shared("cells", k, "u32");
  t.strictSame(arrays, [{ name: "cells", type: "u32", length: 64 }]);
  t.strictSame(body, [
    var_("total", f32(0)),
    sharedStore("cells", lane, u32(0)),
    for_("k", lane, u32(64), [
      loads(["s", "t"], { binding: "x", index: k, type: "f32" }),
      set("total", binary("add", total, product)),
      sharedStore("cells", k, binary("add", cell, u32(1))),
    ], u32(2)),
    { op: "barrier" },
    if_(binary("eq", lane, u32(0)), [store("y", u32(0), total)], [
      if_(
        binary("eq", lane, u32(1)),
        [store("counts", u32(1), shared("cells", u32(1), "u32"))],
        [set("total", f32(1))],
      ),
    ]),
  ]);
  t.end();
});

t.test("loops are unrolled, with registers", (t) => {
  const of = (text: KernelText) => statements(wgsl`let a = 1u; ${text}`);
  t.strictSame(
    of(wgsl`
      @unroll (r < 2, c < 4 by 2) {
        let place = a + r * 4 + c;
        let (${"b1[r]"}[c], b1[r][c + 1]) = vec2(x)[place];
        var ${"sum[r][c]"}_block = b1[r][c];
        if (a == 1) { let twice = 2.0; ${"sum[r][c]"}_block += b1[r][c + 1] * twice; }
      }
      y[0] = sum_block[1][2];`),
    of(wgsl`${
      [0, 1].map((r) =>
        [0, 2].map((c) =>
          wgsl`
          let place${r}_${c} = a + ${r * 4} + ${c};
          let (b1_${r}_${c}, b1_${r}_${c + 1}) = vec2(x)[place${r}_${c}];
          var sum_block${r}_${c} = b1_${r}_${c};
          if (a == 1) { let twice = 2.0; sum_block${r}_${c} += b1_${r}_${
            c + 1
          } * twice; }`
        )
      ).flat()
    }
      y[0] = sum_block1_2;`),
  );
  const value = expr`${local("left[r]", "u32")} * 2`;
  t.strictSame(
    of(wgsl`
      @unroll (r < 2) { let left[r] = a; @unroll (k < 1) { counts[r + k] = ${value}; } }`),
    of(wgsl`
      let left0 = a; counts[0] = left0 * 2; let left1 = a; counts[1] = left1 * 2;`),
    "trees, in nested loops",
  );
  t.end();
});

t.test("holes accept names, texts, trees and false", (t) => {
  const rows = [0, 1].map((r) => wgsl`let row${r}_${r + 1} = a + ${r};`);
  const body = statements(wgsl`
    let a = 1u;
    ${rows}
    ${false}
    ${[let_("b", A), let_("e0", A)]}
    let f = e[0];
    // A comment with a hole: ${A} and more.
    ${wgsl`let c = row1_2 + b;`}
    let ${"d"}_${3} = c;`);
  t.strictSame(
    body.map((s) => "name" in s ? s.name : s.op),
    ["a", "row0_1", "row1_2", "b", "e0", "f", "c", "d_3"],
  );
  t.end();
});

t.test("a location in the source is one template", (t) => {
  const text = (n: number) => wgsl`let a = ${n}u;`;
  t.equal(text(1).template, text(2).template);
  t.strictSame(statements(text(2)), [let_("a", u32(2))]);
  t.end();
});

t.test("declarations of a block end with it", (t) => {
  const body = statements(wgsl`
    if (lane == 0) { let a = 1u; counts[0] = a; }
    if (lane == 1) { let a = 2u; counts[0] = a; }`);
  t.equal(body.length, 2);
  t.end();
});

t.test("kernelOf() omits unused bindings, and binds read_write for stores that are read", (t) => {
  const kernel = kernelOf({
    name: "k",
    workgroupSize: 8,
    bindings: BINDINGS,
    body: wgsl`counts[lane] = words[lane]; counts[lane] += 1;`,
  });
  t.strictSame(
    kernel.bindings.map(({ name, access }) => `${name} ${access}`),
    ["words read", "counts read_write"],
  );
  t.end();
});

t.test("kernelOf() caches kernels by template and holes", (t) => {
  const kernel = (value: number | Expr | KernelText, name = "k") =>
    kernelOf({
      name,
      workgroupSize: 8,
      bindings: BINDINGS,
      body: wgsl`y[lane] = f32(${value});`,
    });
  t.equal(kernel(0), kernel(0));
  const element = (index: Expr) => wgsl`x[${index}]`;
  t.equal(kernel(element(A)), kernel(element(local("a", "u32"))));
  const others = [
    ...[kernel(0), kernel(-0), kernel(1), kernel(0, "other")],
    ...[kernel(f32(Infinity)), kernel(f32(-Infinity)), kernel(f32(0))],
    ...[kernel(f32(-0)), kernel(wgsl`x[0]`), kernel(wgsl`x[0]`)],
  ];
  t.equal(
    new Set(others).size,
    others.length,
    "equal text in two places is not shared",
  );
  t.end();
});

/** Mistakes: text, position and message. */
const MISTAKES: readonly (readonly [
  text: () => KernelText,
  place: readonly [line: number, column: number],
  message: string,
])[] = [
  [
    () => wgsl`@unroll (r < lane) { counts[r] = 1; }`,
    [1, 14],
    "Cannot unroll the loop over 'r': the number of its iterations is not a positive constant. Give a number",
  ],
  [
    () => wgsl`let a = 1u; @unroll (r < 2) { let b[a] = r; }`,
    [1, 37],
    "Cannot index 'b' with this: the register must be known at compile time. Use variables of unrolled loops",
  ],
  [
    () => wgsl`@unroll (r < 2) { @unroll (c < 2) { let b[c] = r; } }`,
    [1, 41],
    "Cannot declare 'b0': it is declared already. Rename it, or assign to it",
  ],
  [
    () => wgsl`@unroll (r < 2) { let b[r] = r; counts[r] = b[r + 1]; }`,
    [1, 45],
    "Cannot read 'b1': no register of that name is declared here. Declare it before",
  ],
  [
    () => wgsl`@unroll (r < 2) { let b[r] = r; } counts[0] = b[2];`,
    [1, 47],
    "Cannot read 'b2': no register of that name is declared here. Declare it before",
  ],
  [
    () => wgsl`let b[0] = 1u; var b[1] = 1u;`,
    [1, 20],
    "Cannot declare a register of 'b' as var u32: others are let u32. Rename it",
  ],
  [
    () => wgsl`var ${"b[r]"} = 1u;`,
    [1, 5],
    "Cannot index 'b' with 'r': that is no variable of an unrolled loop. Write the loop around it",
  ],
  [
    () => wgsl`counts[0] = total;`,
    [1, 13],
    "Cannot read 'total': nothing of that name is declared here. Declare it before, or add it to the bindings",
  ],
  [
    () =>
      wgsl`let a = 1u;
      let b = a + 1.0;`,
    [2, 17],
    "Cannot apply '+': the operands are u32 and f32. Convert one of them",
  ],
  [
    () => wgsl`x[0] = 1.0;`,
    [1, 1],
    "Cannot store to 'x': the binding is only read. List it among those that are written",
  ],
  [
    () => wgsl`y[0] = 1u;`,
    [1, 8],
    "Cannot use u32 for 'y': it must be f32. Convert it with f32()",
  ],
  [
    () => wgsl`let v = sine(x[0]);`,
    [1, 9],
    "Cannot call 'sine': there is no such function. Functions are fma, exp, log, sqrt, sin, cos, tanh, abs, floor, ceil, trunc, round, sign, pow, roundF16, dot4U8I8, lookup16, inverseSqrt, dot4I8Packed, unpack2x16float, unpack4xI8, bytesAt, min, max, select and bitcast",
  ],
  [
    () => wgsl`if (lane == 0) { counts[0] = 1;`,
    [1, 32],
    "Cannot read '}': the text ends",
  ],
  [
    () =>
      wgsl`let a = 1u
      let b = 2u;`,
    [2, 7],
    "Cannot read ';': 'let' is there",
  ],
  [
    () => wgsl`let a = 1;`,
    [1, 9],
    "Cannot infer the type of 1: no other operand has one. Write 1u, 1i or 1.0",
  ],
  [
    () => wgsl`let a = 1u; a = 2;`,
    [1, 13],
    "Cannot assign to 'a': it is a 'let'. Declare a 'var'",
  ],
  [
    () => wgsl`for (var i = 0u; i < 4; i++) { i = 2; }`,
    [1, 32],
    "Cannot assign to 'i': it counts a loop. Declare a 'var'",
  ],
  [
    () => wgsl`total = 2;`,
    [1, 1],
    "Cannot assign to 'total': nothing of that name is declared here. Declare a 'var'",
  ],
  [
    () => wgsl`let a = 1u; if (lane == 0) { let a = 2u; }`,
    [1, 34],
    "Cannot declare 'a': it is declared already. Rename it, or assign to it",
  ],
  [
    () => wgsl`let lane = 1u;`,
    [1, 5],
    "Cannot declare 'lane': the word is reserved. Rename it",
  ],
  [
    () => wgsl`let a = x[index[0]];`,
    [1, 11],
    "Cannot use i32 for an index: it must be u32. Convert it with u32()",
  ],
  [
    () => wgsl`let a = z[0];`,
    [1, 9],
    "Cannot index 'z': it is neither a binding nor a workgroup array. Declare it as one of them",
  ],
  [
    () => wgsl`let a = z[lane];`,
    [1, 9],
    "Cannot index 'z': it is neither a binding nor a workgroup array. Declare it as one of them",
  ],
  [
    () => wgsl`let a = 1u; let b = a[0];`,
    [1, 21],
    "Cannot index 'a': it is a variable. Declare it as one of them",
  ],
  [
    () => wgsl`let a = x;`,
    [1, 9],
    "Cannot use 'x' as a value: it is an array. Add an index",
  ],
  [
    () => wgsl`var<workgroup> cells: array<u32, 4>; cells[4] = 1;`,
    [1, 44],
    "Cannot index 'cells' with 4: it has 4 elements. Stay below that",
  ],
  [
    () => wgsl`var<workgroup> cells: array<bool, 4>;`,
    [1, 29],
    "Cannot declare 'cells': memory holds no bool. Use u32",
  ],
  [
    () => wgsl`var<workgroup> cells: array<u32, 0>;`,
    [1, 34],
    "Cannot declare 'cells': its length is not a positive constant. Give a number",
  ],
  [
    () =>
      wgsl`
        if (lane == 0) { var<workgroup> cells: array<u32, 4>; }
        if (lane == 1) { var<workgroup> cells: array<f32, 4>; }`,
    [3, 54],
    "Cannot declare 'cells' as f32: another block has it as u32. Rename it",
  ],
  [
    () =>
      wgsl`
        if (lane == 0) { var<workgroup> cells: array<u32, 4>; }
        cells[0] = 1;`,
    [3, 9],
    "Cannot index 'cells': it is neither a binding nor a workgroup array. Declare it as one of them",
  ],
  [
    () => wgsl`if (lane) { counts[0] = 1; }`,
    [1, 5],
    "Cannot use u32 for a condition: it must be bool. Convert it with bool()",
  ],
  [
    () => wgsl`while (lane < 4) { counts[0] = 1; }`,
    [1, 1],
    "Cannot read a statement: 'while' is there. Kernel text has no 'while'; see spec/kernels.md",
  ],
  [
    () => wgsl`for (var i = 0; i < 4; i++) {}`,
    [1, 14],
    "Cannot infer the type of 0: no other operand has one. Write 0u, 0i or 0.0",
  ],
  [
    () => wgsl`for (var i = 0u; i < index[0]; i++) {}`,
    [1, 22],
    "Cannot use i32 for the end of 'i': loops count u32. Convert it with u32()",
  ],
  [
    () => wgsl`for (var i = 0u; i < 4; i += 0) {}`,
    [1, 30],
    "Cannot count 'i' by this step: it is no positive constant. Give a number",
  ],
  [
    () => wgsl`for (var i = 0u; i < 4; i += lane) {}`,
    [1, 30],
    "Cannot count 'i' by this step: it is no positive constant. Give a number",
  ],
  [
    () => wgsl`var n = 4u; for (var i = 0u; i < n; i++) { n++; }`,
    [1, 34],
    "Cannot count 'i' to this end: it changes inside of the loop. Keep it in a 'let'",
  ],
  [
    () => wgsl`for (var i = 0u; i > 4; i++) {}`,
    [1, 20],
    "Cannot read '<': '>' is there",
  ],
  [
    () => wgsl`let a = exp(1u);`,
    [1, 9],
    "Cannot call 'exp' with u32: it takes f32. Convert the arguments",
  ],
  [
    () => wgsl`let a = fma(1.0, 2.0);`,
    [1, 9],
    "Cannot call 'fma' with 2 arguments: it takes 3. Give as many",
  ],
  [
    () => wgsl`let a = select(1u, 2.0, true);`,
    [1, 9],
    "Cannot select by bool between u32 and f32: it takes two values of one type, then a bool. Convert one of them",
  ],
  [
    () => wgsl`let a = -lane;`,
    [1, 9],
    "Cannot negate u32: it has no negative values. Subtract it, or convert it",
  ],
  [
    () => wgsl`let a = !lane;`,
    [1, 9],
    "Cannot apply '!': the operand is u32 and not bool. Compare it with a value",
  ],
  [
    () => wgsl`let a = lane & 1u == 0;`,
    [1, 14],
    "Cannot mix '==' and '&': neither takes precedence. Add parentheses",
  ],
  [
    () => wgsl`let a = true && false || true;`,
    [1, 23],
    "Cannot mix '&&' and '||': neither takes precedence. Add parentheses",
  ],
  [
    () => wgsl`let a = 4294967296u;`,
    [1, 9],
    "Cannot use 4294967296 as u32: u32 does not have it. Give a value in its range",
  ],
  [
    () => wgsl`let a = lane + ${-1};`,
    [1, 16],
    "Cannot use -1 as u32: u32 does not have it. Give a value in its range",
  ],
  [
    () => wgsl`let a = group.w;`,
    [1, 15],
    "Cannot read 'group.w': workgroups are numbered in x, y and z. Name one of them",
  ],
  [
    () => wgsl`let a = bitcast<bool>(lane);`,
    [1, 17],
    "Cannot cast the bits of u32 to 'bool': only f32, i32 and u32 have bits. Name one of them",
  ],
  [
    () => wgsl`let a: half = 1.0;`,
    [1, 8],
    "Cannot read 'half' as a type: types are f32, i32, u32 and bool. Name one of them",
  ],
  [
    () => wgsl`let (a, b, c) = vec3(x)[0];`,
    [1, 5],
    "Cannot load 3 elements at once: vectors have 2 or 4. Name 2 or 4",
  ],
  [
    () => wgsl`let (a, b) = vec2(y)[0];`,
    [1, 19],
    "Cannot load vectors from 'y': it is written. Name a binding that is only read",
  ],
  [
    () => wgsl`let a = ${[let_("b", A)]};`,
    [1, 9],
    "Cannot read an expression: a hole with statements is there",
  ],
  [
    () => wgsl`${A};`,
    [1, 1],
    "Cannot read a statement: a hole with an expression is there",
  ],
  [
    () => wgsl`let a = @;`,
    [1, 9],
    "Cannot read an expression: '@' is there",
  ],
  [
    () => wgsl`return;`,
    [1, 1],
    "Cannot read a statement: 'return' is there. Kernel text has no 'return'; see spec/kernels.md",
  ],
  [
    () => wgsl`let ${"a-b"} = 1u;`,
    [1, 5],
    "Cannot use 'a-b' as a name: names are letters, digits and '_'. Rename it",
  ],
  [
    () => wgsl`exp(1.0);`,
    [1, 1],
    "Cannot call 'exp' as a statement: only workgroupBarrier() is one. Use its value",
  ],
  [
    () => wgsl`var open = true; open += true;`,
    [1, 23],
    "Cannot apply '+=' to 'open': it is bool. Write the operation out",
  ],
  [
    () => wgsl`y = 1.0;`,
    [1, 1],
    "Cannot assign to 'y': it is an array. Declare a 'var'",
  ],
  [
    () => wgsl`let (a, b) = vec2(z)[0];`,
    [1, 19],
    "Cannot load vectors from 'z': it is no binding. Name a binding that is only read",
  ],
  [
    () => wgsl`let a = unpack2x16float(words[0]).z;`,
    [1, 35],
    "Cannot read x or y: 'z' is there",
  ],
  [
    () => wgsl`let row${A} = 1u;`,
    [1, 5],
    "Cannot build a name: an interpolated part is neither a word nor a number. Give it one, or separate it by a space",
  ],
  [
    () => wgsl`let row${-1} = 1u;`,
    [1, 5],
    "Cannot use 'row-1' as a name: names are letters, digits and '_'. Rename it",
  ],
  [
    () => wgsl`if (lane == 0) { workgroupBarrier(); }`,
    [1, 18],
    "Cannot wait at this barrier: not every invocation of the workgroup arrives. Make the bounds and conditions around it uniform",
  ],
  [
    () =>
      wgsl`
      var n = group.x;
      for (var i = 0u; i < 4; i++) {
        if (n == 0) {
          workgroupBarrier();
        }
        n = words[lane];
      }`,
    [5, 11],
    "Cannot wait at this barrier: not every invocation of the workgroup arrives. Make the bounds and conditions around it uniform",
  ],
  [
    () =>
      wgsl`let a = lane;
      ${wgsl`
        let b = a + 1.0;`}`,
    [2, 19],
    "Cannot apply '+': the operands are u32 and f32. Convert one of them",
  ],
];

t.test("mistakes are reported with their position", (t) => {
  for (const [text, [line, column], message] of MISTAKES) {
    try {
      kernelOf({
        name: "k",
        workgroupSize: 8,
        bindings: BINDINGS,
        body: text(),
      });
      t.fail(`no mistake: ${message}`);
    } catch (error) {
      if (!(error instanceof KernelTextError)) throw error;
      const [sentence, at] = error.message.split("\n");
      t.equal(sentence, message);
      t.strictSame([error.line, error.column], [line, column], message);
      t.match(
        at,
        new RegExp(
          String
            .raw`kernel_text\.test\.ts:\d+, line ${line}, column ${column} of the text`,
        ),
      );
    }
  }
  t.end();
});

t.test("blocks share workgroup memory with the same name", (t) => {
  const declared = (length: number) =>
    wgsl`
      var<workgroup> cells: array<u32, ${length}>;
      cells[${length - 1}] = lane;`;
  const { shared: arrays } = resolveStatements(
    wgsl`
      if (group.x == 0) { ${declared(4)} } else { ${declared(9)} }
      if (group.x == 1) { ${declared(8)} }`,
    BINDINGS,
  );
  t.strictSame(arrays, [{ name: "cells", type: "u32", length: 9 }]);
  t.end();
});

t.test("a size that kernels cannot index is rejected as too large", (t) => {
  const body = wgsl`counts[lane] = group.x / ${MAX_ELEMENTS + 2 ** 8};`;
  t.throws(
    () => kernelOf({ name: "k", workgroupSize: 8, bindings: BINDINGS, body }),
    new MachineError(
      "Cannot index 4294967296 elements: kernels support at most 4294967040. Use more ranks or smaller bounds",
    ),
  );
  t.end();
});

t.test("a mistake is shown in its line", (t) => {
  t.throws(
    () =>
      statements(wgsl`
        let a = 1u;
        let b = ${A} * x[a];`),
    {
      message: new RegExp(
        [
          "Cannot apply '\\*': the operands are u32 and f32. Convert one of them",
          "  --> kernel_text.test.ts:\\d+, line 3, column 22 of the text",
          "  \\|",
          "3 \\|         let b = \\$\\{…\\} \\* x\\[a\\];",
          "  \\|                      \\^",
        ].join("\n"),
      ),
    },
  );
  t.end();
});
