/** A headless Chromium, if installed. */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";
import { type Browser, chromium, type Page } from "playwright-core";
import { skipUnasked } from "./needs.ts";

/** Names of the executable in PATH. */
const NAMES = [
  ...["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"],
];

const found = [
  ...process.env["CHROME_PATH"] ? [process.env["CHROME_PATH"]] : [],
  ...(process.env["PATH"] ?? "").split(path.delimiter)
    .flatMap((folder) => NAMES.map((name) => path.join(folder, name))),
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
].find((file) => existsSync(file));

/** Reason to skip tests that need a browser, or false. */
export const skipWithoutBrowser: false | string = skipUnasked("browser") ||
  (found
    ? false
    : "there is no Chromium: install the package 'chromium', or set CHROME_PATH");

/** Starts Chromium with WebGPU on a software adapter. */
export async function openBrowser(): Promise<Browser> {
  return await chromium.launch({
    executablePath: found!,
    args: [
      ...["--no-sandbox", "--enable-unsafe-webgpu"],
      ...["--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"],
    ],
  });
}

/** Script that stores the page's GPU device in `gpuDevice`, so that a test can destroy it. */
export const LOSABLE = `
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (...args) {
  return globalThis.gpuDevice = await request.apply(this, args);
};
`;

/** A page with its errors and warnings. */
export interface WatchedPage {
  readonly page: Page;
  readonly complaints: readonly string[];
}

/** Opens a page and records its errors and warnings. */
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
  // Long enough for a busy machine; only a page that hangs exceeds it.
  page.setDefaultTimeout(120_000);
  await page.goto(url);
  return { page, complaints };
}

/** Returns the trimmed text of each element that matches `selector`. */
export async function texts(page: Page, selector: string): Promise<string[]> {
  return (await page.locator(selector).allTextContents())
    .map((text) => text.trim());
}

/** Returns serious and critical problems that axe-core reports, one line each. */
export async function accessibilityProblems(page: Page): Promise<string[]> {
  const { resolve } = createRequire(import.meta.url);
  // The page's content security policy forbids adding a script.
  await page.evaluate(
    readFileSync(resolve("axe-core/axe.min.js"), "utf8"),
  );
  // Reports of passed checks would be megabytes.
  const { passes, problems } = await page.evaluate(`
    axe.run({ resultTypes: ["violations"] }).then((found) => ({
      passes: found.passes.length,
      problems: found.violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .map(({ id, nodes }) => id + ": " + nodes[0].html),
    }))`) as { readonly passes: number; readonly problems: string[] };
  return passes === 0 ? ["axe-core looked at nothing"] : problems;
}
