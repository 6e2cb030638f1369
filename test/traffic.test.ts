// The traffic counter on kernels with known GPU behaviour, and on streams measured on a V100.
// rotates with: bench/traffic

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import t from "tap";
import { DEMO_FOLDER } from "../bench/peers/demo.ts";
import { boundOf, type GpuCores } from "../bench/traffic/bound.ts";
import {
  countGroup,
  type CountOptions,
  type GroupCounts,
  type Site,
} from "../bench/traffic/count.ts";
import { describedGpu, GPU_NAMES } from "../bench/traffic/gpus.ts";
import { countStep } from "../bench/traffic/step.ts";
import { layerTables, missedOf } from "../bench/traffic/tables.ts";
import {
  type LaunchSetup,
  launchWork,
  sampledGroups,
} from "../engine/planner/simulate/launch_work.ts";
import {
  elementwise,
  ELEMENTWISE_LANES,
  elementwiseGrid,
} from "../spec/kernel/elementwise.ts";
import { add, f32, mul, store, u32 } from "../spec/kernel/build.ts";
import { statement } from "../spec/kernel/matrices.ts";
import { FUNCTIONS } from "../spec/kernel/semantics.ts";
import { range } from "../spec/range.ts";
import { sum } from "../spec/sum.ts";
import { GRID_LIMIT } from "../spec/kernel/make.ts";
import {
  bindings,
  kernelOf,
  type KernelText,
  wgsl,
} from "../compiler/kernels/kernel.ts";
import { u } from "../compiler/kernels/matmul/left.ts";

/** Rows and columns of matrices. */
const N = 1024;

function kernel(body: KernelText, workgroupSize = 256) {
  return kernelOf({
    name: "counted",
    workgroupSize,
    bindings: bindings({ x: "f32", v: "f32" }, { y: "f32" }),
    body,
  });
}

function count(
  body: KernelText,
  { workgroupSize, ...options }: Partial<CountOptions> & {
    workgroupSize?: number;
  } = {},
): GroupCounts {
  return countGroup(kernel(body, workgroupSize), {
    group: [3, 2, 0],
    load: () => undefined,
    cold: () => true,
    unroll: 1,
    ...options,
  });
}

/** Returns the only load or store of a binding. */
function site({ sites }: GroupCounts, op: Site["op"], name: string): Site {
  const [found, ...others] = [...sites.values()]
    .filter((site) => site.op === op && site.name === name);
  t.strictSame(others, []);
  return found!;
}

function perRequest({ requests, sectors, lines, passes }: Site) {
  return {
    sectors: sectors / requests,
    lines: lines / requests,
    passes: passes / requests,
  };
}

/** Requested share of the bytes of loaded sectors. */
function efficiency({ bytes, sectors }: Site): number {
  return bytes / (32 * sectors);
}

const COALESCED = { sectors: 4, lines: 1, passes: 0 };
const SCATTERED = { sectors: 32, lines: 32, passes: 0 };

t.test("a copy moves the sectors that it requests", (t) => {
  const counts = count(
    wgsl`let i = group.x * 256 + lane; y[i] = x[i];`,
  );
  for (const at of [site(counts, "load", "x"), site(counts, "store", "y")]) {
    t.strictSame(perRequest(at), COALESCED);
    t.equal(efficiency(at), 1);
  }
  t.equal(counts.stored, 1024);
  t.strictSame(counts.touched.get("x"), { sectors: 32, bytes: 1024 });
  t.strictSame(counts.waits, { shared: 0, near: 0, l2: 0, device: 1 });
  t.equal(counts.active, counts.instructions, "no divergence");
  t.end();
});

t.test("vectors of 16 bytes per lane have 16 sectors per request", (t) => {
  const counts = count(wgsl`
    let i = group.x * 256 + lane;
    let (a, b, c, d) = vec4(x)[i];
    y[i] = a + b + c + d;`);
  const at = site(counts, "load", "x");
  t.strictSame(perRequest(at), { sectors: 16, lines: 4, passes: 0 });
  t.equal(efficiency(at), 1);
  t.end();
});

t.test("a copy of every eighth word uses an eighth of its sectors", (t) => {
  const counts = count(
    wgsl`let i = (group.x * 256 + lane) * 8; y[i] = x[i];`,
  );
  for (const at of [site(counts, "load", "x"), site(counts, "store", "y")]) {
    t.equal(perRequest(at).sectors, 32);
    t.equal(efficiency(at), 0.125);
  }
  t.end();
});

t.test("a uniform word is one sector and one pass", (t) => {
  const counts = count(wgsl`
    var<workgroup> cells: array<f32, 256>;
    let i = group.x * 256 + lane;
    cells[lane] = x[group.x];
    workgroupBarrier();
    y[i] = cells[7];`);
  t.equal(perRequest(site(counts, "load", "x")).sectors, 1);
  t.equal(perRequest(site(counts, "load", "cells")).passes, 1);
  t.equal(counts.barriers, 1);
  t.end();
});

/** Transposes a tile through workgroup memory with the given words per row. */
function transposed(pitch: number): GroupCounts {
  return count(wgsl`
    var<workgroup> tile: array<f32, ${32 * pitch}>;
    let column = lane % 32;
    let row = lane / 32;
    for (var j = 0u; j < 32; j += 8) {
      tile[(row + j) * ${pitch} + column] =
        x[(group.y * 32 + row + j) * ${N} + group.x * 32 + column];
    }
    workgroupBarrier();
    for (var k = 0u; k < 32; k += 8) {
      y[(group.x * 32 + row + k) * ${N} + group.y * 32 + column] =
        tile[column * ${pitch} + row + k];
    }`);
}

t.test("unknown integers differ", (t) => {
  const tree = kernelOf({
    name: "gathered",
    workgroupSize: 32,
    bindings: bindings({ index: "u32", x: "f32" }, { y: "f32" }),
    body: wgsl`y[lane] = x[index[lane] * 64u];`,
  });
  const counts = countGroup(tree, {
    group: [0, 0, 0],
    load: () => undefined,
    cold: () => true,
    unroll: 1,
  });
  t.strictSame(perRequest(site(counts, "load", "x")), SCATTERED);
  t.end();
});

// NVIDIA's "An Efficient Matrix Transpose in CUDA C/C++" has these three kernels.
t.test("a transpose scatters stores, has bank conflicts, or neither", (t) => {
  const naive = count(wgsl`
    let column = lane % 32;
    let row = lane / 32;
    for (var j = 0u; j < 32; j += 8) {
      y[(group.x * 32 + column) * ${N} + group.y * 32 + row + j] =
        x[(group.y * 32 + row + j) * ${N} + group.x * 32 + column];
    }`);
  t.strictSame(perRequest(site(naive, "load", "x")), COALESCED);
  t.strictSame(perRequest(site(naive, "store", "y")), SCATTERED);
  t.equal(efficiency(site(naive, "store", "y")), 0.125);

  for (const [pitch, passes] of [[32, 32], [33, 1]] as const) {
    const counts = transposed(pitch);
    t.strictSame(perRequest(site(counts, "load", "x")), COALESCED);
    t.strictSame(perRequest(site(counts, "store", "y")), COALESCED);
    t.equal(perRequest(site(counts, "store", "tile")).passes, 1);
    t.equal(perRequest(site(counts, "load", "tile")).passes, passes);
  }
  t.end();
});

t.test("a GEMV reads rows by lanes, rows by warps, or columns", (t) => {
  const byLane = count(wgsl`
    let row = group.x * 256 + lane;
    var sum = 0.0;
    for (var j = 0u; j < ${N}; j++) { sum += x[row * ${N} + j] * v[j]; }
    y[row] = sum;`);
  t.strictSame(perRequest(site(byLane, "load", "x")), SCATTERED);
  t.equal(efficiency(site(byLane, "load", "x")), 0.125);
  // A cache for the sectors of all lanes fetches each once: 1 MiB for 256 rows.
  t.strictSame(byLane.touched.get("x"), {
    sectors: 32 * N,
    bytes: 256 * N * 4,
  });

  const byWarp = count(wgsl`
    let row = group.x * 8 + lane / 32;
    var sum = 0.0;
    for (var j = lane % 32; j < ${N}; j += 32) {
      sum += x[row * ${N} + j] * v[j];
    }
    y[row * 32 + lane % 32] = sum;`);
  t.strictSame(perRequest(site(byWarp, "load", "x")), COALESCED);
  t.equal(byWarp.waits.device, N / 32);

  const byColumn = count(wgsl`
    let column = group.x * 256 + lane;
    var sum = 0.0;
    for (var j = 0u; j < ${N}; j++) { sum += x[j * ${N} + column] * v[j]; }
    y[column] = sum;`);
  t.strictSame(perRequest(site(byColumn, "load", "x")), COALESCED);
  t.equal(perRequest(site(byColumn, "load", "v")).sectors, 1);
  t.equal(byColumn.waits.device, N);
  t.equal(byColumn.touched.get("x")!.bytes, 256 * N * 4, "over all iterations");
  t.end();
});

t.test("lanes of a warp diverge, warps do not", (t) => {
  const idle = (condition: KernelText) => {
    const { active, instructions } = count(
      wgsl`if (${condition}) { y[lane] = exp(x[lane]); }`,
      { workgroupSize: 64 },
    );
    return 1 - active / instructions;
  };
  t.ok(idle(wgsl`lane % 2 == 0`) > 0.4);
  t.equal(idle(wgsl`lane < 32`), 0);
  t.end();
});

t.test("a branch for rare words of weights is not counted", (t) => {
  const tree = kernelOf({
    name: "decoded",
    workgroupSize: 32,
    bindings: bindings({ w: "u32" }, { y: "f32" }),
    body: wgsl`
      var sum = 0.0;
      for (var i = 0u; i < 64u; i++) {
        let word = w[i * 32u + lane];
        if ((word & 0x40404040u) == 0u) {
          sum = sum + exp(exp(exp(sum)));
        }
        sum = fma(f32(word), 2.0, sum);
      }
      y[lane] = sum;`,
  });
  const setup = (typical: LaunchSetup["typical"]) =>
    launchWork(tree, { workgroups: [4, 1, 1], typical }).operations;
  const weights = Object.assign(() => 0x40404040, { constant: 0x40404040 });
  const [unknown, rare] = [setup([]), setup([weights])];
  t.ok(unknown - rare >= 3 * 64 * 4 * 32, `${unknown} and ${rare}`);
  t.equal(setup([() => 0x40404040]), rare, "words by index");
  const others = setup([(i) => i === 0 ? 0x40404040 : 0]);
  t.ok(others - rare > 2 * 64 * 4 * 32, `${others} and ${rare}`);
  t.end();
});

t.test("workgroups with equal work along z are sampled once", (t) => {
  const windowed = kernel(wgsl`
    if (group.z >= 30) { y[group.z * 256 + lane] = x[lane]; }`);
  const samples = (z: number) =>
    sampledGroups(windowed, { workgroups: [4, 2, z], typical: [] })
      .map(({ group, share }) => [...group, Math.round(z * share)]);
  t.strictSame(samples(1), [[2, 1, 0, 1]]);
  t.strictSame(samples(33), [[2, 1, 15, 30], [2, 1, 31, 3]]);
  t.end();
});

t.test("workgroups after the last item of a folded grid do not work", (t) => {
  const items = 80_000 * ELEMENTWISE_LANES;
  const copy = elementwise({
    name: "copy",
    count: wgsl`${items}u`,
    bindings: bindings({ x: "f32" }, { y: "f32" }),
    body: wgsl`y[i] = x[i];`,
  });
  const workgroups = elementwiseGrid(items) as LaunchSetup["workgroups"];
  t.strictSame(workgroups, [GRID_LIMIT, 2, 1]);
  const { loads: [bytes] } = launchWork(copy, { workgroups, typical: [] });
  t.ok(Math.abs(bytes! / (4 * items) - 1) < 0.05, `${bytes}`);
  t.end();
});

t.test("aligned stores in adjacent elements are one request", (t) => {
  const requests = (first: KernelText) => {
    const counts = count(wgsl`
      var<workgroup> cells: array<f32, 1088>;
      let to = lane * 4 + ${first};
      ${range(4).map((n) => wgsl`cells[to + ${n}] = 1.0;`)}`);
    const sites = [...counts.sites.values()];
    return {
      requests: sum(sites.map(({ requests }) => requests)) / 8,
      passes: counts.shared.passes / 8,
    };
  };
  t.strictSame(requests(wgsl`0`), { requests: 1, passes: 4 });
  // Lanes with every fourth word use 8 banks.
  t.strictSame(requests(wgsl`1`), { requests: 4, passes: 16 });
  t.end();
});

t.test("aligned loads of adjacent elements are one request", (t) => {
  const requests = (first: KernelText) => {
    const counts = count(wgsl`
      var<workgroup> cells: array<f32, 1088>;
      let from = lane * 4 + ${first};
      ${range(4).map((n) => wgsl`let cell[${n}] = cells[from + ${n}];`)}
      y[lane] = ${
      range(4).map((n) => wgsl`cell[${n}]`).reduce((a, b) => wgsl`${a} + ${b}`)
    };`);
    const { passes } = counts.shared;
    return { passes: passes / 8, waits: counts.waits.shared };
  };
  t.strictSame(requests(wgsl`0`), { passes: 4, waits: 1 });
  t.strictSame(requests(wgsl`1`), { passes: 16, waits: 1 });
  t.end();
});

t.test("constants of addresses are no instructions", (t) => {
  const instructions = (offset: number) =>
    count(wgsl`y[lane] = x[lane + ${offset}];`).instructions;
  t.equal(instructions(1023), instructions(0));
  t.equal(instructions(1024), instructions(0) + 1);
  t.end();
});

t.test("loads that are used after a barrier overlap with it", (t) => {
  const waits = (use: KernelText) => {
    const counts = count(wgsl`
      let i = group.x * 256 + lane;
      let ahead = x[i];
      ${use}
      workgroupBarrier();
      y[i] = ahead;`);
    return [counts.waits.device, counts.ahead.waits.device];
  };
  t.strictSame(waits(wgsl``), [0, 1]);
  t.strictSame(waits(wgsl`y[i] = ahead;`), [1, 0]);
  t.end();
});

t.test("barriers wait for the slowest warp", (t) => {
  const counts = (barrier: KernelText) =>
    count(wgsl`
      let i = group.x * 256 + lane;
      let ahead = x[i];
      workgroupBarrier();
      var a = f32(i);
      if (lane < 32) { ${range(9).map(() => wgsl`a = sqrt(a);`)} }
      ${barrier}
      if (lane >= 224) { ${range(9).map(() => wgsl`a = sqrt(a);`)} }
      workgroupBarrier();
      let late = x[i + 1];
      y[i] = ahead + late + a;`);
  const [together, apart] = [wgsl``, wgsl`workgroupBarrier();`].map(counts);
  const nine = 9 * FUNCTIONS.sqrt.operations;
  t.equal(apart!.slowest - together!.slowest, nine);
  t.equal(apart!.ahead.instructions - together!.ahead.instructions, nine);
  t.equal(apart!.ahead.late.device, 1);
  t.end();
});

t.test("rows of matrices conflict unless their stride differs", (t) => {
  const passes = (stride: number) => {
    const product = {
      op: "multiply",
      left: "left",
      depth: 16,
      leftStride: stride,
      rightStride: 40,
      products: [{ name: "sums", right: "right" }],
    } as const;
    const { matrices } = count(
      wgsl`
        var<workgroup> left: array<f32, ${32 * stride}>;
        var<workgroup> right: array<f32, 640>;
        ${[
        statement({ op: "matrices", names: ["sums"], rows: 32, columns: 32 }),
        statement(product),
      ]}`,
      { workgroupSize: 32, matrices: 32 },
    );
    return matrices.passes;
  };
  // Two matrices of the left operand, and two of the right one.
  t.equal(passes(24), 16);
  t.equal(passes(16), 8 + 2 * 4 * 2);
  t.equal(passes(64), 8 + 2 * 4 * 8);
  t.end();
});

t.test("each result of matrices is stored once, adjacent ones at once", (t) => {
  const names = ["sums"];
  const results = statement({
    op: "results",
    names,
    row: { name: "row", from: u32(0), end: u32(32) },
    column: { name: "column", from: u32(0), end: u32(32) },
    values: ["sum"],
    body: [store("y", add(mul(u("row"), u32(32)), u("column")), f32(1))],
  });
  for (const matrices of [32, 64]) {
    const { stored } = count(
      wgsl`${[
        statement({ op: "matrices", names, rows: 32, columns: 32 }),
        results,
      ]}`,
      { workgroupSize: 128, matrices },
    );
    t.equal(stored, 4 * 32 * 32);
  }
  t.end();
});

t.test("subgroups that store one after another have twice as many barriers", (t) => {
  const names = ["sums"];
  const results = statement({
    op: "results",
    names,
    row: { name: "row", from: u32(0), end: u32(32) },
    column: { name: "column", from: u32(0), end: u32(32) },
    values: ["sum"],
    body: [],
  });
  const barriers = (matrices: number) =>
    count(
      wgsl`${[
        statement({ op: "matrices", names, rows: 32, columns: 32 }),
        results,
      ]}`,
      { workgroupSize: 128, matrices },
    ).barriers;
  // Four subgroups have a matrix each, two have two.
  t.equal(barriers(32), 2);
  t.equal(barriers(64), 2 * 4);
  t.end();
});

t.test("rows are scaled only if a factor is not 1", (t) => {
  const names = ["sums"];
  const scaled = (factor: number, matrices: number) =>
    count(
      wgsl`
        var<workgroup> factors: array<f32, 32>;
        ${[statement({ op: "matrices", names, rows: 32, columns: 32 })]}
        if (lane < 32) { factors[lane] = select(1.0, ${factor}, lane == 5); }
        ${[statement({ op: "scaleRows", names, factors: "factors" })]}`,
      { workgroupSize: 128, matrices },
    );
  // Four subgroups have a matrix each, two have two, in turns.
  for (const [matrices, barriers, passes] of [[32, 3, 40], [64, 12, 40]]) {
    const none = scaled(1, matrices!);
    t.equal(none.barriers, 3);
    const one = scaled(2, matrices!);
    t.equal(one.barriers - none.barriers, barriers);
    t.equal(one.matrices.passes - none.matrices.passes, 4 * passes!);
    t.ok(one.instructions > none.instructions + 4 * 256 / matrices!);
  }
  t.end();
});

/** A V100 PCIe, as measured by github.com/te42kyfo/gpu-benches (commit 01d2bb5). Latency under load is assumed. */
const V100: GpuCores = {
  matrix: { rate: 62.5e12, reachable: 1 },
  cores: 80,
  clock: 1.38e9,
  bandwidth: 900e9,
  reachable: 0.99,
  idle: 436 / 1.38e9,
  loaded: 600e-9,
  l2: 214 / 1.38e9,
  near: 30 / 1.38e9,
  shared: 30 / 1.38e9,
  issue: 4,
  apart: 2,
  beside: false,
  warps: 64,
  groups: 32,
  port: 64,
  words: 24_576,
};

/** Measured GB/s of sums over f64 arrays: workgroups of 128 lanes, loads per iteration. */
const STREAMS:
  readonly (readonly [groups: number, loads: number, rate: number])[] = [
    [1, 1, 3.0],
    [16, 1, 46.8],
    [80, 1, 227.6],
    [320, 1, 680.6],
    [1280, 1, 878.9],
    [16, 4, 158.6],
    [80, 4, 629.1],
    [1280, 4, 891.0],
    [1, 8, 15.0],
  ];

t.test("bounds of streams are 0.9 to 1.5 times the measured rates", (t) => {
  const iterations = 512;
  const lanes = 128;
  for (const [workgroups, unroll, measured] of STREAMS) {
    const counts = count(
      wgsl`
        var sum = 0.0;
        for (var j = 0u; j < ${iterations}; j++) {
          let (a, b) = vec2(x)[(group.x * ${iterations} + j) * ${lanes} + lane];
          sum += a + b;
        }
        y[group.x * ${lanes} + lane] = sum;`,
      { workgroupSize: lanes, unroll },
    );
    const { seconds, efficiency } = boundOf(V100, counts, {
      workgroups,
      lanes,
      words: 0,
      cold: () => true,
    });
    const rate = workgroups * iterations * lanes * 8 / seconds / 1e9;
    t.equal(efficiency, 1);
    t.ok(
      rate > 0.9 * measured && rate < 1.5 * measured,
      `${workgroups} workgroups, ${unroll} loads: ${
        rate.toFixed(1)
      } GB/s, measured ${measured}`,
    );
  }
  t.end();
});

/** The bound of one workgroup that copies 256 words, with other counts. */
function boundOfCopy(other: Partial<GroupCounts> = {}) {
  const counts = count(wgsl`let i = group.x * 256 + lane; y[i] = x[i];`);
  const launch = { workgroups: 1, lanes: 256, words: 0, cold: () => true };
  return boundOf(V100, { ...counts, ...other }, launch);
}

const NO_WAITS = { shared: 0, near: 0, l2: 0, device: 0 };

t.test("instructions hide no waits for loads after the barrier", (t) => {
  const waits = { ...NO_WAITS, device: 10 };
  const hidden = { instructions: 1e6, multiplyAdds: 0 };
  const cyclesWith = (late: typeof waits) =>
    boundOfCopy({ ahead: { waits, late, ...hidden } }).seconds * V100.clock;
  const cycles = cyclesWith({ ...NO_WAITS, l2: 2 }) - cyclesWith(NO_WAITS);
  t.ok(Math.abs(cycles - 2 * V100.l2 * V100.clock) < 20, `${cycles} cycles`);
  t.end();
});

t.test("instructions and products hide waits for loads ahead", (t) => {
  const cyclesWith = (hidden: {
    readonly instructions: number;
    readonly multiplyAdds: number;
  }) => {
    const waits = { shared: 0, near: 0, l2: 0, device: 10 };
    return boundOfCopy({ ahead: { waits, late: NO_WAITS, ...hidden } })
      .seconds * V100.clock;
  };
  const exposed = cyclesWith({ instructions: 0, multiplyAdds: 0 });
  // An instruction takes 2 cycles, and a core executes as many multiply-adds in 2,000.
  const products = 2000 * V100.matrix.rate / V100.cores / V100.clock;
  for (
    const hidden of [
      { instructions: 1000, multiplyAdds: 0 },
      { instructions: 0, multiplyAdds: products },
    ]
  ) {
    const saved = exposed - cyclesWith(hidden);
    t.ok(Math.abs(saved - 2000) < 20, `${saved} cycles`);
  }
  t.equal(
    cyclesWith({ instructions: 1e6, multiplyAdds: 0 }),
    boundOfCopy().seconds * V100.clock,
    "at most the waits are hidden",
  );
  t.end();
});

t.test("every pass over workgroup memory takes a cycle of its core", (t) => {
  const passes = 1e6;
  const { seconds, by } = boundOfCopy({
    shared: { passes, conflictFree: passes },
  });
  t.equal(by, "banks");
  t.equal(seconds, passes / V100.clock);
  t.end();
});

t.test("a step is bounded by its bytes and launches on every GPU", async (t) => {
  const config = fileURLToPath(DEMO_FOLDER);
  for (const gpu of GPU_NAMES.map(describedGpu)) {
    const step = await countStep({
      config,
      gpu,
      mesh: { ep: 2 },
      workload: { tokens: 2, sequences: 2, past: 16 },
      unroll: 4,
    });
    const { layers, launches, seconds, floor, fits } = step;
    const layerCount = layers.filter(({ name }) => /^layer/.test(name))
      .reduce((n, { times }) => n + times, 0);
    t.equal(layerCount, 4);
    t.ok(launches > 4 * 8);
    t.ok(seconds > floor + launches * gpu.launch);
    t.ok(fits);
    for (const { launch } of missedOf(step)) t.ok(launch.share < 0.7);
    t.match(layerTables(step), /\| attention_\S+ \| \d+ × \d+ \|/);
  }
});

/** Names of the kernels of each layer in a step of one token. */
async function kernelsOf(config: string): Promise<string[]> {
  const { layers } = await countStep({
    config,
    gpu: describedGpu("h100"),
    mesh: { ep: 1 },
    workload: { tokens: 1, sequences: 1, past: 16 },
    unroll: 4,
  });
  return layers.map(({ launches }) =>
    launches.map(({ kernel }) => kernel).join(" ")
  );
}

t.test("a generated token has few launches", async (t) => {
  const names = await kernelsOf(fileURLToPath(DEMO_FOLDER));
  t.ok(names[1]!.split(" ").length <= 8, names[1]!);
  t.match(
    names[1],
    /choices_matmul_pair_128x192 combined_matmul_192x128$/,
    "experts need two launches",
  );
  t.match(names.at(-1), /topk_1_of_\d+/, "the device selects the best token");
});

t.test("experts do not share a launch with a router of 1,024", async (t) => {
  const file = new URL("config.json", DEMO_FOLDER);
  const config = JSON.parse(readFileSync(file, "utf8"));
  const folder = t.testdir({
    "config.json": JSON.stringify({ ...config, num_experts: 1024 }),
  });
  const names = await kernelsOf(`${folder}/config.json`);
  t.match(names[1], /router_1024_assign grouped_matmul_pair_128x192/);
});
