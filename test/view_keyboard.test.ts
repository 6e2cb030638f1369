// Every view of a page by keyboard alone, with the numbers of the plan; in dark mode; printed; and pictures as files.
// needs: cpu, browser
// rotates with: view/

import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import t from "tap";
import type { PlanSummary, RankBytes } from "../spec/mod.ts";
import { sizeText } from "../spec/size_text.ts";
import { durationText } from "../view/time.ts";
import {
  accessibilityProblems,
  openBrowser,
  openPage,
  skipWithoutBrowser,
  texts,
} from "./helpers/browser.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const FOLDER = temporaryFolder(t);
const file = (name: string) => path.join(FOLDER, name);
const MODEL = ["examples/demo-lm", "--mesh", "ep=4", "--target", "8xh100"];
const KINDS = ["weights", "state", "scratch", "staging", "total"] as const;

async function summaryOf(...argv: string[]): Promise<PlanSummary> {
  return JSON.parse((await switchyard(["plan", ...argv, "--json"])).out);
}

/** Creates a page with every view; returns it with the summary of the compared plan. */
async function makePage(): Promise<{ url: string; other: PlanSummary }> {
  await writeRaw(file("choices"), {
    "layer0.topk_idx": integers([1, 2, 2], [0, 7, 3, 4]),
    "layer1.topk_idx": integers([1, 2, 2], [1, 2, 6, 5]),
  });
  const two = ["examples/demo-lm", "--mesh", "ep=2"];
  await switchyard(["plan", ...two, "--out", file("two.json")]);
  const { code, err } = await switchyard([
    ...["view", ...MODEL, "--choices", file("choices")],
    ...["--against", file("two.json"), "--out", file("page.html")],
  ]);
  t.equal(code, 0, err);
  return {
    url: pathToFileURL(file("page.html")).href,
    // For the same machine, whose devices are separate.
    other: await summaryOf(...two, "--target", "8xh100"),
  };
}

/** Presses Tab until an element has the focus. */
async function tabTo(page: Page, selector: string): Promise<void> {
  for (let i = 0; i < 500; i++) {
    await page.keyboard.press("Tab");
    const here = await page.locator(`${selector}:focus`).count() > 0;
    if (here) return;
  }
  throw new Error(`Cannot reach '${selector}' by Tab.`);
}

/** Descriptions of the shapes that keys select in a picture. */
async function read(
  page: Page,
  view: string,
  keys: readonly string[],
): Promise<string[]> {
  await tabTo(page, `#${view} .picture`);
  const descriptions: string[] = [];
  for (const key of keys) {
    const before = descriptions.at(-1) ?? "Point at a shape";
    await page.keyboard.press(key);
    const output = page.locator(`#${view} output`);
    await output.filter({ hasNotText: before }).waitFor();
    descriptions.push((await output.textContent())!);
  }
  return descriptions;
}

const max = ({ ranks }: PlanSummary, kind: keyof RankBytes) =>
  sizeText(Math.max(...ranks.map(({ bytes }) => bytes[kind])));

t.test("every view", { skip: skipWithoutBrowser }, async (t) => {
  const [browser, { url, other }, summary] = await Promise.all([
    ...[openBrowser(), makePage(), summaryOf(...MODEL)] as const,
  ]);
  t.teardown(() => browser.close());
  const { page, complaints } = await openPage(browser, url);
  const { keyboard } = page;

  t.strictSame((await texts(page, ".facts dd")).slice(0, 4), [
    `${(summary.model.parameters / 1e6).toFixed(2)} M`,
    `${(summary.model.activeParameters! / 1e6).toFixed(2)} M`,
    ...["4", max(summary, "total")],
  ]);

  await tabTo(page, "#tracks .parts button:last-child");
  await keyboard.press("Enter");
  const after = page.locator("#tracks p", { hasText: "In after the layers" });
  await after.waitFor();
  await keyboard.press("Shift+Tab");
  await keyboard.press("Enter");
  // The picture with the focus then shows the first part.
  await after.waitFor({ state: "detached" });
  t.match(await read(page, "tracks", ["ArrowRight", "ArrowDown"]), [
    ...[/^rank 0: attention, rmsNorm/, /^rank 1: attention, rmsNorm/],
  ]);
  await tabTo(page, "#tracks .picture a");
  await keyboard.press("Enter");
  await page.locator(".detail h3", { hasText: /^1\. rmsNorm/ }).waitFor();

  t.strictSame(
    (await read(page, "ranks", ["ArrowDown", "ArrowRight", "ArrowRight"]))
      .slice(1),
    (["weights", "state"] as const).map((kind) =>
      `${kind === "state" ? "KV cache or optimizer state" : kind}: ${
        sizeText(summary.ranks[0]!.bytes[kind])
      }`
    ),
  );

  await tabTo(page, "#steps select");
  await keyboard.press("ArrowDown");
  await page.locator(".detail h3", { hasText: /^\d\d\. rmsNorm/ }).waitFor();
  await tabTo(page, "#steps .close");
  await keyboard.press("Enter");
  await page.locator(".detail").waitFor({ state: "detached" });

  await tabTo(page, "#traffic tbody button[aria-pressed=true]");
  await tabTo(page, "#traffic tbody button");
  await keyboard.press("Enter");
  await page.locator("#traffic .picture[aria-label*=combine]").waitFor();
  const { bytesPerToken } = summary.layers
    .flatMap(({ exchanges }) => exchanges)[1]!;
  // Each rank has a quarter of the tokens of a full step; a third of its traffic to others goes to each of them.
  const pair = sizeText(bytesPerToken * 512 / 4 / 3);
  t.strictSame(
    (await read(page, "traffic", ["ArrowDown", "ArrowRight", "ArrowDown"]))
      .slice(1),
    [`rank 0 to rank 1: ${pair}`, `rank 1 to rank 1: ${pair}`]
      .map((text, i) => i === 0 ? text : `${text}, which stay on the rank`),
  );

  // Four ranks on one host of eight devices: 12 pairs.
  t.strictSame(await texts(page, "#traffic .links th, #traffic .links td"), [
    ...["within a host", sizeText(bytesPerToken * 512)],
  ]);

  const [embedding] = await read(page, "memory", ["Home"]);
  // A row of 128 floats for each of the tokens that a rank may receive.
  t.match(embedding, `embedding: ${sizeText(512 * 128 * 4)}`);

  const { prefill } = summary.predicted!;
  t.match(
    await texts(page, "#time p"),
    [durationText(prefill!.seconds * 1e6)],
  );
  await tabTo(page, "#time select");
  await keyboard.press("ArrowDown");
  await page.locator("#time .picture[aria-label*=decoding]").waitFor();
  await keyboard.press("ArrowUp");
  const boxes = page.locator("#time svg title");
  const all = await boxes.count();
  await tabTo(page, "#time .parts button:first-child");
  await keyboard.press("Enter");
  await page.locator("#time .picture[aria-label*='from ']").waitFor();
  t.ok(await boxes.count() < all, "a part of the run");
  await keyboard.press("Tab");
  await keyboard.press("Enter");
  await page.locator("#time .picture:not([aria-label*='from '])").waitFor();
  t.equal(await boxes.count(), all);

  await tabTo(page, "#token input");
  await keyboard.press("ArrowUp");
  await page.locator("#token caption", { hasText: "Token 1" }).waitFor();
  t.strictSame(await texts(page, "#token td"), ["3 4", "1 2", "6 5", "3 2"]);

  t.strictSame(
    (await texts(page, "#diff tbody td")).slice(0, 12),
    [
      ...["ep=4", "ep=2"],
      ...KINDS.flatMap((kind) => [max(summary, kind), max(other, kind)]),
    ],
  );
  await tabTo(page, "#diff summary");
  await keyboard.press("Enter");
  await page.locator("#diff pre").waitFor();

  await page.emulateMedia({ colorScheme: "dark" });
  t.strictSame(await accessibilityProblems(page), [], "in dark mode");

  const { length } = await texts(page, ".below button");
  t.equal(length, 7);
  const { page: alone } = await openPage(browser, "about:blank");
  for (let i = 0; i < length; i++) {
    const [saved] = await Promise.all([
      page.waitForEvent("download"),
      page.locator(".below button").nth(i).click(),
    ]);
    const svg = file(`${i}.svg`);
    await saved.saveAs(svg);
    await alone.goto(pathToFileURL(svg).href);
    const label = await alone.locator("svg:root").getAttribute("aria-label");
    t.equal(
      label,
      await page.locator(".picture").nth(i).getAttribute("aria-label"),
      saved.suggestedFilename(),
    );
  }

  // A sheet of A4.
  await page.setViewportSize({ width: 794, height: 1123 });
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  t.notOk(await page.locator(".parts").first().isVisible());
  t.notOk(await page.locator("#search").isVisible());
  for (const picture of await page.locator(".picture").all()) {
    t.ok(await picture.isVisible());
    const [inner, outer] = await picture.evaluate((element) => [
      ...[element.scrollWidth, element.clientWidth],
    ]);
    t.ok(inner! <= outer!, `${inner} of ${outer} pixels`);
  }
  const paper = await page.evaluate("getComputedStyle(document.body).color");
  t.equal(paper, "rgb(29, 36, 51)", "black on white");
  t.strictSame(complaints, []);
});
