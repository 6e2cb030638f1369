/** The guides: their files are written and their commands run, in the order of the page, in an empty folder. */
// needs: cpu

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import t from "tap";
import { start } from "../cli/start.ts";
import {
  type Finished,
  switchyard,
  temporaryFolder,
  withOutput,
} from "./helpers/cli.ts";
import { commandsOf, readPage, writeShownFile } from "./helpers/guide.ts";

const ROOT = path.resolve(import.meta.dirname, "..");
/** As `cd` in the empty folder: commands name what is in it. */
const FOLDER = temporaryFolder(t);
const HERE = process.cwd();
process.chdir(FOLDER);
t.teardown(() => process.chdir(HERE));
mkdirSync("node_modules");
symlinkSync(ROOT, "node_modules/switchyard-moe", "junction");

/** Commands that compute: here on the CPU, wherever the guide does. */
const COMPUTES = new Set(["run", "train", "generate"]);

/** What a line of a guide may start with. */
const PROGRAMS: {
  readonly [program: string]: (
    argv: readonly string[],
  ) => Promise<Finished> | void;
} = {
  npx: ([program, command, ...argv]) => {
    t.equal(program, "switchyard");
    const where = COMPUTES.has(command!) ? ["--adapter", "cpu"] : [];
    return switchyard([command!, ...argv, ...where]);
  },
  mkdir: ([folder]) => void mkdirSync(folder!),
  cp: (argv) => {
    const to = argv.at(-1)!;
    for (const from of argv.slice(0, -1)) {
      copyFileSync(from, path.join(to, path.basename(from)));
    }
  },
};

/** Run every command of a page; what those of switchyard left, by the words that call them. */
async function runGuide(page: string): Promise<Map<string, Finished>> {
  const left = new Map<string, Finished>();
  for (const [program, ...argv] of commandsOf(page)) {
    const run = PROGRAMS[program!];
    if (run === undefined) throw new Error(`Cannot run '${program}'`);
    const finished = await run(argv);
    if (finished) left.set(argv.slice(1).join(" "), finished);
  }
  return left;
}

t.test("docs/own_model.md, from file to text", async (t) => {
  const page = readPage("own_model.md");
  writeShownFile(page, ".");
  const [, settings] = /```json\n(.*?)```/s.exec(page)!;
  const [plugin] = JSON.parse(settings!).compilerOptions.plugins;
  const { exports } = JSON.parse(
    readFileSync(path.join(ROOT, "package.json"), "utf8"),
  );
  t.ok(`.${plugin.name.slice("switchyard-moe".length)}` in exports);
  const left = await runGuide(page);
  t.equal(left.size, 7);
  for (const [command, { code, err }] of left) t.equal(code, 0, command + err);
  for (
    const made of [
      "y.safetensors",
      "trained/metrics.jsonl",
      "trained/loss.svg",
      "trained/experts.svg",
      "taught/model.safetensors.index.json",
    ]
  ) t.ok(existsSync(made), made);
  const bytes = readFileSync("y.safetensors");
  for (const ep of [1, 2]) {
    const argv = ["run", "layer.ts", "--random", "--mesh", `ep=${ep}`];
    const { code, err } = await switchyard([
      ...[...argv, "--outputs", "again", "--adapter", "cpu"],
    ]);
    t.equal(code, 0, err);
    t.ok(readFileSync("again").equals(bytes), `the same bytes on ep=${ep}`);
  }
});

t.test("docs/fits.md, of a model that fits and one that does not", async (t) => {
  copyFileSync(path.join(ROOT, "examples/demo-lm/config.json"), "config.json");
  const page = readPage("fits.md");
  const left = await runGuide(page);
  t.equal(left.size, 3);
  for (const [command, { code, err }] of left) t.equal(code, 0, command + err);
  const plan = ["plan", "config.json", "--target", "8x24gb"];
  for (
    const [flag] of page.matchAll(/(?<=`)--[a-z-]+(?: [a-z0-9=,]+)?(?=`)/g)
  ) {
    if (/^--(target|out|all|max-\w+)$/.test(flag)) continue;
    const training = /^--(zero|recompute)/.test(flag) ? ["--train"] : [];
    const argv = [...plan, ...training, ...flag.split(" ")];
    const { code, err } = await switchyard(argv);
    t.equal(code, 0, flag + err);
  }
  const big = await switchyard([...plan, "--max-context", "16777216"]);
  t.equal(big.code, 3, big.out + big.err);
});

t.test("the README shows what its commands print", async (t) => {
  const readme = readFileSync(path.join(ROOT, "README.md"), "utf8");
  const [, demonstrated] = /it prints\n\n```\n(.*?)```/s.exec(readme)!;
  // Where there is a GPU, another plan is made.
  const { code, out } = await withOutput((io) => start([], io), {
    graphics: false,
  });
  t.equal(code, 0);
  const untimed = (text: string) => text.replace(/in [\d.]+ s$/m, "");
  t.equal(untimed(out), untimed(demonstrated!));
  const [, config, target, summary] =
    /```\nswitchyard plan (\S+) --target (\S+)\n```\n\n```\n(.*?)```/s
      .exec(readme)!;
  const planned = await switchyard([
    ...["plan", path.join(ROOT, config!), "--target", target!],
  ]);
  t.equal(planned.out, summary);
});
