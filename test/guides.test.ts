/** The guides: their files are written and their commands run, in the order of the page, in an empty folder. */
// needs: cpu

import { copyFileSync, readFileSync } from "node:fs";
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
import { commandsOf, readPage } from "./helpers/guide.ts";

const ROOT = path.resolve(import.meta.dirname, "..");
/** As `cd` in the empty folder: commands name what is in it. */
const FOLDER = temporaryFolder(t);
const HERE = process.cwd();
process.chdir(FOLDER);
t.teardown(() => process.chdir(HERE));

/** Commands that compute: here on the CPU, wherever the guide does. */
const COMPUTES = new Set(["run", "train", "generate"]);

/** Run every command of a page; what those of switchyard left, by the words that call them. */
async function runGuide(page: string): Promise<Map<string, Finished>> {
  const left = new Map<string, Finished>();
  for (const [, program, command, ...argv] of commandsOf(page)) {
    t.equal(program, "switchyard");
    const where = COMPUTES.has(command!) ? ["--adapter", "cpu"] : [];
    const finished = await switchyard([command!, ...argv, ...where]);
    left.set([command, ...argv].join(" "), finished);
  }
  return left;
}

t.test("docs/fits.md, of a model that fits and one that does not", async (t) => {
  copyFileSync(path.join(ROOT, "examples/demo-lm/config.json"), "config.json");
  copyFileSync(path.join(ROOT, "examples/layer.ts"), "layer.ts");
  const page = readPage("fits.md");
  const left = await runGuide(page);
  t.equal(left.size, 4);
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
