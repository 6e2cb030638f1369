// Machine files, and predictions for machines made up so that the times can be worked out by hand.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Ajv } from "ajv";
import t from "tap";
import { compile, dot, model, upTo } from "../compiler/mod.ts";
import { comparePredictions } from "../engine/predict/explain.ts";
import {
  exchangeRates,
  exchangeWorks,
} from "../engine/machine/exchange_rates.ts";
import { forSizes } from "../engine/machine/measure_links.ts";
import { exchangeModel } from "../engine/machine/models.ts";
import { launchSeconds } from "../engine/simulate/device_time.ts";
import type { AllToAllStep } from "../spec/plan.ts";
import { exchangeSeconds } from "../engine/predict/link_time.ts";
import { predictStep } from "../engine/predict/mod.ts";
import { recordedChoices } from "../engine/predict/choices.ts";
import { chooseExperts } from "../engine/predict/scene.ts";
import {
  DataError,
  type Machine,
  type MachineDevice,
  machineRanks,
  machineSchema,
  parseMachine,
  placeRanks,
  stringifyMachine,
} from "../spec/mod.ts";
import { layer } from "../examples/layer.ts";

const read = (path: string) =>
  readFileSync(fileURLToPath(new URL(path, import.meta.url)), "utf8");

/** A device for which nothing takes time but what is said. */
const FREE: MachineDevice = {
  multiplyAdds: 1e30,
  operations: 1e30,
  bandwidth: 1e30,
  launch: 0,
};

/** Hosts of devices, each of one rank, where nothing takes time but what is said. */
function machineOf(
  device: Partial<MachineDevice>,
  rest: Partial<Machine> = {},
): Machine {
  return {
    version: 1,
    name: "made up",
    devices: { d: { ...FREE, ...device } },
    hosts: [{ name: "a", devices: [{ kind: "d", count: 4 }] }],
    links: { sameHost: { latency: 0, bandwidth: 1e30, per: "rank" } },
    ...rest,
  };
}

t.test("machine.schema.json is the exported schema, and a schema", (t) => {
  t.same(JSON.parse(read("../spec/machine.schema.json")), machineSchema);
  t.ok(new Ajv().validateSchema(machineSchema));
  t.end();
});

t.test("machine files are read, written and placed", (t) => {
  const machine: Machine = {
    ...machineOf({ name: "some device", cache: { bytes: 1, bandwidth: 2 } }),
    hosts: [
      { name: "n", count: 2, devices: [{ kind: "d", count: 2, ranks: 2 }] },
      { devices: [{ kind: "d" }], atOnce: 1 },
    ],
  };
  t.same(parseMachine(stringifyMachine(machine)), machine);
  t.equal(machineRanks(machine), 9);
  t.strictSame(
    placeRanks(machine).map(({ hostName, device }) => `${hostName} ${device}`),
    ["n0 0", "n0 0", "n0 1", "n0 1", "n1 2", "n1 2", "n1 3", "n1 3", "host 4"],
  );
  for (const name of ["node_8_nvlink", "nodes_64_infiniband"]) {
    const file = `../examples/cluster/machines/${name}.json`;
    const example = parseMachine(read(file), file);
    t.match(example.source, /[Ss]pecification/, `${name} says where from`);
    t.equal(machineRanks(example), name === "node_8_nvlink" ? 8 : 512);
  }
  t.end();
});

t.test("mistakes in machine files are named with their place", (t) => {
  const good = JSON.parse(stringifyMachine(machineOf({}))) as {
    [field: string]: unknown;
  };
  const d = { ...FREE };
  const broken: [change: object, message: RegExp][] = [
    [{ version: 2 }, /has version 2, and this program reads version 1/],
    [{ extra: 1 }, /'\/' has an unknown field 'extra'/],
    [{ hosts: undefined }, /'\/' has no field 'hosts'/],
    [{ hosts: [] }, /'\/hosts' must NOT have fewer than 1 items/],
    [{ devices: { d: { ...d, launch: -1 } } }, /'\/devices\/d\/launch' must/],
    [
      { devices: { d: { ...d, multiplyAdds: 0 } } },
      /'\/devices\/d\/multiplyAdds' must be > 0/,
    ],
    [
      { hosts: [{ devices: [{ kind: "e" }] }] },
      /a host has a device of kind 'e', and 'devices' has only 'd'/,
    ],
    [
      { links: { sameHost: { latency: 0, bandwidth: 1, per: "rack" } } },
      /'\/links\/sameHost\/per' must be one of pair, rank, host/,
    ],
    [
      { hosts: [{ count: 20000, devices: [{ kind: "d" }] }] },
      /places for 20000 ranks, and a plan has at most 4096/,
    ],
    [
      { measured: { communicator: "mpi", latency: [[0]], bandwidth: [[0]] } },
      /'\/measured\/latency' is not 4 by 4/,
    ],
  ];
  for (const [change, message] of broken) {
    const json = JSON.stringify({ ...good, ...change });
    t.throws(() => parseMachine(json, "m.json"), { message });
    t.throws(() => parseMachine(json, "m.json"), DataError);
    t.throws(() => parseMachine(json, "m.json"), { message: /'m\.json'/ });
  }
  t.throws(() => parseMachine("{"), { message: /it is not JSON/ });
  t.end();
});

t.test("the time of a launch", (t) => {
  const device = {
    ...FREE,
    ...{ multiplyAdds: 100, operations: 10, bandwidth: 1, launch: 2 },
  };
  const work = {
    ...{ workgroups: 8, multiplyAdds: 1000, operations: 2250 },
    ...{ loads: [], stores: [], exact: true },
  };
  const seconds = (
    change: Partial<MachineDevice>,
    bytes = 0,
    more: object = {},
  ) =>
    launchSeconds({ ...device, ...change }, { ...work, ...more }, {
      ...{ bytes, weights: bytes / 2, states: bytes / 3, cached: true },
    });
  t.same(seconds({}), { launch: 2, arithmetic: 10, memory: 0 });
  t.equal(
    seconds({}, 0, { operations: 2260 }).arithmetic,
    11,
    "operations beyond those of a matmul",
  );
  t.same(seconds({}, 30), { launch: 2, arithmetic: 0, memory: 30 });
  t.equal(seconds({ cache: { bytes: 1, bandwidth: 2 } }, 30).memory, 15);
  t.equal(seconds({ reading: 0.25 }, 30).memory, 60, "half of it is weights");
  t.equal(seconds({ attending: 0.125 }, 30).memory, 80, "a third is states");
  t.equal(seconds({ parallel: 16 }).arithmetic, 20, "half of it is idle");
  t.equal(seconds({ parallel: 8, grain: 5 }).arithmetic, 10);
  t.equal(seconds({ parallel: 2, grain: 20 }).arithmetic, 20, "alone");
  t.equal(seconds({ parallel: 2, grain: 20, join: 3 }).launch, 2);
  t.equal(seconds({ parallel: 2, grain: 5, join: 3 }).launch, 5, "shared");
  t.end();
});

t.test("the time of an exchange", (t) => {
  const link = { latency: 1, bandwidth: 10 };
  const bytes = [[0, 100, 100], [100, 0, 100], [100, 100, 0]];
  const seconds = (machine: Machine, gathers = false) =>
    exchangeSeconds(machine, {
      places: placeRanks(machine).slice(0, 3),
      ...{ bytes, gathers },
    });
  const by = (per: "pair" | "rank" | "host", more: object = {}) =>
    machineOf({}, { links: { sameHost: { ...link, per, ...more } } });
  t.equal(seconds(by("pair")), 1 + 10);
  t.equal(seconds(by("rank")), 1 + 20);
  t.equal(seconds(by("host")), 1 + 60);
  const gather = { latency: 3, peer: 4 };
  t.equal(seconds(by("rank", { gather })), 1 + 20);
  t.equal(seconds(by("rank", { gather }), true), 3 + 4);
  const short = [{ bytes: 50, seconds: 5 }, { bytes: 150, seconds: 7 }];
  t.equal(seconds(by("rank", { short })), 1 + 7 + 5, "after the first 150");
  t.equal(seconds(by("pair", { short })), 1 + 6, "between two sizes");
  t.equal(seconds(by("pair", { peer: 3 })), 1 + 3 + 10);
  const hosts = [
    { devices: [{ kind: "d", count: 2 }] },
    { devices: [{ kind: "d" }] },
  ];
  const two = machineOf({}, {
    hosts,
    links: {
      sameHost: { ...link, per: "rank" },
      otherHost: { latency: 2, bandwidth: 1, per: "host" },
    },
  });
  t.equal(seconds(two), 2 + 200, "two ranks of a host share its way out");
  const staged = machineOf({ staging: { latency: 4, bandwidth: 100 } });
  t.equal(seconds(staged), 2 * 4 + 400 / 100, "in and out of the device");
  t.throws(() => seconds(machineOf({}, { hosts })), {
    message: /the machine 'made up' has no link 'otherHost'/,
  });
  t.end();
});

t.test("from the times of exchanges on one device, the rates that give them", async (t) => {
  const plan = await compile(exchangeModel(2, 128), { mesh: { ep: 2 } });
  const { steps } = plan.programs[0]!;
  const exchange = steps.find((step) => step.op === "allToAll") as AllToAllStep;
  const rows = forSizes((size) => size === "one" ? 1 : 128);
  const works = exchangeWorks({ plan, exchange, rows });
  const device = { ...FREE, bandwidth: 1e30, parallel: 4 };
  const wanted = { launch: 3, operations: 1e4 };
  const seconds = (launches: typeof works.one) =>
    launches.reduce((n, work) => {
      const bytes = { bytes: 0, weights: 0, states: 0, cached: false };
      const { launch, arithmetic } = launchSeconds(
        { ...device, ...wanted },
        work,
        bytes,
      );
      return n + launch + arithmetic;
    }, 0);
  const times = { one: seconds(works.one), some: seconds(works.some) };
  const { launch, operations } = exchangeRates(works, times, device);
  t.ok(Math.abs(launch / wanted.launch - 1) < 1e-6, `${launch} s`);
  t.ok(Math.abs(operations / wanted.operations - 1) < 1e-6);
  t.end();
});

t.test("assumed choices of experts", (t) => {
  const choose = (how: Parameters<typeof chooseExperts>[2]) => [
    ...chooseExperts([0, 1, 2, 3, 4], {
      ...{ topK: 2, experts: 4, routing: 0 },
    }, how),
  ];
  const count = (skew?: number) => choose(skew === undefined ? {} : { skew });
  t.strictSame(count(), [3, 3, 2, 2], "in turn");
  const sum = (values: number[]) => values.reduce((n, value) => n + value);
  t.equal(sum(count(0)), 10);
  t.equal(count(50)[0], 5, "a strong favourite is chosen by every token");
  t.strictSame(count(1), count(1), "the same again");
  const recorded = [[3, 1, 3, 1, 3, 0, 3, 0, 3, 0]];
  t.strictSame(choose({ choices: recorded }), [3, 2, 0, 5], "as recorded");
  t.throws(() => choose({ choices: [[3, 1, 4]] }), {
    message: /router 0 does: of token 1, choice 0 is expert 4, of 4/,
  });
  t.throws(() => choose({ choices: [] }), {
    message: /of token 0, choice 0 is missing/,
  });
  const tensor = (tokens: number, value: number) => ({
    ...{ dtype: "i32", shape: [1, tokens, 1] } as const,
    data: new Int32Array(tokens).fill(value),
  });
  const trace = {
    "layer10.topk_idx": tensor(2, 1),
    "layer9.topk_idx": tensor(2, 0),
  };
  t.strictSame(
    recordedChoices(trace, 2).map((choices) => choices[0]),
    [0, 1],
    "in the order of layers",
  );
  const padded = { ...tensor(2, 1), data: Int32Array.of(3, -1) };
  t.strictSame(recordedChoices({ "layer0.topk_idx": padded }, 1), [[3]]);
  t.throws(() => recordedChoices(trace, 3), {
    message: /has the choices of 2 tokens, and the step has 3/,
  });
  t.throws(() => recordedChoices({}, 3), { message: /no tensor 'layer/ });
  t.end();
});

t.test("a matmul takes its multiply-adds and its bytes", async (t) => {
  const sizes = { token: upTo(256), embed: 64, out: 128 };
  const matmul = model(sizes, (m) => ({
    y: dot(m.input("x", "token embed"), m.param("w", "out embed"), "embed"),
  }));
  const plan = await compile(matmul, {});
  const seconds = (device: Partial<MachineDevice>) =>
    predictStep(plan, machineOf(device), { tokens: 256 }).seconds;
  const near = (actual: number, expected: number, what: string) =>
    t.ok(Math.abs(actual / expected - 1) < 1e-9, `${what}: ${actual}`);
  near(seconds({ multiplyAdds: 1000 }), 256 * 64 * 128 / 1000, "multiply-adds");
  const bytes = 4 * (256 * 64 + 64 * 128 + 256 * 128 + 1);
  near(seconds({ bandwidth: 10 }), bytes / 10, "bytes, each once");
  t.equal(seconds({ launch: 3, run: 2 }), 5, "one launch, one run");
  t.throws(() => predictStep(plan, machineOf({}), { tokens: 257 }), {
    message: /a step of 257 tokens: the plan has room for 256/,
  });
  t.end();
});

t.test("launches, exchanges and waits of an expert layer", async (t) => {
  const at = async (ep: number) => await compile(layer, { mesh: { ep } });
  const [one, two] = [await at(1), await at(2)];
  const launches = (plan: typeof one) =>
    plan.programs[0]!.steps.filter(({ op }) => op === "launch").length;
  const scene = { tokens: 64 };
  const link = { latency: 100, bandwidth: 1e30, per: "pair" } as const;
  const apart = machineOf({ launch: 1 }, { links: { sameHost: link } });
  t.equal(predictStep(one, apart, scene).seconds, launches(one));
  const separate = predictStep(two, apart, scene);
  t.equal(separate.seconds, launches(two) + 3 * 100, "counts, there, back");
  t.same(
    [separate.parts.launch, separate.parts.exchange, separate.devices],
    [launches(two), 300, 2],
  );
  const turning = machineOf({ launch: 1, turn: 10 }, {
    links: { sameHost: link },
  });
  t.equal(
    predictStep(two, turning, scene).seconds,
    separate.seconds + 2 * 10,
    "counts and rows that follow them are one turn",
  );
  const shared = predictStep(
    two,
    machineOf({ launch: 1 }, {
      hosts: [{ devices: [{ kind: "d", ranks: 2 }] }],
    }),
    scene,
  );
  t.same(
    [shared.parts.launch, shared.parts.exchange, shared.seconds],
    [2 * launches(two), 2 * 3, 2 * (launches(two) + 3)],
    "on one device, one after the other, and kernels exchange",
  );
  const cores = machineOf({ launch: 1 }, {
    hosts: [{ devices: [{ kind: "d", count: 2 }], atOnce: 1 }],
  });
  t.equal(predictStep(two, cores, scene).seconds, 2 * launches(two));
  t.throws(
    () =>
      predictStep(
        two,
        machineOf({}, { hosts: [{ devices: [{ kind: "d" }] }] }),
        scene,
      ),
    { message: /Cannot predict 2 ranks: .* places for 1/ },
  );
  // 64 tokens, 2 choices each, 512 floats; a half of them is for the other rank.
  t.equal(separate.sentBytes, 2 * (64 * 2 / 2) * 2048 + 2 * 8 * 4);
  t.equal(separate.expertBytes, 4 * 3 * 512 * 1024 * 4);

  const skewed = predictStep(two, machineOf({ multiplyAdds: 1e9 }), {
    tokens: 64,
    skew: 4,
  });
  t.ok(skewed.parts.waiting === 0, "the rank with the favourite never waits");
  const even = predictStep(two, machineOf({ multiplyAdds: 1e9 }), scene);
  t.ok(skewed.seconds > 1.3 * even.seconds, "an imbalance takes longer");
  t.end();
});

t.test("meshes are compared, and why is said", async (t) => {
  const plans = await Promise.all(
    [1, 2, 4].map((ep) => compile(layer, { mesh: { ep } })),
  );
  const compare = (machine: Machine) =>
    comparePredictions(
      plans.map((plan) => predictStep(plan, machine, { tokens: 64 })),
    );
  const memory = compare(machineOf({ bandwidth: 1e9 }));
  t.ok(memory[2]!.speed > 3 && memory[2]!.speed < 4, `${memory[2]!.speed}`);
  t.match(memory[0]!.why, /^ep=1: most of a step is reading and writing/);
  t.match(
    memory[2]!.why,
    /^ep=4 is .* times as fast as ep=1 on 4 devices .* each rank reads 12\.0 MiB of expert weights instead of 48\.0 MiB$/,
  );
  const slow = compare(machineOf({ bandwidth: 1e9 }, {
    links: { sameHost: { latency: 1, bandwidth: 1e9, per: "rank" } },
  }));
  t.ok(slow[1]!.speed < 1);
  t.match(
    slow[1]!.why,
    /times as slow as ep=1 .* exchanging rows between ranks, 9\d % of the step/,
  );
  const shared = compare(machineOf({ launch: 1 }, {
    hosts: [{ devices: [{ kind: "d", ranks: 4 }] }],
  }));
  t.match(
    shared[2]!.why,
    /: 4 ranks share one device, and most of what is added is what every launch/,
  );
  t.end();
});
