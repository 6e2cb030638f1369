// The example's page in a real browser: the recorded text on WebGPU and WebAssembly, on one rank and four; the same
// bits as Node; a lost device. needs: browser rotates with: browser/, examples/browser/

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import process from "node:process";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import t from "tap";
import { verifyPlanText } from "../spec/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import {
  LOSABLE,
  openBrowser,
  openPage,
  skipWithoutBrowser,
} from "./helpers/browser.ts";
import {
  openDevices,
  openSession,
  openWeights,
  packedPrompts,
  repositoryFile,
  type Tensors,
} from "./helpers/sessions.ts";

/** Files of a bundle as esbuild lists them, with their imports. */
interface Files {
  readonly [file: string]: { readonly imports: readonly { path: string }[] };
}

interface Recorded {
  readonly prompt: string;
  readonly text: string;
}

const [recorded] = JSON.parse(
  readFileSync(
    new URL("references/demo-lm/reference_continuations.json", import.meta.url),
    "utf8",
  ),
) as [Recorded];

/** Returns the address that the example's server prints. */
async function startServer(): Promise<string> {
  const server = spawn(
    process.execPath,
    [repositoryFile("examples/browser/serve.mjs"), "0"],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  t.teardown(() => server.kill());
  const [address] = await once(server.stdout, "data") as [Buffer];
  return address.toString().trim();
}

async function planText(): Promise<string> {
  const out = `${temporaryFolder(t)}/plan.json`;
  const { code, err } = await switchyard([
    ...["plan", "examples/demo-lm", "--max-tokens", "64"],
    ...["--max-sequences", "4", "--max-context", "256", "--out", out],
  ]);
  t.equal(code, 0, err);
  return readFileSync(out, "utf8");
}

/** Generates text on the page; resolves when the page accepts the next request. */
async function generate(page: Page): Promise<void> {
  await page.locator("#go").click();
  await page.locator("#go:enabled").waitFor();
}

const text = async (page: Page, id: string) =>
  (await page.locator(id).textContent())!;

/** Computes outputs on the CPU device in Node. */
async function inNode(text: string, inputs: Tensors): Promise<Tensors> {
  const { plan } = verifyPlanText(text);
  const session = await openSession(plan!, {
    devices: await openDevices(plan!, { target: "cpu" }),
    tensors: await openWeights("demo-lm"),
  });
  const outputs = await session.run("main", inputs);
  session.close();
  return outputs;
}

/** Inputs as plain values, which Playwright can serialize. */
function plainInputs(inputs: Tensors) {
  return Object.entries(inputs).map(([name, { shape, data }]) => ({
    name,
    shape,
    data: [...data],
  }));
}

/**
 * Logits computed in a page on some ranks, from a checkpoint given as files. The page has no shared memory, so it has
 * no worker threads.
 */
async function inPage(
  page: Page,
  plan: string,
  { inputs, ranks }: { inputs: Tensors; ranks: number },
) {
  return await page.evaluate(async ({ module, plan, inputs, ranks }) => {
    const { fileFolder, openModel } = await import(module);
    const checkpoint = fileFolder(
      await Promise.all(
        ["config.json", "tokenizer.json", "model.safetensors"].map(
          async (name) => {
            const response = await fetch(`../demo-lm/${name}`);
            return new File([await response.blob()], name);
          },
        ),
      ),
    );
    const model = await openModel({
      plan,
      checkpoint,
      mesh: { ep: ranks },
      device: "cpu",
    });
    const { logits } = await model.session.run(
      "main",
      Object.fromEntries(
        inputs.map(({ name, shape, data }) => [
          name,
          { dtype: "i32", shape, data: Int32Array.from(data) },
        ]),
      ),
    );
    model.close();
    return {
      device: model.device.name as string,
      found: [...logits.data as Float32Array],
    };
  }, {
    module: "/dist/browser/mod.js",
    plan,
    ranks,
    inputs: plainInputs(inputs),
  });
}

/** Reads a cached file of 2.5 MiB repeatedly in a page; returns requests and correctness of each read. */
async function cachedReads(page: Page): Promise<(number | boolean)[]> {
  return await page.evaluate(async (module) => {
    const { webFolder } = await import(module);
    const size = 2.5 * 2 ** 20;
    const { storage } = (globalThis as unknown as {
      navigator: { storage: { getDirectory: () => Promise<object> } };
    }).navigator;
    const results: (number | boolean)[] = [];
    const read = async (etag: string, first: number) => {
      const data = Uint8Array.from({ length: size }, (_, i) => i % 251 + first);
      let requests = 0;
      globalThis.fetch = (_, { headers } = {}) => {
        requests++;
        const { range } = headers as { range: string };
        const [from, to] = range.slice("bytes=".length).split("-").map(Number);
        return Promise.resolve(
          new Response(data.slice(from, to! + 1), {
            status: 206,
            headers: { "content-range": `${range}/${size}`, etag },
          }),
        );
      };
      const file = await webFolder("weights/", { cache: true }).open("a");
      const found: Uint8Array = await file.read(3, size - 3);
      const right = found.every((x, i) => x === data[i + 3]);
      results.push(requests, right && found.length === size - 3);
    };
    await read("one", 0);
    await read("one", 0);
    await read("two", 1);
    await read("one", 0);
    // As in a page without storage permission.
    storage.getDirectory = () => Promise.reject(new Error("refused"));
    await read("one", 0);
    return results;
  }, "/dist/browser/mod.js");
}

t.test("a page runs plans", { skip: skipWithoutBrowser }, async (t) => {
  const browser = await openBrowser();
  t.teardown(() => browser.close());
  const [address, plan] = await Promise.all([startServer(), planText()]);
  const { page, complaints } = await openPage(browser, "about:blank");
  await page.route("**/plan.json", (route) => route.fulfill({ body: plan }));
  await page.addInitScript(LOSABLE);
  await page.goto(address);
  t.ok(await page.evaluate("crossOriginIsolated"));

  const names = {
    cpu: "CPU \\(WebAssembly SIMD, \\d+ threads?\\)$",
    gpu: "(?!CPU)",
  };
  for (const [device, name] of Object.entries(names)) {
    for (const ranks of [1, 4]) {
      await page.locator("#ranks").fill(`${ranks}`);
      await page.locator("#device").selectOption(device);
      const begun = performance.now();
      await generate(page);
      t.equal(await text(page, "#text"), recorded.prompt + recorded.text);
      const status = await text(page, "#status");
      t.match(
        status,
        new RegExp(`^${ranks === 1 ? "1 rank" : `${ranks} ranks`} on ${name}`),
      );
      t.comment(`${device} ${ranks}: ${performance.now() - begun} ms`);
    }
  }
  t.strictSame(complaints, []);

  const { page: planless } = await openPage(browser, "about:blank");
  await planless.route(
    "**/plan.json",
    (route) => route.fulfill({ status: 404 }),
  );
  await planless.goto(address);
  await planless.locator("#go").click();
  await planless.locator("#status", { hasText: "Cannot" }).waitFor();
  t.match(
    await text(planless, "#status"),
    /^Cannot fetch plan\.json: status 404\. Write it with 'switchyard plan/,
  );
  await planless.close();

  const malformed = await fetch(new URL("/%ff", address));
  t.equal(malformed.status, 400, "the server answers malformed requests");

  // Node on one rank, the page on one and four: bits do not depend on the mesh.
  const inputs = packedPrompts([9, 7, 5]);
  const { logits } = await inNode(plan, inputs);
  const { page: alone } = await openPage(browser, "about:blank");
  await alone.route("**/index.html", (route) =>
    route.fulfill({
      path: repositoryFile("examples/browser/index.html"),
      contentType: "text/html",
    }));
  await alone.goto(address);
  for (const ranks of [1, 4]) {
    const { device, found } = await inPage(alone, plan, { inputs, ranks });
    t.equal(device, "CPU (WebAssembly SIMD, no thread of its own)");
    t.equal(found.length, logits!.data.length);
    t.ok(
      found.every((x, i) => Object.is(x, logits!.data[i])),
      `logits on ${ranks} ranks`,
    );
  }

  // One request determines the version of the file; three fetch its blocks.
  t.strictSame(
    await cachedReads(alone),
    [4, true, 1, true, 4, true, 4, true, 4, true],
  );

  const lost = page.locator("#status", { hasText: "Cannot compute" });
  await page.locator("#go").click();
  await page.locator("#text", { hasText: recorded.text.slice(0, 20) })
    .waitFor();
  await page.evaluate("gpuDevice.destroy()");
  await lost.waitFor();
  t.match(await text(page, "#status"), /^Cannot compute on device '.*lost/);
  t.equal(await text(page, "#go"), "Load again");
  await generate(page);
  t.equal(await text(page, "#text"), recorded.prompt + recorded.text);
  t.strictSame(complaints, []);
});

t.test("the browser bundle imports no modules of Node", async (t) => {
  const { bundleBrowser } = await import(
    "../scripts/bundle.mjs" as string
  ) as {
    bundleBrowser: (
      folder: string,
    ) => Promise<{
      metafile: { inputs: Files; outputs: Files };
      outputFiles: readonly [{ contents: Uint8Array }];
    }>;
  };
  const folder = temporaryFolder(t);
  const { metafile, outputFiles: [bundle] } = await bundleBrowser(folder);
  t.strictSame(
    Object.values(metafile.outputs).flatMap(({ imports }) => imports),
    [],
    "one file",
  );
  const inputs = Object.entries(metafile.inputs);
  const builtIn = inputs.flatMap(([file, { imports }]) =>
    imports.flatMap(({ path }) => isBuiltin(path) ? [`${file}: ${path}`] : [])
  );
  t.strictSame(builtIn, []);
  t.ok(inputs.length > 100, "more than 100 files are checked");
  const file = `${folder}/mod.mjs`;
  writeFileSync(file, bundle.contents);
  const { openModel } = await import(pathToFileURL(file).href);
  await t.rejects(openModel({ plan: "", checkpoint: "", Mesh: { ep: 2 } }), {
    name: "DataError",
    message:
      "Cannot open a model with option 'Mesh': it is unknown. Write 'mesh'",
  });
});

t.test("the example's page has fewer than 100 lines", (t) => {
  const page = readFileSync(repositoryFile("examples/browser/index.html"));
  t.ok(page.toString().split("\n").length < 100);
  t.end();
});
