// The table of steps and waits of a timeline: bytes, FLOPs and rooflines against hand computations, sorting, filters.
// rotates with: view/

import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { expandDocument } from "../spec/document/document.ts";
import type { Machine } from "../spec/machine.ts";
import type { Plan } from "../spec/mod.ts";
import type { PredictedTimeline } from "../spec/plan_summary.ts";
import type { PageData, TraceEvent } from "../view/page_data.ts";
import { viewPlan } from "../view/plan_view.ts";
import {
  costsOf,
  filterRows,
  sortRows,
  type StepRow,
  stepRows,
  sumRows,
} from "../view/step_table.ts";
import {
  partOf,
  predictedRuns,
  runsOf,
  timeByReason,
  timeByRole,
} from "../view/time.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";

const H100: Machine = JSON.parse(
  readFileSync(new URL("../machines/8xh100.json", import.meta.url), "utf8"),
);
const CONFIG = "test/references/configs/qwen3-30b-a3b.json";

const FOLDER = temporaryFolder(t);

/** Data of the page of a published model on eight ranks. */
async function pageOf(...argv: readonly string[]) {
  const out = path.join(FOLDER, "page.html");
  const { code, err } = await switchyard([
    ...["view", CONFIG, "--mesh", "ep=8", ...argv, "--out", out],
  ]);
  t.equal(code, 0, err);
  const [, json] = /id="data">(.*?)<\/script>/s.exec(
    readFileSync(out, "utf8"),
  )!;
  const data = JSON.parse(json!) as PageData;
  const plan = expandDocument(data.plan) as Plan;
  return { ...data, view: viewPlan(plan, data.summary) };
}

t.test("bytes, FLOPs and rooflines of steps match their sizes", async (t) => {
  const { view, costs, predicted } = await pageOf("--target", "8xh100");
  const [program] = view.programs;
  const [run] = predictedRuns(predicted, view.programs);
  t.strictSame(costs.map(({ phase, tokens }) => [phase, tokens]), [
    ...[["prefill", 512], ["decode", 8]],
  ]);
  const rows = stepRows(view, program!, { run, costs });
  t.equal(rows.length, program!.steps.length);
  // Launches for fewer tokens are not executed.
  const named = (how: RegExp, at = rows) =>
    at.find(({ how: text, flops }) => how.test(text) && flops !== undefined)!;
  // Query, key and value of 64 of the 512 tokens: 2048 x (4096 + 512 + 512).
  const tokens = 512 / 8;
  const qkv = named(/^matmul_2048x4096\w*_and/);
  const columns = 4096 + 512 + 512;
  t.equal(qkv.flops, 2 * tokens * 2048 * columns);
  // Loads are sampled on representative invocations.
  const bytes = 2048 * columns * 2 + tokens * (2048 + columns) * 4;
  t.ok(Math.abs(qkv.bytes! / bytes - 1) < 0.01, `${qkv.bytes} of ${bytes}`);
  const { multiplyAdds, bandwidth } = H100.devices["gpu"]!;
  t.equal(
    qkv.bound!.toPrecision(4),
    (1e6 * Math.max(
      qkv.flops! / 2 / multiplyAdds,
      qkv.bytes! / bandwidth,
    )).toPrecision(4),
  );
  // Each rank has the rows of an eighth of 512 x 8 choices.
  const experts = named(/^grouped_matmul_pair/);
  t.equal(experts.flops, 2 * (512 * 8 / 8) * 2048 * 2 * 768);
  for (const { share, name } of rows) {
    t.ok(
      share === undefined || share > 0 && share <= 1.0001,
      `${name} ${share}`,
    );
  }
  // Seven of eight rows are for other ranks.
  const combine = rows.find(({ name }) => name === "combine: exchange")!;
  t.equal(combine.bytes, tokens * 8 * 7 / 8 * 2048 * 4);
  const sums = sumRows(rows);
  t.equal(
    sums.time.toFixed(0),
    timeByRole(run!, 8).reduce((sum, [, time]) => sum + time, 0).toFixed(0),
  );

  const plain = await pageOf();
  t.strictSame(
    plain.costs[0]!.steps.map(([, , flops, bound]) => [flops, bound]),
    costs[0]!.steps.map(([, , flops]) => [flops, undefined]),
    "without a machine, no rooflines",
  );
  for (const [i, [, bytes, flops]] of plain.costs[0]!.steps.entries()) {
    // On the machine's GPUs, each workgroup reads all counts, or all choices.
    const [index, ofMachine] = costs[0]!.steps[i]!;
    if (/^(regroup|assign)/.test(rows[index]!.how)) continue;
    // Tiles of the machine's GPUs load operands more or less often; its routers, without FLOPs, differ by a tenth.
    const ratio = bytes! / ofMachine!;
    const most = flops === 0 ? 0.1 : 0.01;
    t.ok(Math.abs(ratio - 1) < most, `step ${i}: ${ratio}`);
  }
  t.equal(
    costsOf(costs, predictedRuns(predicted, view.programs)[1]).costs,
    costs[1],
  );
});

const ROW: StepRow = {
  index: 0,
  name: "dot over embed",
  how: "matmul",
  layer: 0,
  kind: "attention",
  time: 1,
  span: [0, 1],
  bytes: 1,
  flops: 1,
  bound: 0.5,
  share: 0.5,
};

t.test("rows are sorted and filtered", (t) => {
  const rows: StepRow[] = [
    ROW,
    { ...ROW, index: 1, time: undefined, share: undefined, span: undefined },
    { ...ROW, index: 2, time: 3, span: [1, 4], kind: "experts", layer: 1 },
    { ...ROW, index: 3, name: "route", time: 2, span: [4, 6] },
  ];
  const indices = (list: readonly StepRow[]) => list.map(({ index }) => index);
  const sorted = (descending: boolean) =>
    indices(sortRows(rows, { by: "time", descending }));
  t.strictSame(sorted(true), [2, 3, 0, 1]);
  t.strictSame(sorted(false), [0, 3, 2, 1], "rows without times are last");
  const all = {
    words: "",
    kind: undefined,
    layer: undefined,
    range: undefined,
  };
  t.strictSame(indices(filterRows(rows, { ...all, words: "MAT dot" })), [
    ...[0, 1, 2],
  ]);
  t.strictSame(indices(filterRows(rows, { ...all, kind: "experts" })), [2]);
  t.strictSame(indices(filterRows(rows, { ...all, layer: 1 })), [2]);
  t.strictSame(indices(filterRows(rows, { ...all, range: [1, 5] })), [2, 3]);
  t.strictSame(sumRows(rows.slice(0, 2)), {
    time: 1,
    bytes: 2,
    flops: 2,
    share: 0.5,
  });
  t.end();
});

t.test("waits of a recorded run have reasons", (t) => {
  const event = (
    rank: number,
    cat: string,
    [from, to]: readonly [number, number],
  ): TraceEvent => ({
    name: cat,
    cat,
    ph: "X",
    pid: 0,
    tid: rank + 1,
    ts: 100 + from,
    dur: to - from,
    args: {},
  });
  const trace = [
    event(-1, "program", [0, 100]),
    // Rank 1 computes after rank 0 on the same device and is late at the exchange.
    event(0, "launch", [0, 20]),
    event(1, "launch", [20, 50]),
    event(0, "allToAll", [30, 60]),
    event(1, "allToAll", [50, 60]),
    event(0, "wait", [70, 80]),
    event(1, "wait", [70, 80]),
  ];
  const [run] = runsOf(trace, []);
  const reasons = Object.fromEntries(timeByReason(run!, 2));
  // Rank 0 waits for the device from 20 to 30 and for rank 1 from 30 to 50. Rank 1 waits from 0 to 20.
  t.strictSame(reasons, { late: 10, shared: 15, flight: 10 });
  t.strictSame(timeByRole(run!, 2), [["dense", 35]]);
  t.strictSame(Object.fromEntries(timeByReason(partOf(run!, [25, 40]), 2)), {
    late: 5,
    shared: 2.5,
  });
  t.end();
});

t.test("waits of a predicted run are waits for slower ranks", (t) => {
  const timeline: PredictedTimeline = {
    phase: "decode",
    tokens: 1,
    sequences: 1,
    inFlight: 2,
    tokensPerSecond: 149.5,
    microseconds: 10,
    lanes: [{ rank: 0, count: 2, steps: [], waits: [[0, 2, 3], [1, 6, 1]] }],
  };
  const [program] = [{
    program: { name: "main" },
  }] as unknown as Parameters<typeof predictedRuns>[1];
  const [run] = predictedRuns([timeline], [program!]);
  t.equal(
    run!.name,
    "decoding of 1 token, 149.5 tokens/s with 2 steps in flight",
  );
  t.strictSame(run!.pauses.map(({ reason, duration }) => [reason, duration]), [
    ["late", 3],
    ["late", 1],
  ]);
  t.end();
});
