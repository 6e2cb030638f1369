/** A headless Chromium, where the system has one. */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";
import { type Browser, chromium, type Page } from "playwright-core";
import { skipUnasked } from "./needs.ts";

/** What systems call it, wherever in PATH it is. */
const NAMES = [
  ...["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"],
];

const found = [
  ...process.env["CHROME_PATH"] ? [process.env["CHROME_PATH"]] : [],
  ...(process.env["PATH"] ?? "").split(path.delimiter)
    .flatMap((folder) => NAMES.map((name) => path.join(folder, name))),
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
].find((file) => existsSync(file));

/** Why tests that need a browser are skipped here, or false. */
export const skipWithoutBrowser: false | string = skipUnasked("browser") ||
  (found
    ? false
    : "there is no Chromium: install the package 'chromium', or set CHROME_PATH");

/** Start it, with WebGPU by software. */
export async function openBrowser(): Promise<Browser> {
  return await chromium.launch({
    executablePath: found!,
    args: [
      ...["--no-sandbox", "--enable-unsafe-webgpu"],
      ...["--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"],
    ],
  });
}

/** A script that gives a page a device that it can lose: `gpuDevice`. */
export const LOSABLE = `
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (...args) {
  return globalThis.gpuDevice = await request.apply(this, args);
};
`;

/** A page, and everything that it complained about. */
export interface WatchedPage {
  readonly page: Page;
  readonly complaints: readonly string[];
  /** Seconds that the page's own thread worked until it could be used: others may use the processor too. */
  readonly seconds: number;
}

/** Open a page and listen to it. */
export async function openPage(
  browser: Browser,
  url: string,
  { dark = false }: { readonly dark?: boolean } = {},
): Promise<WatchedPage> {
  const page = await browser.newPage({
    viewport: { width: 1280, height: 900 },
    colorScheme: dark ? "dark" : "light",
  });
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) {
      complaints.push(message.text());
    }
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  // Nothing waits so long but a page that hangs, on a machine that is busy with other work too.
  page.setDefaultTimeout(120_000);
  const client = await page.context().newCDPSession(page);
  await client.send("Performance.enable", { timeDomain: "threadTicks" });
  await page.goto(url);
  const { metrics } = await client.send("Performance.getMetrics");
  await client.detach();
  const seconds = metrics.find(({ name }) => name === "TaskDuration")!.value;
  return { page, complaints, seconds };
}

/** The texts of elements. */
export async function texts(page: Page, selector: string): Promise<string[]> {
  return (await page.locator(selector).allTextContents())
    .map((text) => text.trim());
}

/** What axe-core finds serious or critical in a page, one line each. */
export async function accessibilityProblems(page: Page): Promise<string[]> {
  const { resolve } = createRequire(import.meta.url);
  // Evaluated, as the page's own policy lets no script in.
  await page.evaluate(
    readFileSync(resolve("axe-core/axe.min.js"), "utf8"),
  );
  // Reports of all that is well would be megabytes.
  const { passes, problems } = await page.evaluate(`
    axe.run({ resultTypes: ["violations"] }).then((found) => ({
      passes: found.passes.length,
      problems: found.violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .map(({ id, nodes }) => id + ": " + nodes[0].html),
    }))`) as { readonly passes: number; readonly problems: string[] };
  return passes === 0 ? ["axe-core looked at nothing"] : problems;
}
