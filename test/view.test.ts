// Pictures of plans: sections, roles and tracks, watched runs, and up-to-date pictures in docs/.

import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { startWatch } from "../cli/watch.ts";
import { planSummary } from "../engine/mod.ts";
import { formatPlan, parsePlan } from "../spec/mod.ts";
import type { AllToAllStep } from "../spec/plan/plan.ts";
import { search } from "../view/search.ts";
import { heldOn, housePicture } from "../view/pictures/house.ts";
import { follow, type LiveStep, NOTHING } from "../view/live.ts";
import { LIGHT } from "../view/palette.ts";
import { provedOf } from "../view/proved.ts";
import {
  layerOfStep,
  layersText,
  mainSection,
  rangeOf,
} from "../view/sections.ts";
import { figureSvg } from "../view/pictures/figure.ts";
import { stationsOf } from "../view/stations.ts";
import { criticalPath, partOf, timeByRole } from "../view/time.ts";
import { timePicture } from "../view/pictures/time.ts";
import { trackPicture } from "../view/pictures/track.ts";
import { bytesByLink, mainTraffic, trafficOf } from "../view/traffic.ts";
import { pairsOver, trackName, tracksOf } from "../view/tracks.ts";
import { sourceRanksOf } from "../view/token_way.ts";
import { type PlanView, viewPlan } from "../view/plan_view.ts";
import { switchyard, temporaryFolder, withOutput } from "./helpers/cli.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** The view of the plan of a command line. */
async function viewOf(...argv: readonly string[]): Promise<PlanView> {
  const { code, out, err } = await switchyard([
    ...["plan", ...argv, "--json", "--full"],
  ]);
  t.equal(code, 0, err);
  const plan = parsePlan(out);
  return viewPlan(plan, planSummary(plan));
}

const layer = await viewOf("examples/layer.ts", "--mesh", "ep=4");
const demo = await viewOf("examples/demo-lm", "--mesh", "dp=2,ep=2");

t.test("a layer has its stations, and switches where rows are exchanged", (t) => {
  const [program] = layer.programs;
  const [section] = program!.sections;
  const stations = stationsOf(program!, section!);
  t.strictSame(
    stations.map(({ kind, role, title, steps }) =>
      `${kind} ${role}: ${title} ${steps.map(({ index }) => index).join(" ")}`
    ),
    [
      "station router: router 0 1",
      "station dispatch: permute 2 3",
      "tie dispatch: counts 4",
      "switch dispatch: dispatch 5",
      "station dispatch: group 6",
      "station experts: experts 7 8",
      "switch combine: combine 9",
      "station combine: weighted sum 10",
    ],
  );
  const figure = trackPicture(layer, { program: program!, section: section! });
  const svg = figureSvg(figure);
  t.equal(svg.match(/<path [^>]*d="M[^"]*C/g)?.length, 2 * 4 * 4, "curves");
  t.equal(svg.match(/<rect [^>]*rx="5"/g)?.length, 5 * 4, "stations");
  t.match(svg, "2.0 KiB a row");
  t.match(svg, /href="#\/main\/7"/, "a station links to its first step");
  t.notMatch(
    figureSvg(figure, { palette: LIGHT }),
    "href",
    "a standalone file",
  );
  t.end();
});

t.test("layers with the same steps are one section", (t) => {
  const [{ sections, program, roles }] = demo.programs as [
    PlanView["programs"][0],
  ];
  t.strictSame(
    sections.map(({ name, times }) => `${times} x ${name}`),
    ["1 x before the layers", "4 x layers 0–3", "1 x after the layers"],
  );
  const last = sections.at(-1)!;
  t.equal(last.start + last.length, program.steps.length);
  t.equal(mainSection(program, sections).times, 4);
  t.equal(roles.length, program.steps.length);
  t.ok(formatPlan(demo.plan).includes(`(${roles.length} steps)`));
  for (const [i, { part, label }] of program.steps.entries()) {
    if (part) t.equal(roles[i], part.op, label!);
  }
  t.equal(roles.filter((role) => role === "router").length % 4, 0);
  t.end();
});

t.test("alternating layers are two sections, each with its layers", async (t) => {
  const { programs: [main] } = await viewOf(
    ...["test/references/configs/gpt-oss-20b.json", "--mesh", "ep=2"],
  );
  const { sections, roles, program } = main!;
  t.strictSame(sections.map(({ name, times }) => `${times} x ${name}`), [
    "1 x before the layers",
    "12 x layers 0, 2, 4, … 22",
    "12 x layers 1, 3, 5, … 23",
    "1 x after the layers",
  ]);
  t.equal(layersText([0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
  const [, even, odd] = sections;
  t.strictSame(odd!.layers.slice(0, 2), [1, 3]);
  t.strictSame(rangeOf(odd!, 1), [
    odd!.starts[1],
    odd!.starts[1]! + odd!.length,
  ]);
  t.equal(layerOfStep(even!, odd!.start), undefined);
  t.equal(layerOfStep(odd!, odd!.starts[3]! + 1), 3);
  for (const [i, { part }] of program.steps.entries()) {
    if (part) t.equal(roles[i], part.op);
  }
  t.equal(roles.length, program.steps.length);
  t.ok(roles.every((role) => role !== undefined));
});

t.test("linear attention has the role of attention", async (t) => {
  const { programs: [main] } = await viewOf(
    ...["test/references/qwen3next-16e/config.json", "--mesh", "ep=2"],
  );
  const [, first] = main!.sections;
  const roles = main!.roles.slice(first!.start, first!.start + first!.length);
  t.strictSame([...new Set(roles)], [
    ...["attention", "router", "dispatch", "experts", "combine", "dense"],
  ]);
  const { steps } = main!.program;
  const norms = roles.flatMap((role, i) =>
    /^rmsNorm over embed/.test(steps[first!.start + i]!.label ?? "")
      ? [role]
      : []
  );
  t.strictSame(norms, ["attention", "router"]);
});

t.test("gradients have separate sections and roles", async (t) => {
  const { programs: [training] } = await viewOf(
    ...["examples/demo-lm", "--mesh", "ep=2", "--train"],
  );
  const names = training!.sections.map(({ name }) => name);
  t.ok(names.some((name) => / \(2 of \d+\)$/.test(name)), names.join());
  t.strictSame(names, [...new Set(names)]);
  // Gradients of experts have their role, though those of attention are computed later.
  const { steps } = training!.program;
  const rolesIn = (block: RegExp) =>
    new Set(
      training!.roles.filter((_, i) =>
        steps[i]!.phase === "backward" && block.test(steps[i]!.block ?? "")
      ),
    );
  t.strictSame([...rolesIn(/self_attn$/)], ["attention"]);
  t.ok(rolesIn(/mlp$/).has("experts"));
  t.notOk(rolesIn(/mlp$/).has("attention"));
  const routers = steps.flatMap(({ label = "", phase }, i) =>
    phase === "backward" &&
      /^reduceSum over token.*\[expert embed\]/.test(label)
      ? [training!.roles[i]]
      : []
  );
  t.strictSame(routers, ["router", "router", "router", "router"]);
});

t.test("only ranks of a group are connected", (t) => {
  const tracks = tracksOf(demo.plan);
  t.strictSame(
    pairsOver(demo.plan, tracks, ["ep"]).map((pair) => pair.join("")),
    ["00", "01", "10", "11", "22", "23", "32", "33"],
  );
  t.end();
});

t.test("the critical path follows the rank that others wait for", (t) => {
  const event = (rank: number, name: string, times: [number, number]) => ({
    rank,
    name,
    role: "dense" as const,
    start: times[0],
    duration: times[1] - times[0],
    exchange: name === "exchange" ? 1 : undefined,
  });
  const run = {
    name: "a step",
    program: "main",
    pauses: [],
    predicted: true,
    microseconds: 12,
    events: [
      event(0, "long", [0, 5]),
      event(0, "exchange", [5, 7]),
      event(0, "short", [7, 8]),
      event(1, "short", [0, 3]),
      event(1, "exchange", [5, 7]),
      event(1, "long", [7, 12]),
    ],
  };
  t.strictSame(
    criticalPath(run).map(({ rank, name }) => `${rank} ${name}`),
    ["0 long", "1 exchange", "1 long"],
  );
  const below = (predicted: boolean) =>
    timePicture({ ...run, predicted }).shapes
      .filter(({ kind, ink }) => kind === "rect" && ink === "ink").length;
  t.equal(below(true), 3);
  t.equal(below(false), 0);
  t.end();
});

t.test("proofs of a step state its numbers", (t) => {
  const [program] = layer.programs;
  const provedOfStep = (index: number) =>
    Object.fromEntries(
      provedOf(layer, program!, program!.steps[index]!)
        .map(({ rule, text }) => [rule, text]),
    );
  const { steps } = program!.program;
  const [dispatch, combine] = [5, 9].map((i) => steps[i] as AllToAllStep) as [
    AllToAllStep,
    AllToAllStep,
  ];
  const proved = provedOfStep(5);
  t.match(proved["reads"], `${dispatch.from} by 3`);
  t.match(proved["groups"], "all 4 ranks");
  // Each of four ranks' 1024 tokens may choose two experts of a rank.
  t.match(proved["capacity"], `${dispatch.to} 8192`);
  t.match(provedOfStep(9)["capacity"], `${combine.from} 8192`);
  t.match(provedOfStep(7)["bindings"], /^each of the \d bindings/);
  t.strictSame(Object.keys(provedOfStep(7)), ["reads", "overlap", "bindings"]);
  t.end();
});

t.test("traffic is split by link", (t) => {
  const [program] = layer.programs;
  const dispatch = mainTraffic(
    trafficOf(layer, program!, program!.sections[0]!),
  )!;
  // Two hosts in separate racks: of three other ranks, one is on the same host.
  const placements = [0, 0, 1, 1].map((host) => ({ host, rack: host }));
  t.strictSame(bytesByLink(dispatch, placements), [
    ["sameHost", 4 * dispatch.perRank / 3],
    ["otherRack", 4 * dispatch.perRank * 2 / 3],
  ]);
  t.end();
});

t.test("many ranks are bundled, and one bundle opens", (t) => {
  const tracks = tracksOf({ ranks: 256 });
  t.equal(tracks.length, 16);
  t.equal(trackName(tracks[1]!), "ranks 16–31");
  const open = tracksOf({ ranks: 256 }, 20);
  t.equal(open.length, 15 + 16);
  t.strictSame(open.slice(0, 3).map(trackName), [
    ...["ranks 0–15", "rank 16", "rank 17"],
  ]);
  const ranks = tracksOf({ ranks: 60 }, 59);
  t.equal(ranks.reduce((n, { count }) => n + count, 0), 60);
  t.end();
});

t.test("text of a plan is escaped", (t) => {
  const svg = figureSvg({
    size: [1, 1],
    label: `"><script>`,
    shapes: [{ kind: "text", at: [0, 0], text: "<a>\u0000&", link: `"x` }],
  });
  t.notMatch(svg, /<script|<a>|\0/);
  t.match(svg, /&lt;a&gt;&amp;/);
  t.match(svg, `href="#/&quot;x"`);
  t.end();
});

t.test("the pictures of docs/ are up to date", async (t) => {
  const { PICTURES } = await import("../scripts/pictures.mjs" as string) as {
    PICTURES: { readonly [file: string]: readonly string[] };
  };
  const out = path.join(temporaryFolder(t), "picture.svg");
  for (const [file, argv] of Object.entries(PICTURES)) {
    const { code, err } = await switchyard(["view", ...argv, "--out", out]);
    t.equal(code, 0, err);
    t.equal(
      readFileSync(out, "utf8"),
      readFileSync(path.join(ROOT, "docs", file), "utf8"),
      `docs/${file}: draw it again with 'npm run pictures'`,
    );
  }
  const readme = readFileSync(path.join(ROOT, "README.md"), "utf8");
  for (const file of Object.keys(PICTURES)) t.match(readme, `docs/${file}`);
});

t.test("a run is followed by the events of its process", (t) => {
  const step = (number: number, share: number): LiveStep => ({
    step: number,
    loss: 1 / number,
    sentBytes: 0,
    memoryBytes: 0,
    gradientNorm: 1,
    tokensPerSecond: 1,
    validationLoss: number % 1000 === 0 ? 2 / number : null,
    expertLoad: [[share, 1 - share]],
  });
  let state = NOTHING;
  for (let i = 1; i <= 5000; i++) state = follow(state, "step", step(i, 0.5));
  t.ok(state.losses.length <= 2000, "a long curve is downsampled");
  t.strictSame(state.losses[0], [1, 1]);
  t.strictSame(state.losses.at(-1), [5000, 1 / 5000]);
  t.strictSame(state.validations.map(([at]) => at), [
    ...[1000, 2000, 3000, 4000, 5000],
  ]);
  state = follow(state, "step", step(5001, 0.9));
  t.strictSame(state.last?.expertLoad, [[0.5 + 0.4 / 20, 0.5 - 0.4 / 20]]);
  for (const [sequence, piece] of [[1, "b"], [0, "a"], [1, "c"]] as const) {
    state = follow(state, "text", { sequence, piece, ms: 10 });
  }
  t.strictSame([state.texts, state.tokens], [["a", "bc"], 3]);
  t.equal(follow(state, "end", { text: "Done." }).ended, "Done.");
  t.end();
});

t.test("a watched run stores its state, not its events", async (t) => {
  // 48 layers of 128 experts each.
  const expertLoad = new Array(48).fill(new Array(128).fill(1 / 128));
  const steps = 3000;
  await withOutput(async (io) => {
    let address = "";
    const watch = await startWatch(
      { ...io, err: (line) => address = /http\S+/.exec(line)![0] },
      "a run",
      { watch: true },
    );
    const one = {
      step: 0,
      loss: 1,
      validationLoss: null,
      gradientNorm: 1,
      tokensPerSecond: 1,
      expertLoad,
      sentBytes: 0,
      memoryBytes: 0,
    };
    for (let step = 1; step <= steps; step++) {
      watch.send("step", { ...one, step });
    }
    const { body } = await fetch(`${address}events`);
    const read = new Response(body).text();
    await watch.end("Done.");
    const [first, last] = (await read).trim().split("\n\n");
    t.match(first, /^event: state\n/);
    t.match(last, /^event: end\n/);
    const state = JSON.parse(first!.replace(/^.*\ndata: /, ""));
    t.equal(state.last.step, steps);
    t.strictSame(state.losses.at(-1), [steps, 1]);
    t.ok(state.losses.length <= 2000);
    t.ok(first!.length < 2 * JSON.stringify(one).length, `${first!.length}`);
    return 0;
  });
});

t.test("ranks of tokens come from the program of the choices", (t) => {
  const [main] = demo.plan.programs;
  const name = "scores";
  const programs = [{ ...main!, name, outputs: {} }, main!];
  const run = (name: string, sourceRanks: string) => ({
    name,
    cat: "program",
    ph: "X",
    pid: 0,
    tid: 0,
    ts: 0,
    dur: 1,
    args: { "rank of each token": sourceRanks },
  });
  const trace = [run(name, "3 3 3"), run("main", "0 2"), run("main", "1")];
  const choices = [{
    layer: 0,
    output: "layer0.topk_idx",
    chosen: [[0, 1], [2, 3], [4, 5]],
  }];
  const plan = { ...demo.plan, programs };
  t.strictSame(sourceRanksOf(plan, choices, trace), [0, 2, 1]);
  t.equal(sourceRanksOf(plan, choices, trace.slice(1, 2)), undefined);
  t.end();
});

t.test("a page of a plan document quotes only files in the working directory", async (t) => {
  const scratch = temporaryFolder(t);
  const here = path.join(scratch, "here");
  mkdirSync(path.join(here, "models"), { recursive: true });
  const secret = "export const secret = 'open sesame';";
  const line = "export const line = 'for the page';";
  writeFileSync(path.join(scratch, "secret.ts"), secret);
  writeFileSync(path.join(here, "models", "own.ts"), line);
  mkdirSync(path.join(here, "folder.ts"));
  spawnSync("mkfifo", [path.join(here, "pipe.ts")]);
  symlinkSync(path.join(scratch, "secret.ts"), path.join(here, "link.ts"));
  symlinkSync(scratch, path.join(here, "up"));
  const document = path.join(here, "plan.json");
  const { code } = await switchyard([
    ...["plan", path.join(ROOT, "examples/layer.ts"), "--out", document],
  ]);
  t.equal(code, 0);
  const hidden = [
    path.join(scratch, "secret.ts"),
    path.join(here, "models", "own.ts"),
    "../secret.ts",
    "models/../../secret.ts",
    "up/secret.ts",
    "link.ts",
    "folder.ts",
    "pipe.ts",
    "missing.ts",
  ];
  const before = process.cwd();
  process.chdir(here);
  t.teardown(() => process.chdir(before));
  const text = readFileSync(document, "utf8");
  const sourcesWith = async (file: string) => {
    const changed = text.replace(
      /"file": ?"[^"]*", ?"line": ?\d+/g,
      () => `"file":${JSON.stringify(file)},"line":1`,
    );
    t.not(changed, text);
    writeFileSync(document, changed);
    const page = await switchyard(["view", document, "--out", "page.html"]);
    t.strictSame([page.code, page.err], [0, ""], file);
    return readFileSync("page.html", "utf8");
  };
  for (const file of hidden) {
    const page = await sourcesWith(file);
    t.notOk(
      page.includes("open sesame") || page.includes("for the page"),
      file,
    );
  }
  t.ok((await sourcesWith("models/own.ts")).includes("for the page"));
  t.ok(
    (await sourcesWith("models/families/mixtral.ts")).includes(
      JSON.stringify(
        readFileSync(path.join(ROOT, "models/families/mixtral.ts"), "utf8")
          .split(
            "\n",
          )[0],
      ),
    ),
    "files of the package",
  );
});

t.test("experts of a rank for layers of different sizes, found by rank number", async (t) => {
  const two = await viewOf("examples/two_moe.ts", "--mesh", "ep=2");
  t.strictSame([0, 1].map((rank) => heldOn(two.plan, rank)), [
    [
      { experts: [0, 1, 2], layers: [0] },
      { experts: [0, 1, 2, 3, 4], layers: [1] },
    ],
    [
      { experts: [3, 4, 5], layers: [0] },
      { experts: [5, 6, 7, 8, 9], layers: [1] },
    ],
  ]);
  const [found] = search(two, "rank 1");
  t.match(found, {
    kind: "rank",
    text: "1, experts 3 4 5 (layer 0), 5 6 7 8 9 (layer 1)",
  });
  // Only the second layer has expert 7.
  t.match(search(two, "experts.7"), [{ link: "rank/1" }]);
  t.equal(search(two, "experts.7").length, 1);
  const card = figureSvg(housePicture(two));
  t.match(card, "experts 3 4 5 (layer 0), 5 6 7 8 9 (layer 1)");
});

t.test("a range of a run: its sums, and the starts of its layers", (t) => {
  const event = (layer: number, start: number) => ({
    rank: 0,
    name: "x",
    role: "experts" as const,
    layer,
    start,
    duration: 10,
  });
  const run = {
    name: "main",
    program: "main",
    pauses: [],
    predicted: false,
    microseconds: 40,
    events: [0, 1, 2, 3].map((layer) => event(layer, 10 * layer)),
  };
  t.strictSame(timeByRole(partOf(run, [5, 25]), 1), [["experts", 20]]);
  const marks = figureSvg(timePicture(run)).match(/layer \d/g);
  t.strictSame(marks, ["layer 0", "layer 1", "layer 2", "layer 3"]);
  t.end();
});
