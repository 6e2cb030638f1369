// Machine files, and predictions for hypothetical machines whose times can be computed by hand.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Ajv } from "ajv";
import t from "tap";
import { compile, dot, model, upTo } from "../compiler/mod.ts";
import {
  exchangeRates,
  exchangeWorks,
} from "../engine/planner/machine/exchange_rates.ts";
import { forSizes } from "../engine/planner/machine/measure_links.ts";
import { isRepeated, reportedMedian } from "../engine/planner/machine/meter.ts";
import { exchangeModel } from "../engine/planner/machine/models.ts";
import { launchSeconds } from "../engine/planner/simulate/device_time.ts";
import { exchangeSeconds } from "../engine/planner/simulate/exchange_time.ts";
import { simulate } from "../engine/planner/simulate/mod.ts";
import type { AllToAllStep } from "../spec/plan/plan.ts";
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

const read = (path: string) =>
  readFileSync(fileURLToPath(new URL(path, import.meta.url)), "utf8");

/** A device on which everything is free. */
const FREE: MachineDevice = {
  multiplyAdds: 1e30,
  operations: 1e30,
  bandwidth: 1e30,
  launch: 0,
};

/** A machine on which only the given properties cost time: four such devices on one host. */
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

t.test("the schema of machine files is valid", (t) => {
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
    t.match(example.source, /[Ss]pecification/, `${name} names its source`);
    t.equal(machineRanks(example), name === "node_8_nvlink" ? 8 : 512);
  }
  t.end();
});

t.test("mistakes in machine files are reported with their path", (t) => {
  const good = JSON.parse(stringifyMachine(machineOf({}))) as {
    [field: string]: unknown;
  };
  const d = { ...FREE };
  const broken: [change: object, message: RegExp][] = [
    [{ version: 2 }, /has version 2, and this program reads version 1/],
    [{ extra: 1 }, /'\/' has an unknown field 'extra'/],
    [{ hosts: undefined }, /'\/' has no field 'hosts'/],
    [{ hosts: [] }, /'\/hosts' is empty/],
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
      /'\/links\/sameHost\/per' must be one of 'pair', 'rank', 'host'/,
    ],
    [
      { hosts: [{ count: 20000, devices: [{ kind: "d" }] }] },
      /it describes 20000 ranks, and a plan has at most 4096/,
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
    multiplyAdds: 100,
    operations: 10,
    bandwidth: 1,
    launch: 2,
  };
  const work = {
    lanes: 32,
    workgroups: 8,
    multiplyAdds: 1000,
    operations: 2250,
    loads: [],
    stores: [],
    exact: true,
    matrices: false,
  };
  const seconds = (
    change: Partial<MachineDevice>,
    bytes = 0,
    more: object = {},
  ) =>
    launchSeconds({ ...device, ...change }, { ...work, ...more }, {
      bytes,
      weights: bytes / 2,
      states: bytes / 3,
      cached: true,
    });
  t.same(seconds({}), { launch: 2, arithmetic: 10, memory: 0 });
  t.equal(
    seconds({}, 0, { operations: 3710 }).arithmetic,
    11,
    "operations beyond those of a matmul",
  );
  const matrix = { matrix: { bf16: 1000 } };
  t.equal(seconds(matrix).arithmetic, 10, "f32 has no matrix units");
  t.equal(seconds(matrix, 0, { matrices: true }).arithmetic, 1);
  t.equal(seconds({}, 0, { matrices: true }).arithmetic, 10);
  t.same(seconds({}, 30), { launch: 2, arithmetic: 0, memory: 30 });
  t.equal(seconds({ efficiency: 0.5 }, 30).memory, 60);
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
  // Three ranks: 100 bytes to each other rank, 600 in all.
  const three = { peers: 2, bytes: 200, pairBytes: 100, hostBytes: 600 };
  const seconds = (machine: Machine, gathers = false) =>
    exchangeSeconds(machine, {
      levels: { sameHost: three },
      gathers,
      staged: 400,
    }, "d");
  const by = (per: "pair" | "rank" | "host", more: object = {}) =>
    machineOf({}, { links: { sameHost: { ...link, per, ...more } } });
  t.equal(seconds(by("pair")), 1 + 10);
  t.equal(seconds(by("rank")), 1 + 20);
  t.equal(seconds(by("host")), 1 + 60);
  t.equal(seconds(by("rank", { oversubscription: 3 })), 1 + 60);
  const gather = { latency: 3, peer: 4 };
  t.equal(seconds(by("rank", { gather })), 1 + 20);
  t.equal(seconds(by("rank", { gather }), true), 3 + 4);
  const short = [{ bytes: 50, seconds: 5 }, { bytes: 150, seconds: 7 }];
  t.equal(seconds(by("rank", { short })), 1 + 7 + 5, "after the first 150");
  t.equal(seconds(by("pair", { short })), 1 + 6, "between two sizes");
  t.equal(seconds(by("pair", { peer: 3 })), 1 + 3 + 10);
  const two = machineOf({}, {
    links: {
      sameHost: { ...link, per: "rank" },
      otherHost: { latency: 2, bandwidth: 1, per: "host" },
    },
  });
  const further = { peers: 1, bytes: 100, hostBytes: 200 };
  const levels = { sameHost: { peers: 1, bytes: 100 }, otherHost: further };
  t.equal(
    exchangeSeconds(two, { levels }, "d"),
    2 + 200,
    "levels overlap; two ranks of a host share its link",
  );
  const staged = machineOf({ staging: { latency: 4, bandwidth: 100 } });
  t.equal(seconds(staged), 2 * 4 + 400 / 100, "to and from the host");
  t.throws(() => exchangeSeconds(by("rank"), { levels }, "d"), {
    message: /the machine 'made up' has no link 'otherHost'/,
  });
  t.end();
});

t.test("exchangeRates() recovers rates from times of exchanges on one device", async (t) => {
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

t.test("the time of a matmul depends on its multiply-adds and bytes", async (t) => {
  const sizes = { token: upTo(256), embed: 64, out: 128 };
  const matmul = model(sizes, (m) => ({
    y: dot(m.input("x", "token embed"), m.param("w", "out embed"), "embed"),
  }));
  const plan = await compile(matmul, {});
  const seconds = (device: Partial<MachineDevice>) =>
    simulate(plan, machineOf(device), { tokens: 256 }).seconds;
  const near = (actual: number, expected: number, name: string) =>
    t.ok(Math.abs(actual / expected - 1) < 1e-9, `${name}: ${actual}`);
  near(seconds({ multiplyAdds: 1000 }), 256 * 64 * 128 / 1000, "multiply-adds");
  const bytes = 4 * (256 * 64 + 64 * 128 + 256 * 128 + 1);
  near(seconds({ bandwidth: 10 }), bytes / 10, "bytes, each once");
  t.equal(seconds({ launch: 3, run: 2 }), 5, "one launch, one run");
  t.throws(() => simulate(plan, machineOf({}), { tokens: 257 }), {
    message: /a step of 257 tokens: the plan allows at most 256/,
  });
  t.end();
});

t.test("measurements are repeated less often after the deadline, and report their spread", (t) => {
  const repeated = (done: number, now: number) =>
    isRepeated(done, { now: () => now, deadline: 10 });
  t.strictSame(
    [repeated(2, 11), repeated(3, 11), repeated(8, 9), repeated(9, 9)],
    [true, false, true, false],
  );
  const spreads: (readonly [string, number])[] = [];
  const onSpread = (name: string, spread: number) =>
    spreads.push([name, spread]);
  t.equal(reportedMedian([4, 2, 3], "few", { onSpread }), 3);
  t.equal(reportedMedian([1, 9, 4, 5, 4, 3, 4, 99], "all", { onSpread }), 4);
  t.strictSame(spreads, [["few", 2 / 3], ["all", 1 / 4]]);
  t.end();
});
