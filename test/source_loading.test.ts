/** Loads model files from any folder, with this instance of the language. Needs a writable temporary folder. */
// own process: tests the first registration of hooks, which apply to a process.

import module from "node:module";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";
import { isModel } from "../compiler/dsl/model.ts";
import { trace } from "../compiler/graph/trace.ts";
import { evaluateScalar } from "../compiler/graph/evaluate/scalar.ts";
import {
  loadModels,
  loadUnsaved,
  resolveModel,
} from "../compiler/source/load.ts";
import { lowerLambdas } from "../compiler/source/lower_scalar.ts";
import { DataError, ModelError } from "../spec/errors.ts";

function fixture(name: string): string {
  return fileURLToPath(new URL(`./fixtures/source/${name}`, import.meta.url));
}

async function messageOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    if (error instanceof ModelError || error instanceof DataError) {
      return error.message;
    }
    throw error;
  }
  return "";
}

async function emptyFolder(t: Pick<Test, "teardown">): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "switchyard model-"));
  t.teardown(() => rm(folder, { recursive: true }));
  return folder;
}

const MODEL = `import { add, map, model, type Tensor } from "switchyard-moe";
import { exp } from "./lib/mathx.js";
import { readFileSync } from "node:fs";

interface Shape { readonly n: number }
enum Size { small = 2 }
const shape: Shape = { n: Size.small };

export const layer = model({ n: shape.n }, (m) => {
  readFileSync(new URL(import.meta.url));
  const x: Tensor<"n", "f32"> = m.input("x", "n");
  /* a comment */ const h = map((v: number): number => v / (1 + exp(-v)), x);
  return { y: add(x, h) };
});
export const notAModel = { axes: {}, build() {} };
`;
const MATHX = `export function exp(x: number): number {
  return Math.exp(x);
}
`;

t.test("hooks that fail to start are started again", async (t) => {
  const refuse = () => {
    throw new Error("no thread");
  };
  const used = "registerHooks" in module ? "registerHooks" : "register";
  t.capture(module, used as "register", refuse);
  const texts = new Map<string, string>();
  await t.rejects(loadUnsaved(texts), { message: "no thread" });
  await t.rejects(loadUnsaved(texts), { message: "no thread" });
});

t.test("a TypeScript model in an empty folder", async (t) => {
  const folder = await emptyFolder(t);
  await mkdir(join(folder, "lib"));
  await writeFile(join(folder, "lib", "mathx.ts"), MATHX);
  const path = join(folder, "layer.ts");
  await writeFile(path, MODEL);

  const models = await loadModels(path);
  t.same(Object.keys(models), ["layer"]);
  t.ok(isModel(models.layer), "created by this instance of the language");
  t.equal(await resolveModel(`${path}#layer`), models.layer);
  t.equal(await resolveModel(path), models.layer);

  const graph = trace(models.layer!);
  const [map] = graph.nodes.filter((node) =>
    node.primitive === "map" && node.params.op === "map"
  );
  t.same(map?.span, { file: path, line: 12, column: 29 }, "exact position");
  if (map?.primitive !== "map") throw new Error("no map");
  const [fn] = await lowerLambdas([map.params.lambda]);
  const got = evaluateScalar(fn!, [2]);
  t.ok(Math.abs(Number(got) - 2 / (1 + Math.exp(-2))) < 1e-6, "lowered");
});

t.test("ES modules, independent of the package type", async (t) => {
  const folder = await emptyFolder(t);
  await writeFile(join(folder, "package.json"), '{ "type": "commonjs" }');
  const text =
    'import { model } from "switchyard-moe";\nexport default model({ n: 2 }, (m) => ({ y: m.input("x", "n") }));\n';
  for (const name of ["plain.js", "module.mjs", "typed.mts", "typed.ts"]) {
    await writeFile(join(folder, name), text);
    const model = await resolveModel(join(folder, name));
    t.same(model.span, { file: join(folder, name), line: 2, column: 16 }, name);
  }
});

t.test("selection of a model", async (t) => {
  const two = fixture("two.ts");
  t.same(Object.keys(await loadModels(two)), ["first", "second"]);
  t.equal(
    await resolveModel(`${two}#second`),
    (await loadModels(two)).second,
  );
  t.equal(
    await messageOf(resolveModel(two)),
    "Cannot choose a model of 'two.ts': it exports 'first', 'second'. Name one, as in 'two.ts#first'",
  );
  t.equal(
    await messageOf(resolveModel(`${two}#third`)),
    "Cannot find model 'third' in 'two.ts': it exports 'first', 'second'. Name one of those",
  );
  t.equal(
    await messageOf(resolveModel(`${two}#constructor`)),
    "Cannot find model 'constructor' in 'two.ts': it exports 'first', 'second'. Name one of those",
  );
  t.equal(
    await messageOf(resolveModel(fixture("none.ts"))),
    "Cannot find a model in 'none.ts': it exports none. Export what 'model(…)' returns",
  );
});

t.test("files that cannot be loaded", async (t) => {
  const missing = fixture("missing.ts");
  t.equal(
    await messageOf(loadModels(missing)),
    `Cannot read '${missing}': there is no such file or folder. Check the path`,
  );
  t.equal(
    await messageOf(loadModels(fixture("."))),
    "Cannot load 'source': it is no TypeScript or JavaScript file. Give a file that ends in '.ts' or '.js'",
  );
  t.equal(
    await messageOf(loadModels(fixture("bad_syntax.ts"))),
    [
      "Cannot load 'bad_syntax.ts': ',' expected. Correct the syntax",
      "  --> bad_syntax.ts:3:32",
      "  |",
      '3 |   return { y: m.input("x", "n" };',
      "  |                                ^",
    ].join("\n"),
  );
  t.equal(
    await messageOf(loadModels(fixture("throws.ts"))),
    "Cannot load 'throws.ts': it throws 'No configuration is here'. Correct the file",
  );
  const folder = await emptyFolder(t);
  const path = join(folder, "imports.ts");
  await writeFile(
    path,
    'import { nothing } from "switchyard-moe";\nnothing();',
  );
  t.match(
    await messageOf(loadModels(path)),
    /^Cannot load 'imports\.ts': the requested module 'switchyard-moe' does not provide an export named 'nothing'\. Correct the file$/,
  );
  const lost = join(folder, "lost.ts");
  await writeFile(lost, 'import "./nowhere.ts";');
  t.equal(
    await messageOf(loadModels(lost)),
    "Cannot load 'lost.ts': cannot find module 'nowhere.ts' imported from lost.ts. Correct the file",
  );
  const nested = join(folder, "nested.ts");
  await writeFile(
    nested,
    `export const size = ${"(".repeat(20_000)}1${")".repeat(20_000)};\n`,
  );
  t.equal(
    await messageOf(loadModels(nested)),
    "Cannot load 'nested.ts': its expressions are nested too deeply. Use fewer nested parentheses, brackets or calls",
  );
  const recursive = join(folder, "recursive.ts");
  await writeFile(
    recursive,
    "function again(): number {\n  return again() + 1;\n}\nagain();\n",
  );
  t.equal(
    await messageOf(loadModels(recursive)),
    "Cannot load 'recursive.ts': it throws 'Maximum call stack size exceeded'. Correct the file",
    "a function that calls itself has a position",
  );
});
