// Pages of six published models on their meshes, a third of them per run by SEED, some in dark mode: no errors and no
// accessibility problems.
// needs: cpu, browser
// rotates with: view/

import path from "node:path";
import { pathToFileURL } from "node:url";
import t from "tap";
import {
  accessibilityProblems,
  openBrowser,
  openPage,
  skipWithoutBrowser,
  texts,
} from "./helpers/browser.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { INNER_SEED, isInTurn, repeatWith } from "./helpers/seed.ts";

const FOLDER = temporaryFolder(t);

/** Configurations with flags for mesh and machine, and the expected sections of layers. */
const MODELS: readonly (readonly [
  name: string,
  config: string,
  flags: readonly string[],
  layers: readonly string[],
])[] = [
  ["OLMoE", "configs/olmoe-1b-7b.json", [
    ...["--mesh", "ep=8", "--target", "8xh100"],
  ], ["layers 0–15"]],
  ["Mixtral", "configs/mixtral-8x7b.json", [
    ...["--mesh", "ep=8", "--target", "8xh100"],
  ], ["layers 0–31"]],
  ["Qwen3", "configs/qwen3-30b-a3b.json", [
    ...["--mesh", "ep=8", "--target", "8xh100"],
  ], ["layers 0–47"]],
  ["gpt-oss", "configs/gpt-oss-20b.json", [
    ...["--mesh", "ep=8", "--target", "8xh100"],
  ], ["layers 0, 2, 4, … 22", "layers 1, 3, 5, … 23"]],
  ["DeepSeek-V3", "configs/deepseek-v3.json", [
    ...["--mesh", "ep=64", "--target", "64x8xh800"],
  ], ["layers 0–2", "layers 3–60"]],
  ["Qwen3-Next", "qwen3next-16e/config.json", [
    ...["--mesh", "dp=2,ep=4", "--target", "8xh100"],
  ], ["layers 0–2", "layer 3"]],
];

/** Views on the page of a predicted plan. */
const VIEWS = [
  ...["tracks", "ranks", "steps", "flow", "traffic", "memory", "time", "table"],
];

t.test("pages of models", { skip: skipWithoutBrowser }, async (t) => {
  const browser = await openBrowser();
  t.teardown(() => browser.close());
  for (const [i, [name, config, flags, layers]] of MODELS.entries()) {
    if (!isInTurn(i, 3)) continue;
    const out = path.join(FOLDER, `${name}.html`);
    const { code, err } = await switchyard([
      ...["view", path.join("test/references", config), ...flags],
      ...["--out", out],
    ]);
    t.equal(code, 0, err);
    const dark = (INNER_SEED + i) % 4 < 2;
    const { page, complaints } = await openPage(
      browser,
      pathToFileURL(out).href,
      { dark },
    );
    t.strictSame(
      await page.locator("main > section[id]").evaluateAll((found) =>
        found.map(({ id }) => id)
      ),
      VIEWS,
      name,
    );
    const parts = await texts(page, "#tracks .parts button");
    t.match(parts.slice(1, -1), layers, name);
    t.equal(parts.length, layers.length + 2, name);
    t.strictSame(await accessibilityProblems(page), [], repeatWith());
    t.strictSame(complaints, [], name);
    await page.close();
  }
});
