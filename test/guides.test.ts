/** Guides: writes their files and runs their commands, in the order of the page, in an empty folder. */
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
import { inTurn } from "./helpers/seed.ts";

const ROOT = path.resolve(import.meta.dirname, "..");
/** Working directory, since commands use relative paths. */
const FOLDER = temporaryFolder(t);
const HERE = process.cwd();
process.chdir(FOLDER);
t.teardown(() => process.chdir(HERE));

/** Commands that compute. The test runs them on the CPU. */
const COMPUTES = new Set(["run", "train", "generate"]);

/** Runs every command of a page; returns results by command line. */
async function runGuide(page: string): Promise<Map<string, Finished>> {
  const results = new Map<string, Finished>();
  for (const [, program, command, ...argv] of commandsOf(page)) {
    t.equal(program, "switchyard");
    const where = COMPUTES.has(command!) ? ["--adapter", "cpu"] : [];
    const finished = await switchyard([command!, ...argv, ...where]);
    results.set([command, ...argv].join(" "), finished);
  }
  return results;
}

t.test("docs/fits.md, with a model that fits and one that does not", async (t) => {
  copyFileSync(path.join(ROOT, "examples/demo-lm/config.json"), "config.json");
  copyFileSync(path.join(ROOT, "examples/layer.ts"), "layer.ts");
  const page = readPage("fits.md");
  const results = await runGuide(page);
  t.equal(results.size, 4);
  for (const [command, { code, err }] of results) {
    t.equal(code, 0, command + err);
  }
  const plan = ["plan", "config.json", "--target", "8x24gb"];
  const named = page.match(/(?<=`)--[a-z-]+(?: [a-z0-9=,]+)?(?=`)/g)!
    .filter((flag) => !/^--(target|out|all|max-\w+)$/.test(flag));
  t.ok(named.length > 5, `${named.length} flags`);
  for (const flag of inTurn([...new Set(named)], 3)) {
    const training = /^--(zero|recompute)/.test(flag) ? ["--train"] : [];
    const argv = [...plan, ...training, ...flag.split(" ")];
    const { code, err } = await switchyard(argv);
    t.equal(code, 0, flag + err);
  }
  const big = await switchyard([...plan, "--max-context", "16777216"]);
  t.equal(big.code, 3, big.out + big.err);
});

t.test("the README shows the output of its commands", async (t) => {
  const readme = readFileSync(path.join(ROOT, "README.md"), "utf8");
  const [, demonstrated] = /it prints\n\n```\n(.*?)```/s.exec(readme)!;
  // With a GPU, the plan would differ.
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
