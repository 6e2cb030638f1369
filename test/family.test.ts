/** Families in files: copies of the built-in ones, a user's own, and code that is never executed. */
// needs: cpu
// rotates with: models/, compiler/source/, engine/given.ts, engine/checkpoint/configuration.ts, test/references/configs/

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import t from "tap";
import { ARCHITECTURES } from "../models/published.ts";
import { repositoryFile } from "./helpers/sessions.ts";
import { isInTurn, repeatWith } from "./helpers/seed.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const FOLDER = temporaryFolder(t);
const MODELS = repositoryFile("models/families");
const here = (name: string) => path.join(FOLDER, name);
const reference = (name: string) => repositoryFile(`test/references/${name}`);

/** A checkpoint of each architecture, or a published configuration if none is recorded. */
const CHECKPOINTS = new Map(
  [
    ...readdirSync(reference("configs")).map((name) => `configs/${name}`),
    ...readdirSync(reference("")),
  ].flatMap((name): [string, string][] => {
    const config = name.endsWith(".json")
      ? reference(name)
      : path.join(reference(name), "config.json");
    return existsSync(config)
      ? [[JSON.parse(readFileSync(config, "utf8")).architectures?.[0], name]]
      : [];
  }),
);

/** Source files of families, including shared ones. */
const SOURCES = readdirSync(MODELS).filter((name) =>
  readFileSync(path.join(MODELS, name), "utf8").includes(
    'from "switchyard-moe/models"',
  )
);
for (const name of SOURCES) {
  copyFileSync(path.join(MODELS, name), here(name));
}

async function ok(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  t.equal(code, 0, `${argv[0]}: ${err}`);
  return out;
}

t.test("every built-in family, copied out of the repository, compiles to the same plans", async (t) => {
  const architectures: string[] = [];
  let families = 0;
  for (const file of SOURCES) {
    const text = readFileSync(here(file), "utf8");
    const [, names] = /architectures: \[([^\]]*)\]/.exec(text) ?? [];
    if (names === undefined) continue;
    const named = [...names.matchAll(/"(\w+)"/g)].map(([, name]) => name!);
    architectures.push(...named);
    const family = file.replace(".ts", "");
    const [checkpoint] = named.flatMap((name) => CHECKPOINTS.get(name) ?? []);
    t.ok(checkpoint, `${family} has a checkpoint`);
    if (!isInTurn(families++, 3)) continue;
    const plan = [
      ...["plan", reference(checkpoint!), "--mesh", "ep=2", "--full"],
    ];
    const builtIn = await ok(plan);
    const copied = await ok([...plan, "--family", here(`${family}.ts`)]);
    // Steps name their source: the file of the family or a shared one.
    t.equal(
      copied,
      SOURCES.reduce(
        (text, source) =>
          text.replaceAll(`models/families/${source}:`, `${source}:`),
        builtIn,
      ),
      repeatWith(),
    );
  }
  t.strictSame(architectures.sort(), [...ARCHITECTURES].sort());
});

t.test("generate, run, train and check with a copied family", async (t) => {
  const family = ["--family", here("mixtral.ts")];
  const folder = reference("mixtral-6e");
  const cpu = ["--adapter", "cpu", "--mesh", "ep=2"];
  const generate = ["generate", folder, ...cpu, "--tokens", "1,2", "-n", "4"];
  t.equal(await ok([...generate, ...family]), await ok(generate));
  const outputs = ["a", "b"].map(here);
  const run = ["run", folder, ...cpu, "--random", "--outputs"];
  await ok([...run, outputs[0]!, ...family]);
  await ok([...run, outputs[1]!]);
  t.ok(readFileSync(outputs[0]!).equals(readFileSync(outputs[1]!)));
  t.match(await ok(["check", here("mixtral.ts")]), /no mistakes/);
  t.match(await ok(["check", folder, ...family]), /no mistakes/);
});

/** Source of a family; a mistake is inserted in its loop over layers. */
const TEXT = readFileSync(here("mixtral.ts"), "utf8");

t.test("a mistake in the layers of a family is reported once", async (t) => {
  const broken = TEXT.replace("attendHeads(m, rotated", "attendHeads(m, rows");
  writeFileSync(
    here("broken.ts"),
    broken.replace("rows, layer, {", "rows as never, layer, {"),
  );
  const { code, err } = await switchyard(["check", here("broken.ts")]);
  t.equal(code, 1);
  t.equal(err.match(/-->/g)?.length, 1, err);
});

t.test("code named by a checkpoint runs only with --family", async (t) => {
  const folder = here("checkpoint");
  const ran = here("ran");
  mkdirSync(folder);
  const config = JSON.parse(
    readFileSync(path.join(reference("mixtral-6e"), "config.json"), "utf8"),
  );
  const source = path.join(folder, "mine.ts");
  writeFileSync(
    path.join(folder, "config.json"),
    JSON.stringify({
      ...config,
      architectures: ["MineForCausalLM"],
      auto_map: { AutoModelForCausalLM: "mine.ts" },
      family: "mine.ts",
    }),
  );
  writeFileSync(
    source,
    `import { writeFileSync } from "node:fs";
writeFileSync(new URL(${JSON.stringify(pathToFileURL(ran).href)}), "");
${TEXT.replaceAll("MixtralForCausalLM", "MineForCausalLM")}`,
  );
  const plan = ["plan", folder, "--mesh", "ep=2"];
  const refused = await switchyard(plan);
  t.equal(refused.code, 1);
  t.match(
    refused.err,
    /Cannot build architecture 'MineForCausalLM': it is not built in\. Its fields are nearest to those of '.*\. Give the file that defines its family with --family FILE\.ts/,
  );
  t.notOk(existsSync(ran), "not executed");
  const { code, err } = await switchyard([...plan, "--family", source]);
  t.equal(code, 0, err);
  t.ok(existsSync(ran), "executed");
  // Information about an unknown family: from headers, and from an index without its files.
  const weights = path.join(folder, "model.safetensors");
  copyFileSync(
    path.join(reference("deepseekv3-16e-fp8"), "model.safetensors"),
    weights,
  );
  t.match((await switchyard(plan)).err, "tensors have 476,760 parameters.");
  rmSync(weights);
  writeFileSync(
    `${weights}.index.json`,
    JSON.stringify({ metadata: { total_size: 1234567 }, weight_map: {} }),
  );
  t.match(
    (await switchyard(plan)).err,
    "Its index counts 1,234,567 bytes of tensors.",
  );
  t.equal(err, "config.json has 'family', which the family does not read\n");
});

t.test("a family is rejected for other targets", async (t) => {
  const refused = async (argv: readonly string[], message: RegExp) => {
    const { code, err } = await switchyard(argv);
    t.not(code, 0);
    t.match(err, message);
  };
  const family = ["--family", here("mixtral.ts")];
  await refused(
    ["plan", reference("olmoe-16e"), ...family],
    /Cannot build architecture 'OlmoeForCausalLM': the family of --family builds 'MixtralForCausalLM'/,
  );
  await refused(
    ["plan", repositoryFile("examples/layer.ts"), ...family],
    /Cannot use --family with a model/,
  );
  await refused(
    ["plan", reference("mixtral-6e"), "--family", here("qwen.ts")],
    /Cannot find a family in 'qwen\.ts': it exports none\. Export what 'defineFamily\(…\)' returns/,
  );
  writeFileSync(
    here("empty.ts"),
    `import { defineFamily } from "switchyard-moe/models";
export const family = defineFamily({ architectures: [], config: null!, build: null! });`,
  );
  await refused(
    ["plan", reference("mixtral-6e"), "--family", here("empty.ts")],
    /Cannot define a family: 'architectures' has no name/,
  );
});
