/**
 * `node scripts/pictures.mjs` creates the pictures of docs/: drawings of `switchyard view`, and screenshots of its page
 * in Chromium. CHROME_PATH names a Chromium that is not Debian's.
 */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { ROOT } from "./setup.mjs";

/** Files of docs/ and the arguments of `switchyard view`. */
export const PICTURES = {
  "layer.svg": ["examples/layer.ts", "--mesh", "ep=4", "--svg", "tracks"],
  "layer_dark.svg": [
    ...["examples/layer.ts", "--mesh", "ep=4", "--svg", "tracks", "--dark"],
  ],
};

/** Screenshots of docs/views/: the page, the part of its address after `#`, and the element. */
const SCREENSHOTS = {
  "tracks.png": ["run", "", "#tracks"],
  "ranks.png": ["run", "rank/1", "#ranks"],
  "steps.png": ["run", "main/16", "#steps"],
  "flow.png": ["run", "", "#flow"],
  "traffic.png": ["run", "", "#traffic"],
  "memory.png": ["run", "", "#memory"],
  "time.png": ["run", "", "#time"],
  "table.png": ["run", "", "#table"],
  "token.png": ["run", "", "#token"],
  "diff.png": ["run", "", "#diff"],
  "search.png": ["search", "", "#search-result"],
};

/** Viewport size in pixels, which limits a screenshot. */
const VIEWPORT = { width: 1244, height: 900 };

/** Pixels around an element. */
const MARGIN = 16;

function switchyard(...argv) {
  const { status } = spawnSync(
    process.execPath,
    ["bin/switchyard.mjs", ...argv],
    { cwd: ROOT, stdio: ["ignore", "ignore", "inherit"] },
  );
  if (status !== 0) process.exit(1);
}

/** Number of recorded runs. */
const RUNS = 7;

/** Returns the microseconds of the run in a trace. */
function durationOf(trace) {
  return JSON.parse(readFileSync(trace, "utf8")).traceEvents
    .find(({ cat }) => cat === "program").dur;
}

/**
 * Creates pages of a recorded run on four ranks, compared with one on two, and of a search. Returns their addresses.
 */
function makePages(folder) {
  const model = ["examples/demo-lm", "--mesh", "ep=4"];
  const file = (name) => join(folder, name);
  // The shortest of several runs is used, because other work on the machine delays the others.
  const runs = Array.from({ length: RUNS }, (_, i) => {
    switchyard(
      ...["run", ...model, "--random", "--adapter", "cpu"],
      ...["--trace", file(`${i}.json`)],
      ...["--outputs", file("outputs.safetensors")],
    );
    return file(`${i}.json`);
  });
  const trace = runs.sort((a, b) => durationOf(a) - durationOf(b))[0];
  switchyard(
    ...[
      "plan",
      "examples/demo-lm",
      "--mesh",
      "ep=2",
      "--out",
      file("two_ranks.json"),
    ],
  );
  switchyard(
    ...["view", ...model, "--trace", trace],
    ...[
      "--choices",
      file("outputs.safetensors"),
      "--against",
      file("two_ranks.json"),
    ],
    ...["--out", file("run.html")],
  );
  switchyard(
    ...["search", "test/references/configs/granite-3.0-1b-a400m.json"],
    ...["--target", "8xh100", "--out", file("search.html")],
  );
  return (name) => pathToFileURL(file(`${name}.html`)).href;
}

async function takeScreenshots(addressOf) {
  const { chromium } = await import("playwright-core");
  const browser = await chromium.launch({
    executablePath: process.env.CHROME_PATH ?? "/usr/bin/chromium",
    args: ["--no-sandbox"],
  });
  for (const [file, [name, hash, selector]] of Object.entries(SCREENSHOTS)) {
    const page = await browser.newPage({ viewport: VIEWPORT });
    await page.goto(`${addressOf(name)}#${hash}`);
    const { x, y, width, height } = await page.locator(selector).evaluate(
      (element) => {
        scrollTo(0, 0);
        return element.getBoundingClientRect().toJSON();
      },
    );
    await page.screenshot({
      path: join(ROOT, "docs/views", file),
      fullPage: true,
      clip: {
        x: x - MARGIN,
        y: y - MARGIN,
        width: width + 2 * MARGIN,
        height: Math.min(height, VIEWPORT.height) + 2 * MARGIN,
      },
    });
    await page.close();
  }
  await browser.close();
}

if (process.argv[1] === join(ROOT, "scripts/pictures.mjs")) {
  mkdirSync(join(ROOT, "docs/views"), { recursive: true });
  for (const [file, argv] of Object.entries(PICTURES)) {
    switchyard("view", ...argv, "--out", join("docs", file));
  }
  const folder = mkdtempSync(join(tmpdir(), "switchyard-pictures-"));
  try {
    await takeScreenshots(makePages(folder));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
