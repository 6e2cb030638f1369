// The timeline and the table of steps in a browser: zoom, pan and selection by keys, buttons and pointer, with sums.
// needs: cpu, browser
// rotates with: view/

import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import t from "tap";
import {
  accessibilityProblems,
  openBrowser,
  openPage,
  skipWithoutBrowser,
  texts,
} from "./helpers/browser.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const OUT = path.join(temporaryFolder(t), "page.html");
const MODEL = "test/references/configs/qwen3-30b-a3b.json";
const LAYERS = 48;

/** Values of a column of the table. */
async function column(page: Page, n: number): Promise<string[]> {
  return await texts(page, `#table tbody td:nth-child(${n})`);
}

/** Parses `12.3 MiB` or `1.34 G`. */
function numberOf(text: string): number {
  const [number, unit = ""] = text.split(" ");
  const units: { readonly [unit: string]: number } = {
    bytes: 1,
    KiB: 2 ** 10,
    MiB: 2 ** 20,
    GiB: 2 ** 30,
    µs: 1,
    ms: 1e3,
    k: 1e3,
    M: 1e6,
    G: 1e9,
    "": 1,
  };
  return Number(number) * units[unit]!;
}

t.test("48 layers", { skip: skipWithoutBrowser }, async (t) => {
  const written = await switchyard([
    ...["view", MODEL, "--mesh", "ep=8", "--target", "8xh100", "--out", OUT],
  ]);
  t.equal(written.code, 0, written.err);
  const browser = await openBrowser();
  t.teardown(() => browser.close());
  const { page, complaints } = await openPage(
    browser,
    pathToFileURL(OUT).href,
  );
  const picture = page.locator("#time .picture");
  const label = () => picture.getAttribute("aria-label");
  const complete = await label();

  // Every layer has a mark, with a number if there is space.
  const titles = await texts(page, "#time svg title");
  const marks = titles.filter((title) => /^layer \d+$/.test(title));
  t.strictSame(
    marks,
    Array.from({ length: LAYERS }, (_, i) => `layer ${i}`),
  );

  // Headers sort the table.
  t.equal((await column(page, 1)).length, 40);
  const times = page.locator("#table thead button", { hasText: "time" });
  await times.focus();
  await page.keyboard.press("Enter");
  await page.locator('#table th[aria-sort="descending"]').waitFor();
  const sorted = (await column(page, 5)).map(numberOf);
  t.strictSame(sorted, sorted.toSorted((a, b) => b - a));
  await times.click();
  await page.locator('#table th[aria-sort="ascending"]').nth(0).waitFor();
  const rising = (await column(page, 5)).map(numberOf);
  t.strictSame(rising, rising.toSorted((a, b) => a - b));

  // Filters by words; the footer sums the rest.
  await page.locator("#filter").fill("grouped_matmul swiglu");
  await page.locator("#table caption", { hasText: `${LAYERS} of` }).waitFor();
  const [bytes] = await column(page, 6);
  const [time, sum] = await texts(page, "#table tfoot td");
  t.ok(Math.abs(numberOf(sum!) / numberOf(bytes!) / LAYERS - 1) < 0.01, sum!);
  t.equal(
    numberOf(time!) > 0 && Math.round(
      numberOf(time!) / numberOf((await column(page, 5))[0]!),
    ),
    LAYERS,
  );

  // The timeline shows a step selected in the table.
  await page.locator("#table tbody button").nth(4).press("Enter");
  await page.locator("#time .range").waitFor();
  t.match(await label(), /, from /);
  t.match(await texts(page, "#table caption"), [/^1 of /]);
  t.match(await texts(page, "#time .sums th"), ["experts", "the host", "all"]);
  await page.locator("#filter").fill("");
  await page.locator(".parts button", { hasText: "clear the" }).click();
  await page.locator("#time .range").waitFor({ state: "detached" });

  // Keys: show all, zoom in, pan, zoom out.
  await picture.focus();
  await page.keyboard.press("0");
  await page.waitForFunction(
    `document.querySelector("#time .picture").ariaLabel === ${
      JSON.stringify(complete)
    }`,
  );
  await page.keyboard.press("+");
  const zoomed = await changed(page, complete!);
  await page.keyboard.press("Shift+ArrowRight");
  const panned = await changed(page, zoomed);
  t.not(panned, zoomed);
  await page.keyboard.press("-");
  await changed(page, panned);
  await page.keyboard.press("0");
  await page.locator("#time .parts button[aria-disabled=true]").nth(3)
    .waitFor();

  // Selecting a layer by number shows its steps and their sums.
  await page.locator("#time-layer").selectOption("7");
  await page.locator("#table caption", { hasText: "18 of" }).waitFor();
  await page.locator("#table thead button", { hasText: "step" }).click();
  const layers = await column(page, 3);
  t.strictSame([...new Set(layers)], ["7"]);
  const [inTable] = await texts(page, "#table tfoot td");
  const inRange = (await texts(page, "#time .sums tfoot td"))[0];
  t.equal(inTable, inRange, "only its steps");

  // Dragging selects a range; Enter selects a box, and Shift extends the selection.
  const box = (await picture.boundingBox())!;
  await page.mouse.move(box.x + 300, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 500, box.y + 40, { steps: 4 });
  await page.mouse.up();
  await page.locator("#time .sums caption", { hasText: "from" }).waitFor();
  const dragged = (await texts(page, "#table caption"))[0]!;
  const count = Number(/^[\d,]+/.exec(dragged)![0]);
  t.ok(count > 100 && count < 250, dragged);
  await picture.focus();
  await page.keyboard.press("End");
  await page.keyboard.press("Enter");
  await page.locator("#table caption", { hasText: /^1 of/ }).waitFor();
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("Shift+Enter");
  await page.locator("#table caption", { hasText: /^[23] of/ }).waitFor();

  // The data flow of a layer is selected by number.
  await page.locator("#flow select").selectOption("30");
  await page.locator("#flow p", { hasText: "the steps of layer 30;" })
    .waitFor();
  t.strictSame(
    (await texts(page, "#flow svg a title")).map((title) =>
      /^\d+/.exec(title)![0]
    ),
    // Includes steps for few tokens, which do not run here: attention split over keys, with and without the new key,
    // norms, assignment of choices, a router that assigns, the row of one token, matmuls of at most 16 rows, and one of
    // one row.
    Array.from({ length: 30 }, (_, i) => `${1 + 30 * 30 + i}`),
  );
  t.strictSame(await accessibilityProblems(page), []);
  await page.emulateMedia({ colorScheme: "dark" });
  t.strictSame(await accessibilityProblems(page), [], "in dark mode");
  t.strictSame(complaints, []);
});

/** Waits until the label of the timeline changes; returns it. */
async function changed(page: Page, label: string): Promise<string> {
  const quoted = JSON.stringify(label);
  const current = 'document.querySelector("#time .picture").ariaLabel';
  await page.waitForFunction(`${current} !== ${quoted}`);
  return await page.evaluate(current);
}

t.test("the schedule of stages", { skip: skipWithoutBrowser }, async (t) => {
  const plan = path.join(temporaryFolder(t), "plan.json");
  for (
    const argv of [
      [
        ...["plan", "examples/demo-lm", "--train", "--mesh", "pp=2"],
        ...["--accumulate", "4", "--max-tokens", "16", "--out", plan],
      ],
      ["view", plan, "--target", "2x24gb", "--out", OUT],
    ]
  ) {
    const { code, err } = await switchyard(argv);
    t.equal(code, 0, err);
  }
  const browser = await openBrowser();
  t.teardown(() => browser.close());
  const { page } = await openPage(browser, pathToFileURL(OUT).href);
  t.match(
    await page.locator("#time").innerText(),
    /The schedule is 1f1b, 2 stages, 4 micro-batches: a bubble of \S+ % of the work \(25 % for equal stages\)\./,
  );
  const waits = (await texts(page, "#time svg title"))
    .filter((title) => title.startsWith("waiting for ranks that are later"));
  t.ok(waits.length > 0, "waits are drawn");
});
