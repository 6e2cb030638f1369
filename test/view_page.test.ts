// The page of a plan in a real browser: opens from disk without errors, shows the numbers of the plan, is accessible,
// and is small at 256 ranks.
// needs: cpu, browser
// rotates with: view/

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import t from "tap";
import { parsePlan, type Plan, type PlanSummary } from "../spec/mod.ts";
import { onRank } from "../spec/plan/plan.ts";
import { sizeText } from "../spec/size_text.ts";
import { rateText } from "../spec/time_text.ts";
import type { SearchResult } from "../view/mod.ts";
import {
  accessibilityProblems,
  LOSABLE,
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

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FOLDER = temporaryFolder(t);
const OPTIONS = { skip: skipWithoutBrowser };
const browser = skipWithoutBrowser ? undefined : await openBrowser();
t.teardown(() => browser?.close());

/** Creates the page of a command line; returns its address. */
async function pageOf(name: string, ...argv: string[]): Promise<string> {
  const out = path.join(FOLDER, `${name}.html`);
  const { code, err } = await switchyard(["view", ...argv, "--out", out]);
  t.equal(code, 0, err);
  t.ok(statSync(out).size < 10e6, "below 10 MB");
  return pathToFileURL(out).href;
}

async function summaryOf(...argv: string[]): Promise<PlanSummary> {
  return JSON.parse((await switchyard(["plan", ...argv, "--json"])).out);
}

async function planOf(...argv: string[]): Promise<Plan> {
  return parsePlan(
    (await switchyard(["plan", ...argv, "--json", "--full"])).out,
  );
}

/** Drops a file or folder on a page. */
async function drop(page: Page, file: string): Promise<void> {
  const client = await page.context().newCDPSession(page);
  for (const type of ["dragEnter", "dragOver", "drop"] as const) {
    await client.send("Input.dispatchDragEvent", {
      type,
      x: 200,
      y: 200,
      data: { items: [], files: [file], dragOperationsMask: 1 },
    });
  }
  await client.detach();
}

t.test(
  "a layer's page shows the numbers of its plan",
  OPTIONS,
  async (t) => {
    const argv = ["examples/layer.ts", "--mesh", "ep=4"];
    const { ranks, layers } = await summaryOf(...argv);
    const { page, complaints } = await openPage(
      browser!,
      await pageOf("layer", ...argv),
    );
    const [{ bytes, experts }] = ranks as readonly [PlanSummary["ranks"][0]];
    t.match(await texts(page, ".facts dd"), [
      ...[/12\.59 M/, /./, "4", sizeText(bytes.total), "11", "8"],
    ]);
    t.strictSame(await texts(page, "#ranks tbody td"), [
      `${experts}`,
      ...(["weights", "state", "scratch", "staging", "total"] as const)
        .map((kind) => sizeText(bytes[kind])),
    ]);
    const perToken = layers.flatMap(({ exchanges }) => exchanges)
      .map(({ bytesPerToken }) => sizeText(bytesPerToken));
    t.strictSame(await texts(page, "#traffic tbody td:nth-child(4)"), [
      "–",
      ...perToken,
    ]);
    // Bytes from rank 0 to rank 1, one of three others.
    const { axes } = await planOf(...argv);
    const tokens = axes["token"]!.size / 4;
    const { bytesPerToken } = layers.flatMap(({ exchanges }) => exchanges)[0]!;
    t.match(
      await texts(page, "#traffic title"),
      [/./, `rank 0 to rank 1: ${sizeText(bytesPerToken * tokens / 3)}`],
    );
    t.equal(await page.locator("#steps ol li").count(), 11);
    t.equal(await page.locator("#tracks path[d*=C]").count(), 32);
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);
  },
);

t.test(
  "a checkpoint's page is usable by keyboard alone",
  OPTIONS,
  async (t) => {
    const { page, complaints } = await openPage(
      browser!,
      await pageOf("demo", "examples/demo-lm", "--mesh", "ep=4"),
    );
    const { keyboard } = page;
    t.match(await texts(page, "#tracks .parts button"), [
      ...["before the layers", /layers 0–3\s*4 ×/, "after the layers"],
    ]);
    const { programs: [main], kernels } = await planOf(
      ...["examples/demo-lm", "--mesh", "ep=4"],
    );
    // The first step of the shown layers.
    await keyboard.press("/");
    await keyboard.type("/all-to-all");
    await page.locator(".found li").first().waitFor();
    const first = main!.steps.findIndex(({ op }) => op === "allToAll");
    const found = await texts(page, ".found li");
    t.match(found[0], RegExp(`^step ${first} dispatch: exchange all-to-all$`));
    t.equal(found.length, 2);
    await keyboard.press("Enter");
    await page.locator(`.detail[aria-label="Step ${first}"]`).waitFor();
    await keyboard.press("/");
    await keyboard.type("experts.3");
    await page.locator(".found li").waitFor();
    t.match(await texts(page, ".found li"), [/rank 1, experts 2 3/]);
    await keyboard.press("Enter");
    await page.locator("#ranks .chosen").waitFor();
    t.match(await texts(page, "#ranks .chosen"), [/^Rank 1 .*experts 2 3/]);
    await keyboard.press("/");
    await keyboard.type("layers.2/dispatch");
    await keyboard.press("Enter");
    await page.locator(".detail h3").waitFor();
    t.match(page.url(), /#main\/43$/);
    t.match(await texts(page, ".detail h3"), [/^43\. dispatch: count/]);
    t.equal(await page.locator("#steps select").inputValue(), "2");
    t.match(await texts(page, ".detail figcaption"), [/feed_forward\.ts/]);
    await keyboard.press("Escape");
    await page.locator(".detail").waitFor({ state: "detached" });
    await page.goto(page.url().replace(/#.*/, "#main/18"));
    t.match(await texts(page, ".detail h3"), [/^18\. rmsNorm/]);
    await keyboard.press("j");
    await page.locator('.detail[aria-label="Step 19"]').waitFor();
    t.match(await texts(page, ".detail .proved li"), [
      /written before, .* by 18.* reads$/,
      ...[/ overlap$/, / bindings$/],
    ]);
    await page.locator(".detail summary", { hasText: "WGSL" }).press("Enter");
    await page.locator(".detail summary", { hasText: "tree" }).press("Enter");
    await page.locator(".detail details code").nth(1).waitFor();
    const [wgsl, tree] = await texts(page, ".detail details code");
    t.match(wgsl, /@compute/);
    const step = main!.steps[19]!;
    t.strictSame(
      JSON.parse(tree!),
      step.op === "launch" && JSON.parse(
        JSON.stringify(kernels[step.kernel]!.tree),
      ),
    );
    await page.goto(page.url().replace(/#.*/, "#100%"));
    await page.locator(".detail").waitFor({ state: "detached" });
    t.strictSame(complaints, []);
  },
);

t.test(
  "runs, choices and other plans are shown",
  OPTIONS,
  async (t) => {
    const trace = path.join(FOLDER, "trace.json");
    const args = { clock: "host" };
    const event = { cat: "launch", ph: "X", pid: 0, args };
    writeFileSync(
      trace,
      JSON.stringify({
        traceEvents: [
          { ...event, name: "main", tid: 0, ts: 1000, dur: 4000 },
          ...[0, 1, 2, 3].flatMap((rank) => [
            {
              ...event,
              name: "map",
              tid: rank + 1,
              ts: 1500,
              dur: 1000,
              args: { kernel: "grouped_matmul_pair_128x192" },
            },
            {
              ...event,
              name: "x",
              tid: rank + 1,
              ts: 2600,
              dur: 500,
              args: { op: "combine", part: "exchange" },
            },
          ]),
        ],
      }),
    );
    const choices = path.join(FOLDER, "outputs.safetensors");
    await writeRaw(choices, {
      "layer0.topk_idx": integers([1, 3, 2], [0, 7, 3, 4, -1, -1]),
      "layer1.topk_idx": integers([1, 3, 2], [1, 2, 6, 5, -1, -1]),
    });
    const other = path.join(FOLDER, "other.json");
    await switchyard([
      ...["plan", "examples/demo-lm", "--mesh", "ep=2", "--out", other],
    ]);
    const { page, complaints } = await openPage(
      browser!,
      await pageOf("run", "examples/demo-lm", "--mesh", "ep=4", ...[
        ...["--trace", trace, "--choices", choices, "--against", other],
      ]),
    );
    t.match(await texts(page, "#time p"), [
      /took 4\.00 ms\. A rank was busy for 38 % of it, longest with experts/,
    ]);
    t.strictSame(await texts(page, "#time td"), [
      ...["1.00 ms", "25 %", "500 µs", "13 %", "2.50 ms", "63 %"],
    ]);
    t.match(await texts(page, "#token p"), [/had 2 tokens/]);
    t.strictSame(await texts(page, "#token td"), ["0 7", "0 3", "1 2", "0 1"]);
    await page.locator("#token input").fill("1");
    await page.locator("#token caption", { hasText: "Token 1" }).waitFor();
    t.strictSame(await texts(page, "#token td"), ["3 4", "1 2", "6 5", "3 2"]);
    t.strictSame((await texts(page, "#diff tbody td")).slice(0, 2), [
      ...["ep=4", "ep=2"],
    ]);
    // Also for a plan document, whose summary has no layers.
    t.strictSame((await texts(page, "#diff tbody td")).slice(12, 16), [
      ...["3.0 KiB", "2.0 KiB", "3.0 KiB", "2.0 KiB"],
    ]);
    t.match(await texts(page, "#diff pre"), [/^-.*\n[^]*^\+/m]);
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);
  },
);

t.test(
  "a training step with ZeRO-1 is shown",
  OPTIONS,
  async (t) => {
    const argv = [
      ...["examples/demo-lm", "--mesh", "dp=2,ep=2", "--train", "--zero", "1"],
    ];
    const [{ ranks }, plan, url] = await Promise.all([
      summaryOf(...argv),
      planOf(...argv),
      pageOf("train", ...argv),
    ]);
    const { page, complaints } = await openPage(browser!, url);
    t.match(await texts(page, "h1"), [
      "demo-lm on dp=2, ep=2, a step of training",
    ]);
    const [{ bytes, experts }] = ranks as readonly [PlanSummary["ranks"][0]];
    t.strictSame(await texts(page, "#ranks tbody td"), [
      `${experts}`,
      ...(["weights", "state", "scratch", "staging", "total"] as const)
        .map((kind) => sizeText(bytes[kind])),
    ]);
    // Gradients are reduce-scattered over the ranks that share optimizer state, which then gather the parameters.
    const parts = page.locator("#traffic .parts button");
    const gathers = plan.programs[0]!.steps.flatMap((step, i) =>
      step.op === "allGather" && step.over.join() === "dp"
        ? [[i, step] as const]
        : []
    );
    t.equal(gathers.length, 2);
    for (
      const [name, [index, step]] of [
        ["layer 0, backward", gathers[0]!],
        ["layer 0, update", gathers[1]!],
      ] as const
    ) {
      await parts.filter({ hasText: name }).click();
      const row = page.locator("#traffic tbody tr")
        .filter({
          has: page.locator("td:first-child", { hasText: `${index}` }),
        });
      t.strictSame(await row.locator("td, button").allTextContents(), [
        `${index}`,
        step.blocks ? "reduce-scatter" : "all-gather",
        ...["dp", "–", sizeText(step.bytes), sizeText(step.bytes)],
      ]);
    }
    const [, peak, ...named] = /: (.*?), of which (.*) and \d+ smaller/
      .exec((await texts(page, "#memory p"))[1]!)!;
    t.match(peak, /MiB$/);
    for (const text of named.join().split(", ")) {
      const [name, ...size] = text.split(" ");
      const buffer = plan.buffers[name!]!;
      t.equal(size.join(" "), sizeText(onRank(buffer.bytes, 0)));
    }
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);
  },
);

t.test(
  "a search shows the best configuration and why others lose",
  OPTIONS,
  async (t) => {
    const machine = path.join(FOLDER, "machine.json");
    const out = path.join(FOLDER, "search.html");
    const limits = {
      maxBufferSize: 2 ** 40,
      maxStorageBufferBindingSize: 2 ** 40,
    };
    writeFileSync(
      machine,
      JSON.stringify({
        version: 1,
        name: "two devices",
        devices: {
          d: {
            multiplyAdds: 1e18,
            operations: 1e18,
            bandwidth: 1e11,
            launch: 1e-6,
            memory: 1.9e9,
            limits,
          },
        },
        hosts: [{ devices: [{ kind: "d", count: 2 }] }],
        links: { sameHost: { latency: 1e-5, bandwidth: 1e11, per: "rank" } },
      }),
    );
    const searched = await switchyard([
      ...["search", "test/references/configs/granite-3.0-1b-a400m.json"],
      ...["--target", machine, "--max-context", "256", "--json", "--out", out],
    ]);
    const { found, pareto, thrownOut } = JSON.parse(
      searched.out,
    ) as SearchResult;
    const [best, ...others] = found;
    const { page, complaints } = await openPage(
      browser!,
      pathToFileURL(out).href,
    );
    t.ok(statSync(out).size < 10e6, "below 10 MB");
    t.match(await texts(page, "h1"), [`granite-3.0-1b-a400m on ${best!.name}`]);
    t.match(await texts(page, "#search-result h2"), [`Why ${best!.name}?`]);
    t.match(await texts(page, "#search-result p"), [best!.why]);
    t.strictSame(
      await texts(page, ".front tbody td:nth-child(6), .front tbody th"),
      pareto.flatMap((one) => [one.name, rateText(one.tokensPerSecond)]),
    );
    t.strictSame(await texts(page, ".losers th"), [
      ...[...others, ...thrownOut].map(({ name }) => name),
    ]);
    const reasons = await texts(page, ".losers td");
    [...others, ...thrownOut].forEach(({ why }, i) =>
      t.match(reasons[i]!.toLowerCase(), why.toLowerCase())
    );
    t.ok(thrownOut.length > 0);
    const dots = await texts(page, "#search-result rect title");
    t.equal(new Set(dots).size, dots.length);
    t.ok(
      dots.some((text) =>
        text.startsWith(`${best!.name}, ${best!.sequences} `)
      ),
    );
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);
  },
);

t.test("a running training is followed", OPTIONS, async (t) => {
  const out = path.join(FOLDER, "trained");
  const training = spawn(process.execPath, [
    ...["bin/switchyard.mjs", "train", "examples/train/next_byte.ts"],
    ...["--steps", "30", "--out", out, "--adapter", "cpu", "--watch"],
  ], { cwd: ROOT, stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(training, "exit");
  const [output] = await once(training.stderr, "data") as [Buffer];
  const [, address] = /Watch at (\S+)/.exec(`${output}`)!;
  const { page, complaints } = await openPage(browser!, address!);
  await page.locator("[role=status]", { hasText: "Wrote" }).waitFor();
  t.strictSame((await ended)[0], 0);
  const records = readFileSync(path.join(out, "metrics.jsonl"), "utf8").trim()
    .split("\n").map((line) => JSON.parse(line));
  const last = records.at(-1);
  t.strictSame(await texts(page, ".facts dd"), [
    ...["30", last.loss.toFixed(4), last.gradientNorm.toFixed(3)],
    rateText(last.tokensPerSecond),
    ...[last.sentBytes, last.memoryBytes].map(sizeText),
  ]);
  t.ok(last.memoryBytes > 0 && last.sentBytes > 0);
  const curve = await page.locator("#loss path[opacity='0.4']").first()
    .getAttribute("d");
  t.equal(curve!.split("L").length, 30);
  t.equal(
    await page.locator("#load rect[rx]").count(),
    last.expertLoad.flat().length,
  );
  t.strictSame(await accessibilityProblems(page), []);
  t.strictSame(complaints, []);
});

t.test("a served page runs its plan", OPTIONS, async (t) => {
  const serving = spawn(process.execPath, [
    ...["bin/switchyard.mjs", "view", "examples/demo-lm", "--mesh", "ep=4"],
    ...["--max-context", "256", "--max-sequences", "1", "--run"],
  ], { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(serving, "exit");
  const [output] = await once(serving.stdout, "data") as [Buffer];
  const [, address] = /Open (\S+)/.exec(`${output}`)!;
  const { page, complaints } = await openPage(browser!, "about:blank");
  await page.addInitScript(LOSABLE);
  await page.goto(address!);
  const names = {
    cpu: /^All ranks on CPU \(WebAssembly SIMD, \d+ threads?\)$/,
    gpu: /^All ranks on (?!CPU)\S/,
  };
  for (const [device, name] of Object.entries(names)) {
    await page.locator("#run select").selectOption(device);
    await page.locator("#run button").click();
    await page.locator("#run [role=status]", { hasText: name }).waitFor();
    await page.locator("#run button:enabled").waitFor();
    t.match(
      await texts(page, "#run .text"),
      [/was not at all afraid that he/],
      device,
    );
  }
  t.equal((await fetch(`${address}checkpoint/../../package.json`)).status, 404);
  const config = `${address}checkpoint/config.json`;
  const complete = await (await fetch(config)).text();
  for (
    const [range, status, part] of [
      ["bytes=2-9", 206, complete.slice(2, 10)],
      ["bytes=20-", 206, complete.slice(20)],
      [`bytes=${complete.length}-`, 416, ""],
      ["bytes=-5", 200, complete],
    ] as const
  ) {
    const answer = await fetch(config, { headers: { range } });
    t.strictSame([answer.status, await answer.text()], [status, part], range);
  }
  await page.evaluate("gpuDevice.destroy()");
  await page.getByLabel("Text to continue").press("Enter");
  await page.locator("#run [role=status]", { hasText: "lost" }).waitFor();
  await page.locator("#run button", { hasText: "Load again" }).click();
  await page.locator("#run .text", { hasText: "afraid" }).waitFor();
  await page.locator("#run button:enabled").waitFor();
  // Files given to the page, with recording: each token is a run of all ranks.
  await page.locator("#run select").selectOption("cpu");
  await page.locator("#run [type=checkbox]").check();
  await page.locator("#run [type=file]").setInputFiles(
    ["config.json", "tokenizer.json", "model.safetensors"]
      .map((name) => path.join(ROOT, "examples/demo-lm", name)),
  );
  await page.locator("#run button").click();
  await page.locator("#run .text", { hasText: "afraid" }).waitFor();
  await page.locator("#run button:enabled").waitFor();
  t.equal(await page.locator("#time .layer option").count(), 48);
  t.match(await texts(page, "#time p"), [/^The recorded run took/]);
  t.match(await texts(page, "#traffic p"), [/what the recorded run sent/]);
  // The folder is dropped on the page, which then requests no files from the server.
  await page.locator("#run [type=checkbox]").uncheck();
  const asked: string[] = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  const checkpoint = path.join(ROOT, "examples/demo-lm");
  const { length } = readdirSync(checkpoint, { withFileTypes: true })
    .filter((entry) => entry.isFile());
  await drop(page, checkpoint);
  await page.locator("#run [role=status]", {
    hasText: `${length} files are given`,
  }).waitFor();
  await page.locator("#run button").click();
  await page.locator("#run .text", { hasText: "afraid" }).waitFor();
  await page.locator("#run button:enabled").waitFor();
  t.strictSame(asked.filter((name) => name.includes("/checkpoint/")), []);
  t.strictSame(await accessibilityProblems(page), []);
  t.strictSame(complaints, []);
  serving.kill("SIGTERM");
  t.strictSame((await ended)[0], 0);
});

t.test(
  "DeepSeek-V3 on 256 ranks has a small page",
  OPTIONS,
  async (t) => {
    const config = "test/references/configs/deepseek-v3.json";
    const url = await pageOf("deepseek", config, "--mesh", "ep=256");
    t.notMatch(readFileSync(new URL(url), "utf8"), /(src|href)="https?:/);
    const { page, complaints } = await openPage(
      browser!,
      `${url}#main/layers.30/dispatch`,
      { dark: true },
    );
    t.match(await texts(page, ".detail h3"), [/^\d+\. dispatch: count/]);
    t.equal(await page.locator("#ranks rect[rx='3']").count(), 256);
    await page.getByLabel("Show ranks 16–31 one by one").click();
    await page.locator("#tracks").getByText("rank 17", { exact: true })
      .waitFor();
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);
  },
);
