/** A plan's forms: JSON, schema, text, summary, and what it predicts. */

import { readFileSync } from "node:fs";
import { Ajv } from "ajv";
import t from "tap";
import { compile } from "../compiler/mod.ts";
import {
  type AllToAllStep,
  boundOf,
  formatPlan,
  onRank,
  parsePlan,
  perRank,
  type Plan,
  planSchema,
  predictPeakBytes,
  predictSentBytes,
  rowsBetween,
  RULE_NAMES,
  storedBytesOf,
  stringifyPlan,
  summarizePlan,
  verifyPlan,
} from "../spec/mod.ts";
import { countReads } from "./helpers/count_reads.ts";
import { goodPlan, smallDecoder } from "./helpers/plans.ts";

const { schemaFiles } = await import(
  new URL("../scripts/schemas.mjs", import.meta.url).href
) as { schemaFiles(): Promise<readonly (readonly [string, string])[]> };

const read = (path: string) =>
  readFileSync(new URL(path, import.meta.url), "utf8");

t.test("stringifyPlan() and parsePlan() are each other's inverse", async (t) => {
  for (const what of ["layer", "decoder"] as const) {
    const plan = await goodPlan(what, { ep: 3 });
    const text = stringifyPlan(plan);
    t.same(parsePlan(text), plan, what);
    t.equal(stringifyPlan(parsePlan(text)), text, what);
  }
});

t.test("names of JSON are written in camelCase", (t) => {
  const names = (schema: unknown): string[] =>
    typeof schema === "object" && schema !== null
      ? Object.entries(schema).flatMap(([key, value]) => [
        ...key === "properties" ? Object.keys(value as object) : [],
        ...names(value),
      ])
      : [];
  for (const file of ["machine", "plan", "plan_summary"]) {
    const all = names(JSON.parse(read(`../spec/${file}.schema.json`)));
    t.ok(all.length > 20);
    t.strictSame(all.filter((name) => !/^[a-z][a-zA-Z0-9]*$/.test(name)), []);
  }
  t.end();
});

t.test("stringifyPlan() keeps infinities and the sign of zero", async (t) => {
  const plan = await goodPlan("layer", {});
  const { tree } = Object.values(plan.kernels)[0]!;
  for (const [i, value] of [Infinity, -Infinity, -0, 1e-45].entries()) {
    tree.body.push({
      op: "let",
      name: `c${i}`,
      value: { op: "const", type: "f32", value },
    });
  }
  const text = stringifyPlan(plan);
  t.match(text, '"value":1e999');
  t.match(text, '"value":-1e999');
  t.match(text, '"value":-0');
  const back = Object.values(parsePlan(text).kernels)[0]!.tree.body.slice(-4);
  const values = back.map((s) =>
    s.op === "let" && s.value.op === "const" ? s.value.value : undefined
  );
  t.ok(Object.is(values[2], -0));
  t.same(values, [Infinity, -Infinity, -0, 1e-45]);
});

t.test("parsePlan() names the place of a fault", async (t) => {
  const plan = await goodPlan("layer", { ep: 2 });
  Object.assign(plan.programs[0]!.steps[5]!, { rowBytes: "64" });
  t.throws(() => parsePlan(stringifyPlan(plan)), {
    name: "PlanError",
    message:
      "Cannot read the plan: main[5] at '/programs/0/steps/5/rowBytes' must be integer. Compile it again",
  });
  t.throws(() => parsePlan('{"version": 1}'), {
    name: "PlanError",
    message: /has version 1, and this program reads version 2/,
  });
});

t.test("documents have variables and counts of kernels as strings", async (t) => {
  const plan = await goodPlan("layer", { ep: 2 });
  const document = stringifyPlan(plan);
  t.match(document, /"index":"u32 i"/);
  t.notMatch(document, /"op":"local"/);
  t.same(parsePlan(document), plan);
});

t.test("schemas of documents are written from their types", async (t) => {
  const files = await schemaFiles();
  t.equal(files.length, 7);
  for (const [path, text] of files) {
    const [found, wanted] = path.endsWith(".json")
      ? [JSON.parse(read(`../${path}`)), JSON.parse(text)]
      : [read(`../${path}`), text];
    t.same(found, wanted, `${path} is what 'npm run docs' writes`);
  }
});

t.test("the schema of plans is a schema", (t) => {
  const ajv = new Ajv({ allowUnionTypes: true, discriminator: true });
  t.ok(ajv.validateSchema(planSchema), ajv.errorsText());
  t.end();
});

t.test("of axes that are longer than memory no list is made", async (t) => {
  const plan = await goodPlan("layer", { ep: 2 });
  const long = { size: 1e15, of: "long", over: ["ep"] };
  const axes = {
    ...plan.axes,
    long: { size: 1e15 },
    "long/block": { ...long, table: "block" as const },
    "long/cyclic": { ...long, table: "cyclic" as const },
  };
  const text = formatPlan({ ...plan, axes });
  t.match(text, /long\/block .* table \[0\.\.499999999999999\] \[5/);
  t.match(text, /long\/cyclic .* table \[0 2 … 999999999999998\] \[1 3 …/);
});

t.test("formatPlan() says everything, and the same every time", async (t) => {
  const text = formatPlan(await goodPlan("layer", { dp: 2, ep: 2 }));
  t.equal(formatPlan(await goodPlan("layer", { dp: 2, ep: 2 })), text);
  const heading =
    /%2 = dispatch x by sendRow over ep : f32\[expert\/ep:8 slot embed:16\] {2}\/\/ test\/helpers\/plans\.ts:\d+:\d+\n/;
  t.match(text, heading);
  t.match(text, /%9 = combine \S+ by sendRow over ep : f32\[token\/dp\+ep<=64/);
  t.match(text, /expert\/ep +8 +over ep table \[0 1 2 3\] \[4 5 6 7\]\n/);
  t.match(text, /token\/dp\+ep +<= 64 +over dp\+ep assigned by blocks\n/);
  t.match(text, /counts +over ep +32 B = 32 B x 1 others\n/);
  t.match(text, /dispatch +over ep +rows\(rank -> others\) x 64 B/);
  t.notMatch(text, "undefined");
  t.notMatch(text, "[object");
  t.notMatch(text, "@compute");
  const plan = await goodPlan("layer", { dp: 2, ep: 2 });
  t.match(formatPlan(plan, { kernels: true }), "@compute");
  const names = [...Object.keys(plan.buffers), ...Object.keys(plan.kernels)];
  for (const name of names) t.ok(text.includes(name), name);
});

t.test("formatPlan() differs where plans differ", async (t) => {
  const plan = await goodPlan("layer", { ep: 2 });
  const before = formatPlan(plan).split("\n");
  plan.buffers.sent!.allocation = 0;
  const after = formatPlan(plan).split("\n");
  t.equal(after.filter((line, i) => line !== before[i]).length, 1);
});

t.test("summarizePlan() is a few lines for people", async (t) => {
  const lines = summarizePlan(await goodPlan("layer", { ep: 4 })).split("\n");
  t.match(lines, [
    "ranks: 4 (mesh ep=4)",
    "experts per rank: 2 2 2 2 (8 over ep)",
    /^memory per rank: \d+\.\d KiB \(weights 12\.5 KiB, states 0 bytes\)$/,
    "dispatch per token: at most 128 bytes over 1 layer, 96 of them to other ranks if experts are chosen evenly",
    "combine per token: at most 128 bytes over 1 layer, 96 of them to other ranks if experts are chosen evenly",
    /^work: 11 steps in main, \d+ kernels$/,
    "",
  ]);
  t.match(
    summarizePlan(await goodPlan("layer", {})),
    "dispatch per token: 0 bytes, all experts are on each rank",
  );
});

t.test("predictPeakBytes() counts allocations and staging", async (t) => {
  const plan: Plan = await goodPlan("decoder", { ep: 3 });
  for (let rank = 0; rank < 3; rank++) {
    const sum = plan.allocations.reduce(
      (n, { bytes }) => n + onRank(bytes, rank),
      0,
    );
    t.equal(predictPeakBytes(plan, rank), sum);
    t.ok(predictPeakBytes(plan, rank, { communicator: "host" }) > sum);
  }
});

t.test("predictSentBytes() counts what goes to other ranks", async (t) => {
  const plan: Plan = await goodPlan("layer", { dp: 2, ep: 2 });
  const [gather, forward, back] = [4, 5, 9].map((i) =>
    plan.programs[0]!.steps[i]!
  );
  const rows = rowsBetween(
    [[1, 2, 0, 0, 3, 0, 0, 1], [5, 0, 0, 0, 0, 0, 2, 0]],
    forward as AllToAllStep,
  );
  t.same(rows, [[3, 4], [5, 2]]);
  const sent = (step: typeof gather, rank: number) =>
    predictSentBytes(step!, rows, { mesh: plan.mesh, rank });
  t.same([0, 1, 2, 3].map((rank) => sent(gather, rank)), [32, 32, 32, 32]);
  t.same([0, 1].map((rank) => sent(forward, rank)), [4 * 64, 5 * 64]);
  t.same([0, 1].map((rank) => sent(back, rank)), [5 * 64, 4 * 64]);
  t.equal(sent(plan.programs[0]!.steps[0], 0), 0);
});

t.test("storedBytesOf() and boundOf()", async (t) => {
  const axes = [{ axis: "a", size: perRank([3, 0]) }, { axis: "b", size: 5 }];
  const bf16 = { dtype: "bf16", axes } as const;
  t.equal(storedBytesOf(bf16, 0), 32);
  t.equal(storedBytesOf(bf16, 1), 4);
  t.equal(storedBytesOf({ ...bf16, rowStride: 8 }, 0), 48);
  const plan: Plan = await goodPlan("layer", { dp: 2, ep: 2 });
  t.equal(boundOf({ ceilDiv: [{ count: "token" }, 48] }, plan), 2);
  const sharded = { count: "token/dp+ep", over: ["ep"] };
  t.equal(boundOf({ min: [sharded, 80] }, plan), 64);
});

t.test("plan.md says what every rule proves", (t) => {
  const prose = read("../spec/plan.md");
  for (const rule of RULE_NAMES) {
    t.match(prose, new RegExp(`^\\| \`${rule}\` +\\| \\S.* +\\|$`, "m"), rule);
  }
  t.end();
});

t.test("verifyPlan() looks at every step as often in a long plan", async (t) => {
  const work = async (layers: number): Promise<number> => {
    const plan = await compile(smallDecoder(layers, 64), { mesh: { ep: 16 } });
    const { counted, reads } = countReads(plan);
    t.same(verifyPlan(counted, { fitsSchema: true }), []);
    return reads() / plan.programs[0]!.steps.length;
  };
  const [some, many] = [await work(6), await work(24)];
  t.comment(`${some.toFixed(0)} and ${many.toFixed(0)} reads a step`);
  t.ok(many < 1.1 * some, `${many} reads a step, not ${some}`);
});
