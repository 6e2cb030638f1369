/** Diagnostics of `checkModel` for good and bad files, and their printed form. Needs a writable temporary folder. */
// rotates with: compiler/source/, compiler/dsl/, engine/check.ts, cli/commands/check.ts, package-lock.json, test/fixtures/source/

import {
  mkdir,
  mkdtemp,
  readFile,
  rename,
  rm,
  writeFile,
} from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { checkModel, formatDiagnostic } from "../compiler/source/check.ts";
import { editorRemark } from "../cli/editor_support.ts";
import { main } from "../cli/main.ts";
import { DataError } from "../spec/errors.ts";
import { switchyard, temporaryFolder, withOutput } from "./helpers/cli.ts";

function fixture(name: string): string {
  return fileURLToPath(new URL(`./fixtures/source/${name}`, import.meta.url));
}

/** Returns all diagnostics of a file as text. */
async function report(path: string): Promise<string> {
  return (await checkModel(path)).map(formatDiagnostic).join("\n");
}

t.test("a good file has no diagnostics", async (t) => {
  t.same(await checkModel(fixture("good.ts")), []);
  t.same(await checkModel(fixture("two.ts")), [], "several models are fine");
  t.same(await checkModel(`${fixture("two.ts")}#second`), []);
});

t.test("a file nested too deeply for TypeScript is refused", async (t) => {
  const path = join(temporaryFolder(t), "nested.ts");
  const nested = `${"(".repeat(20_000)}1${")".repeat(20_000)}`;
  await writeFile(path, `export const size = ${nested};\n`);
  await t.rejects(
    checkModel(path),
    new DataError(
      `Cannot check '${path}': its expressions are nested too deeply for TypeScript. Use fewer nested parentheses, brackets or calls`,
    ),
  );
});

t.test("type errors use the sentences of the language where it has them", async (t) => {
  const path = fixture("bad_types.ts");
  t.equal(
    await report(path),
    [
      "Type 'number' is not assignable to type 'string'.",
      "  --> bad_types.ts:6:9",
      "  |",
      "6 |   const size: string = 8;",
      "  |         ^^^^",
      "Cannot declare 'embed fnn': the model has no axis 'fnn'. Write 'ffn'",
      "  --> bad_types.ts:7:35",
      "  |",
      '7 |   const up = dot(x, m.param("up", "embed fnn"), "embed");',
      "  |                                   ^^^^^^^^^^^",
      "Cannot broadcast 'ffn' against 'token embed': left has no 'ffn', right has no 'token embed'",
      "  --> bad_types.ts:8:22",
      "  |",
      '8 |   return { y: add(x, bias), z: softmax(x, "ffn"), up };',
      "  |                      ^^^^",
      "Cannot softmax 'token embed' over 'ffn': expected 'token' or 'embed'",
      "  --> bad_types.ts:8:43",
      "  |",
      '8 |   return { y: add(x, bias), z: softmax(x, "ffn"), up };',
      "  |                                           ^^^^^",
    ].join("\n"),
  );
  const [first] = await checkModel(path);
  t.same(first, {
    message: "Type 'number' is not assignable to type 'string'.",
    span: { file: path, line: 6, column: 9 },
    width: 4,
    code: 2322,
  });
});

t.test("the first type error of a chain, and independent errors", async (t) => {
  t.equal(
    await report(fixture("bad_chain.ts")),
    [
      "Cannot dot 'expert slot embed' with 'expert ffn embed' over 'ffn': expected 'expert' or 'embed'",
      "   --> bad_chain.ts:24:31",
      "   |",
      '24 |     const up = dot(sent, wUp, "ffn");',
      "   |                               ^^^^^",
      "Cannot dot 'expert slot embed' with 'expert ffn' over 'embed': expected 'expert'",
      "   --> bad_chain.ts:29:57",
      "   |",
      '29 |     const own = dot(sent, m.param("own", "expert ffn"), "embed");',
      "   |                                                         ^^^^^^^",
    ].join("\n"),
  );
});

t.test("all scalar functions outside the subset", async (t) => {
  t.equal(
    await report(fixture("bad_scalar.ts")),
    [
      "Cannot capture 'temperature': it is declared with 'let', and a kernel can only bake in a const literal. Pass it as a parameter",
      "  --> bad_scalar.ts:7:36",
      "  |",
      "7 |   const a = map((v: number) => v / temperature, x);",
      "  |                                    ^^^^^^^^^^^",
      "Cannot lower 'Math.hypot': kernels have no such function. Use one of abs, ceil, cos, exp, floor, log, max, min, pow, round, sign, sin, sqrt, tanh, trunc",
      "  --> bad_scalar.ts:8:24",
      "  |",
      "8 |   const b = map((v) => Math.hypot(v, 1), x);",
      "  |                        ^^^^^^^^^^",
    ].join("\n"),
  );
});

t.test("errors that only tracing detects", async (t) => {
  t.equal(
    await report(fixture("bad_trace.ts")),
    [
      `Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at bad_trace.ts:6:19`,
      "  --> bad_trace.ts:7:16",
      "  |",
      "7 |   const sent = dispatch(x, routing);",
      "  |                ^^^^^^^^",
    ].join("\n"),
  );
});

t.test("type errors hide no other errors: six different mistakes are reported", async (t) => {
  const found = await checkModel(fixture("bad_six.ts"));
  t.strictSame(
    found.map(({ span, message }) => `${span?.line} ${message}`),
    [
      "5 Cannot softmax 'token embed' over 'expert': expected 'token' or 'embed'",
      "6 Cannot split 'embed' into 'head headDim': its size is 8, not 3 * 2",
      "7 Cannot declare 'expert embd': the model has no axis 'embd'. Write 'embed'",
      "9 Cannot choose 5 of axis 'expert': expected a whole number from 1 to 4",
      "11 Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at bad_six.ts:10:17",
      "12 Cannot lower 'Math.hypot': kernels have no such function. Use one of abs, ceil, cos, exp, floor, log, max, min, pow, round, sign, sin, sqrt, tanh, trunc",
    ],
  );
});

t.test("consequences of a mistake are not reported, also through layerNorm", async (t) => {
  const found = await checkModel(fixture("bad_norm.ts"));
  t.strictSame(found.map(({ span, message }) => `${span?.line} ${message}`), [
    "8 Cannot softmax 'token embed' over 'expert': expected 'token' or 'embed'",
  ]);
});

t.test("files that are not models", async (t) => {
  t.equal(
    await report(fixture("bad_syntax.ts")),
    [
      "Cannot load 'bad_syntax.ts': ',' expected. Correct the syntax",
      "  --> bad_syntax.ts:3:32",
      "  |",
      '3 |   return { y: m.input("x", "n" };',
      "  |                                ^",
    ].join("\n"),
  );
  t.equal(
    await report(fixture("throws.ts")),
    [
      "Cannot load 'throws.ts': it throws 'No configuration is here'. Correct the file",
      "  --> throws.ts:1:7",
      "  |",
      '1 | throw new Error("No configuration is here");',
      "  |       ^^^",
    ].join("\n"),
  );
  t.equal(
    await report(fixture("none.ts")),
    "Cannot find a model in 'none.ts': it exports none. Export what 'model(…)' returns",
  );
  t.equal(
    await report(`${fixture("two.ts")}#third`),
    "Cannot find model 'third' in 'two.ts': it exports 'first', 'second'. Name one of those",
  );
  await t.rejects(checkModel(fixture("missing.ts")), DataError);
});

t.test("files in an empty folder resolve 'switchyard-moe'", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "switchyard-check-"));
  t.teardown(() => rm(folder, { recursive: true }));
  const good = join(folder, "good.ts");
  const text = await readFile(fixture("good.ts"), "utf8");
  await writeFile(
    good,
    `console.log("loaded once");\n${text}`.replace(
      "./mathx.ts",
      "./mathx.js",
    ).replace("console.log", "if (false as boolean) console.log"),
  );
  await writeFile(
    join(folder, "mathx.ts"),
    await readFile(fixture("mathx.ts"), "utf8"),
  );
  t.same(await checkModel(good), []);

  const bad = join(folder, "bad.ts");
  await writeFile(
    bad,
    'import { model } from "switchyard-moe";\nimport { wrong } from "./helper.ts";\nexport const a = model({ n: wrong }, (m) => ({ y: m.input("x", "k") }));\n',
  );
  await writeFile(
    join(folder, "helper.ts"),
    'export const wrong: number = "2";\n',
  );
  const spans = (await checkModel(bad)).map(({ span }) =>
    `${span?.file.slice(folder.length + 1)}:${span?.line}:${span?.column}`
  );
  t.same(spans.sort(), ["bad.ts:3:64", "helper.ts:1:14"]);
});

t.test("an exception in the model function", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "switchyard-check-"));
  t.teardown(() => rm(folder, { recursive: true }));
  const path = join(folder, "model.ts");
  await writeFile(
    path,
    'import { model } from "switchyard-moe";\nconst sizes: number[] = [];\nexport const a = model({ n: 2 }, (m) => {\n  sizes[0]!.toFixed();\n  return { y: m.input("x", "n") };\n});\n',
  );
  t.equal(
    await report(path),
    [
      "Cannot trace the model: cannot read properties of undefined (reading 'toFixed'). Correct the model function",
      "  --> model.ts:4:13",
      "  |",
      "4 |   sizes[0]!.toFixed();",
      "  |             ^^^^^^^",
    ].join("\n"),
  );
});

t.test("check --watch checks again after a change of the file or of its imports", async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, "watched.ts"), sizes = join(folder, "sizes.ts");
  const good = `import { add, model } from "switchyard-moe";
export const doubled = model({ token: 4 }, (m) => {
  const x = m.input("x", "token");
  return { y: add(x, x) };
});
`;
  await writeFile(file, good);
  let interrupt = () => {};
  const found: string[] = [];
  // Each check is followed by a change, the last by Ctrl-C.
  const answers = [
    () => writeFile(file, `import "./sizes.ts";\n${good}`),
    () => writeFile(sizes, "export const size: number = 8;\n"),
    () => writeFile(sizes, 'export const size: number = "eight";\n'),
    () => rename(sizes, `${sizes}.old`).then(() => writeFile(sizes, "")),
    () => Promise.resolve(interrupt()),
  ];
  const { code } = await withOutput(
    (io) => main(["check", file, "--watch", "--json"], io),
    {
      out: async (line) => {
        const { ok, errors } = JSON.parse(line);
        found.push(ok ? "ok" : errors[0].message);
        await (answers[found.length - 1] ?? interrupt)();
      },
      onInterrupt: (action) => {
        interrupt = () => action(constants.signals.SIGINT);
        return () => {};
      },
    },
  );
  t.equal(code, 0);
  t.strictSame(found, [
    "ok",
    "Cannot find module or type declarations for side-effect import of './sizes.ts'.",
    "ok",
    "Type 'string' is not assignable to type 'number'.",
    "ok",
  ]);
});

t.test("check warns if a project's TypeScript cannot load the configured plugin", async (t) => {
  const folder = temporaryFolder(t);
  const package_ = join(folder, "node_modules/typescript/package.json");
  await mkdir(dirname(package_), { recursive: true });
  await writeFile(
    join(folder, "tsconfig.json"),
    '{ "compilerOptions": { "plugins": [{ "name": "switchyard-moe/editor" }] } }',
  );
  const file = join(folder, "file.js");
  const remark = async (version: string) => {
    await writeFile(
      package_,
      JSON.stringify({ name: "typescript", version }),
    );
    return editorRemark(file);
  };
  t.equal(await remark("5.9.3"), undefined);
  t.match(
    await remark("7.0.2"),
    /^TypeScript 7\.0\.2 of this project does not load plugins/,
  );
  await writeFile(file, "");
  const { err } = await switchyard(["check", file]);
  t.match(err, /^TypeScript 7\.0\.2 of this project/);
  await writeFile(join(folder, "tsconfig.json"), "{}");
  t.equal(editorRemark(file), undefined);
});
