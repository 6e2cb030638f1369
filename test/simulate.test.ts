// The simulator against published and recorded times, and on hypothetical machines against hand computations.
// needs: cpu
// rotates with: engine/planner/simulate/

import { readFileSync } from "node:fs";
import t from "tap";
import { compile, tileHeight } from "../compiler/mod.ts";
import {
  areApart,
  kendall,
  type OrderDocument,
  orderNamed,
  orderOf,
} from "../bench/predict/order.ts";
import { publishedTimes } from "../bench/predict/exchanges.ts";
import { replay, score } from "../bench/predict/recorded.ts";
import { expertLayer } from "../bench/models.ts";
import { resultsPath } from "../bench/results.ts";
import { FFN } from "../bench/work.ts";
import { nodeFiles } from "../cli/files.ts";
import { configurationOf } from "../engine/checkpoint/configuration.ts";
import { compileRepresentatives } from "../engine/planner/summary/compiled.ts";
import { OPERATIONS_PER_MULTIPLY_ADD } from "../engine/planner/simulate/device_time.ts";
import { expertShares, rowShares } from "../engine/planner/simulate/loads.ts";
import {
  launchContext,
  openLaunchMeter,
} from "../engine/planner/simulate/launches.ts";
import { simulate, type Workload } from "../engine/planner/simulate/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { layer } from "../examples/layer.ts";
import { publishedModel } from "../models/published.ts";
import { CPU_LIMITS } from "../runtime/cpu/mod.ts";
import { kernelWork } from "../spec/kernel/work.ts";
import { UNLIMITED } from "../spec/limits.ts";
import type { Machine, MachineDevice, Plan } from "../spec/mod.ts";
import { sum } from "../spec/sum.ts";

/** A device on which everything is free. */
const FREE: MachineDevice = {
  multiplyAdds: 1e30,
  operations: 1e30,
  bandwidth: 1e30,
  launch: 0,
};

/** A machine on which only the given properties cost time: devices of one rank on one host. */
function machineOf(
  device: Partial<MachineDevice>,
  rest: Partial<Machine> = {},
): Machine {
  return {
    version: 1,
    name: "made up",
    devices: { d: { ...FREE, ...device } },
    hosts: [{ devices: [{ kind: "d", count: 4 }] }],
    links: { sameHost: { latency: 0, bandwidth: 1e30, per: "rank" } },
    ...rest,
  };
}

t.test("launches, exchanges and waits of an expert layer", async (t) => {
  const at = async (ep: number) => await compile(layer, { mesh: { ep } });
  const [one, two] = [await at(1), await at(2)];
  const launches = (plan: typeof one) =>
    plan.programs[0]!.steps.filter(({ op }) => op === "launch").length;
  const workload = { tokens: 64 };
  const link = { latency: 100, bandwidth: 1e30, per: "pair" } as const;
  const apart = (device: Partial<MachineDevice>) =>
    machineOf({ launch: 1, ...device }, { links: { sameHost: link } });
  t.equal(simulate(one, apart({}), workload).seconds, launches(one));
  const separate = simulate(two, apart({}), workload);
  t.equal(separate.seconds, launches(two) + 3 * 100, "counts, there, back");
  t.strictSame(
    [separate.parts.launch, separate.parts.exchange, separate.devices],
    [launches(two), 300, 2],
  );
  t.equal(
    simulate(two, apart({ sync: 10, run: 3 }), workload).seconds,
    separate.seconds + 2 * 10 + 3,
    "counts and the rows after them synchronize once",
  );
  const hosts = [{ devices: [{ kind: "d", ranks: 2 }] }];
  const shared = simulate(two, machineOf({ launch: 1 }, { hosts }), workload);
  t.strictSame(
    [shared.parts.launch, shared.parts.exchange],
    [2 * launches(two), 2 * 3],
    "on one device, ranks run in sequence and exchange by kernels",
  );
  const cores = { hosts: [{ devices: [{ kind: "d", count: 2 }], atOnce: 1 }] };
  t.equal(
    simulate(two, machineOf({ launch: 1 }, cores), workload).seconds,
    2 * launches(two),
  );
  t.throws(
    () =>
      simulate(
        two,
        machineOf({}, { hosts: [{ devices: [{ kind: "d" }] }] }),
        workload,
      ),
    { message: /Cannot predict 2 ranks: .* has only 1/ },
  );
  t.throws(() => simulate(one, machineOf({}), { tokens: 1e6 }), {
    message: /a step of 1000000 tokens: the plan allows at most/,
  });
  // Rows for the other rank: half of 32 tokens with 2 choices of 512 floats; and counts of 8 experts.
  t.equal(separate.sentBytes, 2 * (32 * 2 / 2) * 2048 + 8 * 4);
  t.equal(separate.expertBytes, 4 * 3 * 512 * 1024 * 4);

  const seconds = (workload: Workload) =>
    simulate(two, machineOf({ multiplyAdds: 1e9 }), workload);
  const even = seconds(workload);
  const skewed = seconds({
    tokens: 64,
    experts: { kind: "zipf", exponent: 4 },
  });
  t.equal(even.parts.waiting, 0);
  t.ok(
    skewed.parts.waiting > 0.2 * even.seconds,
    "ranks wait for the busiest one",
  );
  t.ok(skewed.seconds > 1.3 * even.seconds, "an imbalance takes longer");
});

t.test("chunks of an exchange overlap with kernels", async (t) => {
  const at = async (chunks: number) =>
    await compile(layer, { mesh: { ep: 2 }, chunks });
  const [unsplit, split] = [await at(1), await at(2)];
  const links = {
    sameHost: { latency: 0, bandwidth: 1e6, per: "rank" },
  } as const;
  const machine = machineOf({ multiplyAdds: 1e9 }, { links });
  const workload = { tokens: 64 };
  const [a, b] = [
    simulate(unsplit, machine, workload),
    simulate(split, machine, workload),
  ];
  t.ok(b.parts.exchange < 0.9 * a.parts.exchange, `${b.parts.exchange}`);
  t.ok(Math.abs(b.parts.arithmetic / a.parts.arithmetic - 1) < 0.05);
  t.equal(b.sentBytes - a.sentBytes, 0, "the same bytes");
});

t.test("with gathered tokens, ranks compute only rows of their own experts", async (t) => {
  const at = async (dispatcher: "allToAll" | "allGather") =>
    simulate(
      await compile(layer, {
        mesh: { ep: 4 },
        dispatcher,
        numerics: "fast",
      }),
      machineOf({ multiplyAdds: 1e9 }),
      { tokens: 64, experts: { kind: "zipf", exponent: 2 } },
    ).parts;
  const [sent, gathered] = [await at("allToAll"), await at("allGather")];
  t.ok(Math.abs(gathered.arithmetic / sent.arithmetic - 1) < 0.01);
  t.ok(Math.abs(gathered.waiting / sent.waiting - 1) < 0.01);
});

t.test("expert loads", (t) => {
  const facts = { experts: 8, topK: 2, routing: 0 };
  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  const even = expertShares({ kind: "even" }, facts);
  t.strictSame(even, new Array(8).fill(0.25));
  const zipf = expertShares({ kind: "zipf", exponent: 1 }, facts);
  t.ok(Math.abs(sum(zipf) - 2) < 1e-9, "two choices of each token");
  t.ok(
    zipf.every((share, e) => share <= 1 && (e === 0 || share < zipf[e - 1]!)),
  );
  const counts = [[3, 1, 0, 0, 0, 0, 0, 4]];
  const recorded = expertShares({ kind: "recorded", counts }, facts);
  t.strictSame(recorded, [0.75, 0.25, 0, 0, 0, 0, 0, 1]);
  const splits = [0, 4, 8];
  const shares = rowShares({ kind: "recorded", counts }, recorded, {
    splits,
    tokens: 4,
  });
  t.strictSame(shares, { max: 0.5, mean: 0.5 });
  const random = (tokens: number) =>
    rowShares({ kind: "zipf", exponent: 0 }, even, { splits, tokens }).max;
  // The expected maximum of two independent shares is 0.564 standard deviations above the mean.
  const sigma = Math.sqrt(0.25 / (2 * 64));
  t.ok(Math.abs((random(64) - 0.5) / sigma - 0.564) < 0.2, `${random(64)}`);
  t.ok(random(6400) < random(64), "with many tokens, shares are more equal");
  t.throws(
    () =>
      expertShares({ kind: "recorded", counts: [new Array(9).fill(1)] }, facts),
    { message: /expert 8 was chosen, and the model has 8/ },
  );
  t.end();
});

t.test("published times of dispatch and combine kernels", (t) => {
  const times = publishedTimes();
  const within = (factor: number) =>
    times.filter(({ ratio }) => ratio < factor && ratio > 1 / factor);
  t.equal(times.length, 86);
  t.ok(within(1.3).length >= 75, `${within(1.3).length} within 30 %`);
  t.ok(within(2).length >= 84, `${within(2).length} within a factor of 2`);
  for (const { name, ratio } of times) {
    if (!name.startsWith("DeepEP, H800")) continue;
    t.ok(ratio < 1.3 && ratio > 1 / 1.3, `${name}: ${ratio.toFixed(2)}`);
  }
  t.end();
});

t.test("DeepSeek's published deployment on H800, tokens per second and node", async (t) => {
  // This shows that the published speeds can be reached under the following assumptions, not that the simulator
  // confirms them: one rate is fitted to the speeds, and memory is insufficient. Assumed: FP8 matmuls at 70 % of the
  // data sheet's 1,979 TFLOP/s; 90 % of 3.35 TB/s; fitted, not from a data sheet: other operations of kernels at 4
  // times the rate of multiply-adds; unlimited memory, as ranks need more than the 80 GB of a card: prefill 133.7 GiB
  // (weights 36.8, scratch 96.4, since a rank has capacity for all 131,072 tokens of a step and not only for its own
  // 4,096), decode 181.9 GiB (weights 22.5, scratch 22.2, f32 latents for 8,192 positions 137.3; 83.6 for the 4,990
  // in use, half of it as bf16, a quarter as FP8); links as in DeepEP's tables; FP8 rows dispatched and BF16 rows
  // combined; weights as stored; even experts without replicas; states in f32, as in plans; two chunks, one in flight
  // while the other is computed. Prefill: prompts of 4,096 tokens, one per rank, with deduplicated dispatch. Decode:
  // 128 sequences per rank after 4,989 tokens, the published mean.
  const rate = 0.7 * 1979e12 / 2;
  const machine: Machine = {
    ...machineOf({
      multiplyAdds: rate,
      operations: 4 * rate,
      parallel: 1056,
      bandwidth: 0.9 * 3.35e12,
      launch: 2e-6,
    }),
    hosts: [{ count: 18, devices: [{ kind: "d", count: 8 }] }],
    links: {
      sameHost: { latency: 2e-5, bandwidth: 160e9, per: "rank" },
      otherHost: { latency: 2e-5, bandwidth: 45e9, per: "rank" },
    },
  };
  const file = new URL("references/configs/deepseek-v3.json", import.meta.url);
  const configuration = configurationOf(
    JSON.parse(readFileSync(file, "utf8")),
    "deepseek-v3.json",
  );
  const stages = [
    // 73.7k input tokens, of which 56.3 % were cache hits.
    {
      name: "prefill",
      ranks: 32,
      tokens: 4096,
      sequences: 1,
      past: 0,
      deduplicate: true,
      published: 73_700 * (1 - 0.563),
    },
    {
      name: "decode",
      ranks: 144,
      tokens: 128,
      sequences: 128,
      past: 4989,
      deduplicate: false,
      published: 14_800,
    },
  ];
  for (const { name, ranks, published, deduplicate, ...each } of stages) {
    const workload = {
      tokens: ranks * each.tokens,
      sequences: ranks * each.sequences,
      past: each.past,
    };
    const { plan, weights } = await compileRepresentatives(
      { kind: "configuration", configuration },
      nodeFiles(),
      {
        machine,
        deduplicate,
        wire: "fp8",
        chunks: 2,
        next: {},
        mesh: { ep: ranks },
        bounds: {
          maxTokens: workload.tokens,
          maxSequences: workload.sequences,
          maxContext: 8192,
        },
      },
    );
    const { seconds } = simulate(plan, machine, workload, {
      times: (layer) => weights.representatives.of(layer).length,
    });
    const ratio = 8 * each.tokens / seconds / published;
    t.ok(ratio < 1.5 && ratio > 1 / 1.5, `${name}: ${ratio.toFixed(2)}`);
  }
});

t.test("operations per multiply-add of a matmul follow from the tile", async (t) => {
  for (const computer of ["cpu", "native", "gpu", "software"] as const) {
    const rows = tileHeight(TUNING[computer].matmul!);
    const load = (_: string, i: number) =>
      i === 0 ? 1e6 : i % 3 === 0 ? rows : 0;
    const { kernels } = await compile(expertLayer(FFN.tokens), {
      mesh: {},
      limits: CPU_LIMITS,
      tuning: TUNING[computer],
    });
    const grouped = Object.entries(kernels)
      .filter(([name]) => name.startsWith("grouped_matmul"));
    t.equal(grouped.length, 2);
    const stated = OPERATIONS_PER_MULTIPLY_ADD[computer];
    let max = 0;
    for (const [name, { tree }] of grouped) {
      const works = Array.from(
        { length: tree.workgroupSize },
        (_, lane) => kernelWork(tree, { group: [0, 0, 0], lane, load }),
      );
      const ratio = sum(works.map(({ operations }) => operations)) /
        sum(works.map(({ multiplyAdds }) => multiplyAdds));
      t.ok(
        ratio < 1.03 * stated,
        `${computer}, ${name}: ${ratio}, ${stated} said`,
      );
      max = Math.max(max, ratio);
    }
    // Software adapters use the number of GPUs, which is larger than theirs.
    if (computer !== "software") t.ok(stated < 1.1 * max, computer);
  }
});

t.test("invocations that share decisions have the work of one counted alone", async (t) => {
  const { kernels } = await compile(expertLayer(FFN.tokens), { mesh: {} });
  for (const [name, { tree }] of Object.entries(kernels)) {
    for (const rows of [0, 1, 3, 1e6]) {
      const load = (_: string, i: number) => i % 3 === 0 ? rows : 0;
      for (let lane = 0; lane < tree.workgroupSize; lane += 7) {
        const at = { group: [lane % 5, lane % 2, 0] as const, lane, load };
        const alone = kernelWork({ ...tree, body: [...tree.body] }, at);
        t.same(kernelWork(tree, at), alone, `${name}, lane ${lane}`);
      }
    }
  }
});

t.test("recorded times of steps and exchanges", async (t) => {
  const replayed = await replay("predict.json");
  const [steps, exchanges] = [
    score(replayed, "step"),
    score(replayed, "exchange"),
  ];
  t.strictSame([steps.all, exchanges.all], [42, 30]);
  for (const { what, name, now } of replayed) {
    t.comment(`${name}, ${what}: ${now.toFixed(2)}`);
  }
  // Current plans have fewer launches than the measured ones, and rotations fewer operations, so six step times are
  // predicted too short, by up to 26 %.
  t.ok(steps.now >= steps.then - 6, `steps: ${steps.now}, then ${steps.then}`);
  t.ok(
    exchanges.now >= exchanges.then,
    `exchanges: ${exchanges.now}, then ${exchanges.then}`,
  );
});

t.test("the measured order of configurations on four ranks", async (t) => {
  const order = orderNamed("order_mpi");
  const { measured } = JSON.parse(
    readFileSync(resultsPath("order_mpi"), "utf8"),
  ) as OrderDocument;
  const plans = new Map<string, Plan>();
  const { prefill, decode } = await orderOf(order, measured, { plans });
  t.equal(decode.length, 15);
  // Since the measurement, layers with deduplicated dispatch have three launches fewer.
  t.ok(kendall(decode).tau >= 0.75, `decode: ${kendall(decode).tau}`);
  // Half of the pairs of prefill times differ no more than repetitions of one.
  t.ok(kendall(prefill).tau >= 0.6, `prefill: ${kendall(prefill).tau}`);
  for (const times of [prefill, decode]) {
    const { tau, pairs } = kendall(times, areApart);
    t.ok(pairs >= 50, `${pairs} pairs are distinct`);
    t.ok(tau >= 0.9, `of distinct pairs: ${tau}`);
  }
  const machine = structuredClone(measured.machine);
  Object.assign(machine.links.sameHost!, { latency: 0, peer: 0 });
  const free = await orderOf(order, { ...measured, machine }, { plans });
  t.ok(kendall(free.decode).tau < 0.3, "messages are free");
});

t.test("decode reads the keys and values of each sequence once", async (t) => {
  const layers = 2, heads = 8, dim = 64, past = 1023;
  const model = publishedModel({
    architectures: ["Qwen3MoeForCausalLM"],
    num_hidden_layers: layers,
    num_attention_heads: 16,
    num_key_value_heads: heads,
    head_dim: dim,
  }).build({ maxTokens: 512, maxSequences: 32, maxContext: 2048 });
  // Four tokens share a workgroup of these kernels if they belong to one sequence.
  for (const name of ["native", "gpu"] as const) {
    const plan = await compile(model, {
      limits: UNLIMITED,
      tuning: TUNING[name],
    });
    for (const sequences of [1, 4, 16, 32]) {
      const workload = { tokens: sequences, sequences, past };
      const meter = openLaunchMeter(launchContext(plan, workload));
      const read = plan.programs[0]!.steps.map((step) =>
        step.op === "launch"
          ? meter.launch(step, { rank: 0, fullness: "max" })?.states ?? 0
          : 0
      );
      const cached = sequences * (past + 1) * layers * heads * dim * 2 * 4;
      t.equal(sum(read), cached, `${name}, ${sequences} sequences`);
    }
  }
});
