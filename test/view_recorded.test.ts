// The page of a recorded run: tokens show their recorded routing, and bytes are the counted ones.
// needs: cpu, browser
// rotates with: view/

import { readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Page } from "playwright-core";
import t from "tap";
import type { PlanSummary } from "../spec/mod.ts";
import { durationText } from "../view/time.ts";
import { type RankStatistics, writeSafetensors } from "../engine/mod.ts";
import {
  accessibilityProblems,
  openBrowser,
  openPage,
  skipWithoutBrowser,
} from "./helpers/browser.ts";
import { padBatch, readReference } from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const LAYERS = [0, 1, 2, 3];
const RANKS = 4;
const EXPERTS = 8;
/** Bytes of a dispatched row. */
const ROW = 128 * 4;

const FOLDER = temporaryFolder(t);
const file = (name: string) => path.join(FOLDER, name);
const reference = await readReference("demo-lm");

/** Records a run of two prompts on four ranks and creates its page. */
async function recordedRun(): Promise<readonly RankStatistics[]> {
  const prompts = ["p0", "p1"].map((name) => [
    ...reference[`${name}.input_ids`]!.data,
  ]);
  writeFileSync(file("in"), writeSafetensors(padBatch(prompts)));
  const model = ["examples/demo-lm", "--mesh", "ep=4"];
  const seen = ["--trace", file("trace")];
  const run = await switchyard([
    ...["run", ...model, "--inputs", file("in"), "--adapter", "cpu", "--json"],
    ...[...seen, "--outputs", file("out")],
  ]);
  t.equal(run.code, 0, run.err);
  const { code, err } = await switchyard([
    ...["view", ...model, ...seen, "--choices", file("out")],
    ...["--target", "8xh100", "--out", file("page.html")],
  ]);
  t.equal(code, 0, err);
  return JSON.parse(run.out).ranks;
}

/** The page's path of a token: a row per layer. */
async function wayOf(page: Page, token: number): Promise<number[][][]> {
  await page.locator("#token input").fill(`${token}`);
  await page.locator("#token caption", { hasText: `Token ${token},` })
    .waitFor();
  const cells = await page.locator("#token td").allTextContents();
  return LAYERS.map((layer) =>
    cells.slice(4 * layer, 4 * layer + 4)
      .map((text) => text.split(" ").map(Number))
  );
}

/** Expert weights from recorded logits of another framework: softmax over all experts. */
function weightsOf(layer: number, token: number): number[] {
  const logits = [
    ...reference[`p0.layer${layer}.router_logits`]!.data
      .slice(token * EXPERTS, (token + 1) * EXPERTS),
  ].map(Math.exp);
  const all = logits.reduce((a, b) => a + b, 0);
  return logits.map((x) => x / all);
}

/** Parses `1.5 KiB`. */
function bytesOf(text: string): number {
  const [, number, unit] = /([\d.]+) (bytes|KiB)/.exec(text)!;
  return Number(number) * (unit === "KiB" ? 1024 : 1);
}

t.test(
  "the page shows the recorded run",
  { skip: skipWithoutBrowser },
  async (t) => {
    const browser = await openBrowser();
    t.teardown(() => browser.close());
    const ranks = await recordedRun();
    const url = pathToFileURL(file("page.html")).href;
    t.ok(statSync(file("page.html")).size < 10e6, "below 10 MB");
    const { page, complaints } = await openPage(browser, url);
    const length = reference["p0.input_ids"]!.data.length;
    const sent = new Array<number>(RANKS).fill(0);
    const count = length + reference["p1.input_ids"]!.data.length;
    const sourceRanks = new Set<number>();
    for (let token = 0; token < count; token++) {
      const way = await wayOf(page, token);
      for (const [layer, cells] of way.entries()) {
        const [[sourceRank], experts, on, weights] = cells as [
          [number],
          ...[number[], number[], number[]],
        ];
        sourceRanks.add(sourceRank);
        t.strictSame(on, experts.map((e) => Math.floor(e / 2)));
        sent[sourceRank]! += on.filter((rank) => rank !== sourceRank).length *
          ROW;
        if (token >= length) continue;
        const { data } = reference[`p0.layer${layer}.topk_idx`]!;
        const chosen = [...data.slice(2 * token, 2 * token + 2)];
        t.strictSame(experts, chosen, `token ${token}, layer ${layer}`);
        const wanted = weightsOf(layer, token);
        t.ok(
          experts.every((e, i) => Math.abs(weights[i]! - wanted[e]!) < 6e-4),
          `weights ${weights}`,
        );
      }
    }
    t.equal(sourceRanks.size, 2, "each prompt has its own rank");
    const counted = (op: "dispatch" | "combine") =>
      ranks.map(({ sentBytes }) => sentBytes[op].actual);
    t.strictSame(sent, counted("dispatch"), "by hop");

    // Traffic of each exchange over all layers sums to the counted bytes.
    for (const op of ["dispatch", "combine"] as const) {
      await page.locator("#traffic button", { hasText: RegExp(`^${op}$`) })
        .click();
      const all = new Array<number>(RANKS).fill(0);
      let rows = 0;
      for (const layer of LAYERS) {
        await page.locator("#traffic select").selectOption(`${layer}`);
        const titles = await page.locator("#traffic title").allTextContents();
        for (const title of titles) {
          all[Number(/rank (\d)/.exec(title)![1])]! += bytesOf(title);
        }
        const cell = page.locator("#traffic tr", {
          has: page.locator("button[aria-pressed=true]"),
        }).locator("td").nth(5);
        rows += bytesOf(await cell.innerText());
      }
      t.strictSame(all, counted(op), op);
      t.equal(rows, all.reduce((a, b) => a + b, 0));
    }
    // Predicted values are marked, and match the summary.
    const planned = await switchyard([
      ...["plan", "examples/demo-lm", "--mesh", "ep=4", "--target", "8xh100"],
      "--json",
    ]);
    const { predicted } = JSON.parse(planned.out) as PlanSummary;
    const { prefill, decode } = predicted!;
    const times = [prefill!, decode!].map(({ seconds }) =>
      durationText(seconds * 1e6)
    );
    t.strictSame(
      (await page.locator("#time .layer option").allTextContents()).slice(-2),
      [
        `predicted: prefill of ${prefill!.tokens} tokens, ${times[0]}`,
        `predicted: decoding of ${decode!.tokens} tokens, ${times[1]}`,
      ],
    );
    await page.locator("#time .layer select").selectOption({ index: 1 });
    t.match(
      await page.locator("#time p").first().textContent(),
      `Predicted for 8 H100 with NVLink, where nothing was run: prefill of ${
        prefill!.tokens
      } tokens takes ${times[0]}.`,
    );
    t.match(
      await page.locator("#time .picture").getAttribute("aria-label"),
      /^predicted: prefill/,
    );
    t.strictSame(await accessibilityProblems(page), []);
    t.strictSame(complaints, []);

    // The trace also has the bytes, for other viewers.
    const { traceEvents } = JSON.parse(readFileSync(file("trace"), "utf8")) as {
      traceEvents: { args: { sentBytes?: number }; tid: number }[];
    };
    for (const { rank, sentBytes } of ranks) {
      t.equal(
        traceEvents.filter(({ tid }) => tid === rank + 1)
          .reduce((sum, { args }) => sum + (args.sentBytes ?? 0), 0),
        Object.values(sentBytes).reduce((sum, { actual }) => sum + actual, 0),
      );
    }
  },
);
