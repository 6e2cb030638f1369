// deno-lint-ignore-file no-var
/** Constructs that the scalar subset rejects, each with its message and the source that it points at. */

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { callSite } from "../spec/call_site.ts";
import type { Lambda } from "../compiler/graph/graph.ts";
import { codeFrame } from "../compiler/source/frame.ts";
import { evaluateScalar } from "../compiler/graph/evaluate/scalar.ts";
import { lowerLambdas } from "../compiler/source/lower_scalar.ts";
import { LowerError } from "../spec/errors.ts";

// The functions have the types of JavaScript; most are wrong on purpose.
type Scalar = (...xs: number[]) => number;

/** The record that `map` makes of its function. */
function map(js: (...xs: never[]) => unknown): Lambda {
  return { js: js as unknown as Scalar, span: callSite(map) };
}

let temperature = 0.7;
var old = 1;
const table = new Map<string, number>();
const computed = table.size;
const unknownConfig = JSON.parse('{"alpha": 1}') as { alpha: number };
const huge = 1e39;
const circular: { x: number } = {
  get x(): number {
    return 1;
  },
};
function forever(x: number): number {
  return x > 0 ? forever(x - 1) : x;
}
function makeScaled(alpha: number): Lambda {
  return map((x: number) => x * alpha);
}
function two(a: number, b: number): number {
  return a + b;
}

/** Function, message, and underlined source. */
const REJECTED: readonly (readonly [Lambda, string, string])[] = [
  [
    map((x: number) => x / temperature),
    "Cannot capture 'temperature': it is declared with 'let', and a kernel can only bake in a const literal. Pass it as a parameter",
    "temperature",
  ],
  [
    map((x: number) => x / old),
    "Cannot capture 'old': it is declared with 'var', and a kernel can only bake in a const literal. Pass it as a parameter",
    "old",
  ],
  [
    makeScaled(2),
    "Cannot capture 'alpha': its value is not known at compile time. Pass it as a parameter",
    "alpha",
  ],
  [
    map((x: number) => x * computed),
    "Cannot capture 'computed': its value is not known at compile time. Pass it as a parameter",
    "computed",
  ],
  [
    map((x: number) => x * unknownConfig.alpha),
    "Cannot capture 'unknownConfig.alpha': its value is not known at compile time. Pass it as a parameter",
    "unknownConfig.alpha",
  ],
  [
    map((x: number) => x * circular.x),
    "Cannot capture 'circular.x': its value is not known at compile time. Pass it as a parameter",
    "circular.x",
  ],
  [
    map((x: number) => x * huge),
    "Cannot capture 'huge': its value is not known at compile time. Pass it as a parameter",
    "huge",
  ],
  [
    map((x: number) => x * 1e39),
    "Cannot lower '1e39': its value is 1e+39, which is no finite f32. Use a finite number",
    "1e39",
  ],
  [
    map((x: number) => x + 1 / 0),
    "Cannot lower '1 / 0': its value is Infinity, which is no finite f32. Use a finite number",
    "1 / 0",
  ],
  [
    map((x: number) => Math.max(x, -Infinity)),
    "Cannot lower 'Infinity': a kernel works on finite numbers. Use a finite number",
    "Infinity",
  ],
  [
    map((x: number) => x > 0 ? x : NaN),
    "Cannot lower 'NaN': a kernel works on finite numbers. Use a finite number",
    "NaN",
  ],
  [
    map((x: number) => Math.hypot(x, 1)),
    "Cannot lower 'Math.hypot': kernels have no such function. Use one of abs, ceil, cos, exp, floor, log, max, min, pow, round, sign, sin, sqrt, tanh, trunc",
    "Math.hypot",
  ],
  [
    map((x: number) => x * Math.random()),
    "Cannot lower 'Math.random': kernels have no such function. Use one of abs, ceil, cos, exp, floor, log, max, min, pow, round, sign, sin, sqrt, tanh, trunc",
    "Math.random",
  ],
  [
    map((x: number) => x + Math.max()),
    "Cannot call 'Math.max' with 0 arguments: it takes at least 1. Give each a value",
    "Math.max()",
  ],
  [
    map((x: number) => table.get("neg") ?? x),
    "Cannot lower the operator '??' here: kernel arithmetic is + - * / % ** and comparisons. Write it with those",
    "??",
  ],
  [
    map((x: number) => table.get("neg")! + x),
    "Cannot call 'table.get' from a scalar function: its source is not a plain function. Call 'Math' or a function declared in the model's own files",
    "table.get",
  ],
  [
    map((x: number) => x | 0),
    "Cannot lower the operator '|' here: kernel arithmetic is + - * / % ** and comparisons. Write it with those",
    "|",
  ],
  [
    map((x: number) => ~x),
    "Cannot lower the operator '~' here: kernel arithmetic is + - * / % ** and comparisons. Write it with those",
    "~x",
  ],
  [
    map((x: number) => {
      let s = 0;
      for (let i = 0; i < 4; i++) s += x;
      return s;
    }),
    "Cannot lower a 'for' loop: a scalar function consists of 'const', 'let', 'if' and 'return'. Write it with those",
    "for (let i = 0; i < 4; i++) s += x;",
  ],
  [
    map((x: number) => {
      while (x > 1) x /= 2;
      return x;
    }),
    "Cannot lower a 'while' loop: a scalar function consists of 'const', 'let', 'if' and 'return'. Write it with those",
    "while (x > 1) x /= 2;",
  ],
  [
    map((x: number) => {
      switch (x) {
        default:
          return x;
      }
    }),
    "Cannot lower a 'switch': a scalar function consists of 'const', 'let', 'if' and 'return'. Write it with those",
    "switch (x) {",
  ],
  [
    map((x: number) => {
      throw new Error(String(x));
    }),
    "Cannot lower a 'throw': a scalar function consists of 'const', 'let', 'if' and 'return'. Write it with those",
    "throw new Error(String(x));",
  ],
  [
    map((x: number) => {
      var y = x;
      return y;
    }),
    "Cannot declare with 'var': its scope is the whole function. Use 'const' or 'let'",
    "var y = x;",
  ],
  [
    map((x: number) => {
      const [y] = [x];
      return y;
    }),
    "Cannot lower an array: a scalar function works on numbers and booleans. Write it with operators, 'Math' and plain functions",
    "[x]",
  ],
  [
    map((x: number) => "1" as unknown as number + x),
    "Cannot lower a string: a scalar function works on numbers and booleans. Write it with operators, 'Math' and plain functions",
    '"1"',
  ],
  [
    map((x: number) => {
      temperature = x;
      return x;
    }),
    "Cannot assign to 'temperature': it is not a variable of this function, and a kernel function cannot change outer variables. Use a local variable and return it",
    "temperature",
  ],
  [
    map((x: number) => {
      x;
      return x;
    }),
    "Cannot lower 'x' as a statement: it has no effect on the result. Assign it to a variable or return it",
    "x",
  ],
  [
    map((x: number) => {
      if (x > 0) return x;
    }),
    "Cannot lower a function that can end without 'return': a kernel needs a value on every path. Return one after the last statement",
    "=>",
  ],
  [
    map((x: number) => {
      let y: number;
      if (x > 0) y = 1;
      return y!;
    }),
    "Cannot read 'y': it has no value on every path to here. Give it one where it is declared",
    "y",
  ],
  [
    map((x: number) => x ? 1 : 2),
    "Cannot use 'x' as a condition: it is a number. Compare it, as in 'x !== 0'",
    "x",
  ],
  [
    map((x: number) => x && 1),
    "Cannot use 'x' as a condition: it is a number. Compare it, as in 'x !== 0'",
    "x",
  ],
  [
    map((x: number) => Number(x > 0)),
    "Cannot call 'Number' from a scalar function: its source is not a plain function. Call 'Math' or a function declared in the model's own files",
    "Number",
  ],
  [
    map((x: number) => +(x > 0)),
    "Cannot use '(x > 0)' as a number: it is a boolean. Write '(x > 0) ? 1 : 0'",
    "(x > 0)",
  ],
  [
    map((x: number) => x > 0 ? 1 : false),
    "Cannot choose between a number and a boolean: a kernel value has one type. Make both numbers",
    "x > 0 ? 1 : false",
  ],
  [
    map((x: number) => forever(x)),
    "Cannot call 'forever' from itself: a kernel function cannot recurse. Write it without recursion",
    "forever",
  ],
  [
    map((x: number) => (two as Scalar)(x)),
    "Cannot call 'two' with 1 arguments: it takes 2. Give each parameter a value",
    "(two as Scalar)(x)",
  ],
  [
    map((...xs: number[]) => xs.length),
    "Cannot lower the parameter '...xs: number[]': a kernel passes only numbers. Declare each number by name, without a default",
    "...xs: number[]",
  ],
  [
    map((x: string) => x.length),
    "Cannot lower a parameter of type 'string': a scalar function works on numbers and booleans. Use 'number' or 'boolean'",
    "x: string",
  ],
  [
    map(async (x: number) => await x),
    "Cannot lower an async or generator function: a kernel computes one number at a time. Write a plain function",
    "async (x: number) => await x",
  ],
];

/** Returns the source above the carets of a message. */
function marked(message: string): string {
  const lines = message.split("\n");
  const carets = lines.at(-1)!;
  const start = carets.indexOf("^");
  return lines.at(-2)!.slice(start, carets.lastIndexOf("^") + 1);
}

async function errorOf(lambda: Lambda): Promise<LowerError> {
  try {
    await lowerLambdas([lambda]);
  } catch (error) {
    if (error instanceof LowerError) return error;
    throw error;
  }
  throw new Error("lowered, and should not have been");
}

for (const [lambda, sentence, source] of REJECTED) {
  t.test(`${sentence.split(":")[0]} (${source})`, async (t) => {
    const error = await errorOf(lambda);
    t.equal(error.message.split("\n")[0], sentence);
    t.equal(marked(error.message), source);
    t.match(sentence, /^Cannot [^:]+: .+\. [A-Z].*[^.]$/, "house grammar");
    t.ok(error.span, "has a position");
  });
}

t.test("the exact text of a frame", (t) => {
  const source =
    "import x;\n\texport const a = (x: number) => x / temperature;\n";
  t.equal(
    codeFrame({ file: "/models/bad.ts", line: 2, column: 38 }, source, 11),
    [
      "  --> bad.ts:2:38",
      "  |",
      "2 | \texport const a = (x: number) => x / temperature;",
      "  | \t                                    ^^^^^^^^^^^",
    ].join("\n"),
  );
  const long = "\n".repeat(11) + "abc";
  t.equal(
    codeFrame({ file: "file:///models/b.ts", line: 12, column: 2 }, long, 99),
    ["   --> b.ts:12:2", "   |", "12 | abc", "   |  ^^"].join("\n"),
    "two-digit line numbers; carets end with the line",
  );
  const wide = `${"a".repeat(100)}bc${"d".repeat(198)}`;
  const shown = (column: number) =>
    codeFrame({ file: "w.ts", line: 1, column }, wide, 2).split("\n").slice(2);
  t.strictSame(shown(101), [
    `1 | …${"a".repeat(60)}bc${"d".repeat(98)}…`,
    `  | ${" ".repeat(61)}^^`,
  ], "a part of a long line");
  t.strictSame(shown(299), [
    `1 | …${"d".repeat(62)}`,
    `  | ${" ".repeat(61)}^^`,
  ]);
  t.strictSame(shown(1), [
    `1 | ${"a".repeat(100)}bc${"d".repeat(58)}…`,
    "  | ^^",
  ]);
  t.end();
});

t.test("a function without its source file is read from its text", async (t) => {
  const span = { file: "/nowhere/model.js", line: 4, column: 21 };
  const js: Scalar = (x) => Math.max(x!, 0);
  const [fn] = await lowerLambdas([{ js, span }]);
  t.equal(evaluateScalar(fn!, [-1]), 0);
  const limit = 6;
  const error = await errorOf({ js: (x) => Math.min(x!, limit), span });
  t.equal(
    error.message.split("\n")[0],
    "Cannot capture 'limit': the source of this function was not found at model.js:4:21 and only its text is known. Pass it as a parameter",
  );
  t.same(error.span, span);
  const native = await errorOf({ js: Math.exp, span });
  t.equal(
    native.message,
    "Cannot lower the function at model.js:4:21 given to 'map': its source was not found and its text is not a plain function. Write an arrow function in the call",
  );
});

t.test("source maps locate the source of compiled JavaScript", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "switchyard-map-"));
  t.teardown(() => rm(folder, { recursive: true }));
  const original =
    "const limit: number = 6;\nexport const f = map((x: number) => Math.min(x, limit));\n";
  // Line 3 column 10 of the JavaScript is line 2 column 18 of the source.
  const version3 = {
    version: 3,
    sources: ["model.ts"],
    names: [],
    mappings: ";;SACiB",
  };
  const payload = Buffer.from(JSON.stringify(version3)).toString("base64");
  const compiled =
    `"use strict";\nconst k=6;\nlet xxx= map(n=>Math.min(n,k));\n//# sourceMappingURL=data:application/json;base64,${payload}\n`;
  await writeFile(join(folder, "model.ts"), original);
  await writeFile(join(folder, "model.js"), compiled);
  const js: Scalar = (x) => Math.min(x!, 6);
  const span = { file: join(folder, "model.js"), line: 3, column: 10 };
  const [fn] = await lowerLambdas([{ js, span }]);
  t.equal(
    evaluateScalar(fn!, [9]),
    6,
    "the captured constant is found in the source",
  );
});

t.test("a source that differs from the running function is rejected", async (t) => {
  const mutable = { alpha: 2 };
  const lambda = map((x: number) => x * mutable.alpha);
  t.equal((await lowerLambdas([lambda])).length, 1);
  mutable.alpha = 3;
  const error = await errorOf(lambda);
  t.match(
    error.message,
    /^Cannot lower the function at source_errors\.test\.ts:\d+:18: for \(0\.6180339887\) it gives 1\.854\d+, and its source gives 1\.236\d+\. Keep captured values constant, and load the source that runs$/,
  );
});
