/** Execution on a null device: order of steps, bytes, exchanges, weights and messages for bad input. */
// needs: cpu

import t, { type Test } from "tap";
import fc from "fast-check";
import { add, compile, dot, model, sum, upTo } from "../compiler/mod.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { EXACT } from "../spec/numerics.ts";
import { dataPerRank, perRank } from "../spec/per_rank.ts";
import type { Plan, PlanBuffer, PlanWeight } from "../spec/plan/plan.ts";
import {
  createSession,
  type Device,
  type FileSource,
  type HostTensor,
  openSafetensors,
  type RunOptions,
  type TensorDirectory,
  tensorsInMemory,
  writeSafetensors,
} from "../runtime/mod.ts";
import { withoutRows } from "../runtime/outputs.ts";
import { exchangePlan } from "./helpers/exchange_plan.ts";
import { createNullDevice, type NullBuffer } from "./helpers/null_device.ts";

function kernel(name: string, bindings: readonly string[]): Kernel {
  return {
    name,
    workgroupSize: 1,
    bindings: bindings.map((name) => ({
      name,
      type: "u32",
      access: "read_write",
    })),
    shared: [],
    body: [],
  };
}

const KERNELS = { work: kernel("work", ["x", "y", "lengths"]) };

/** A plan of two ranks: y = work(x); counts are gathered; rows of y are exchanged into z. */
function examplePlan(counts: readonly (readonly number[])[]): Plan {
  const buffers: { [name: string]: PlanBuffer } = {};
  const allocations: { bytes: number }[] = [];
  const add = (
    name: string,
    kind: PlanBuffer["kind"],
    sizes: readonly [string, number][],
    rest: Partial<PlanBuffer> = {},
  ) => {
    const bytes = 4 * sizes.reduce((n, [, size]) => n * size, 1);
    buffers[name] = {
      name,
      kind,
      dtype: "f32",
      axes: sizes.map(([axis, size]) => ({ axis, size })),
      bytes,
      allocation: allocations.push({ bytes }) - 1,
      offset: 0,
      ...rest,
    };
  };
  add("x", "input", [["token", 8], ["embed", 2]]);
  add("y", "scratch", [["token", 8], ["embed", 2]]);
  add("z", "output", [["token", 8], ["embed", 2]]);
  add("lengths", "counts", [["axis", 1]], { dtype: "u32" });
  add("mine", "const", [["column", 2]], {
    dtype: "u32",
    data: dataPerRank(counts),
  });
  add("all", "scratch", [["groupRank", 2], ["column", 2]], { dtype: "u32" });
  add("groupRank", "const", [["one", 1]], {
    dtype: "u32",
    data: { groupRank: ["ep"] },
  });
  add("receivedCounts", "scratch", [["groupRank", 2]], { dtype: "u32" });
  add("cache", "state", [["token", 8]]);
  const grid = [{ count: "token" }, 1, 1] as const;
  return {
    version: 2,
    numerics: EXACT,
    requiredLimits: {},
    requiredFeatures: [],
    mesh: [{ name: "ep", size: 2 }],
    ranks: 2,
    axes: {
      token: {
        size: 8,
        dynamic: true,
        over: ["ep"],
        assignment: { by: "blocks" },
      },
      embed: { size: 2 },
    },
    counts: ["token"],
    allocations,
    buffers,
    kernels: Object.fromEntries(
      Object.entries(KERNELS).map(([name, tree]) => [name, { tree }]),
    ),
    weights: [],
    programs: [{
      name: "main",
      inputs: {
        x: { buffer: "x", dtype: "f32", axes: ["token", "embed"] },
      },
      outputs: {
        y: { buffer: "y", dtype: "f32", axes: ["token", "embed"] },
      },
      steps: [
        {
          op: "launch",
          ranks: "all",
          kernel: "work",
          bindings: { x: "x", y: "y", lengths: "lengths" },
          workgroups: grid,
        },
        {
          op: "allGather",
          ranks: "all",
          over: ["ep"],
          from: "mine",
          to: "all",
          bytes: 8,
          part: { op: "dispatch", routing: 0, part: "exchange counts" },
        },
        {
          op: "allToAll",
          ranks: "all",
          over: ["ep"],
          direction: "forward",
          from: "y",
          to: "z",
          rowBytes: 8,
          counts: "all",
          splits: [0, 1, 2],
          groupRank: "groupRank",
          receivedCounts: "receivedCounts",
          part: { op: "dispatch", routing: 0, part: "exchange" },
          pairRows: 0,
        },
      ],
    }],
    peakBytes: allocations.reduce((n, { bytes }) => n + bytes, 0),
    staging: { local: 0, host: 128 },
  };
}

function u32(buffer: NullBuffer): Uint32Array {
  return new Uint32Array(buffer.data.buffer);
}

/** Returns the name in a kernel's key. */
function nameOf(key: string): string {
  return key.split("#")[0]!;
}

/** Runs the example's kernels on words of memory. */
function emulate(key: string, buffers: readonly NullBuffer[]): void {
  const name = nameOf(key);
  const [a, b, c] = buffers.map(u32) as [Uint32Array, Uint32Array, Uint32Array];
  if (name === "work") b.set(a.subarray(0, 2 * c[0]!));
  else if (name === "gather_2") {
    c.set(a.subarray(0, 2), 0);
    c.set(b.subarray(0, 2), 2);
  } else {
    const [counts, groupRank, first, second, dst, receivedCounts] = buffers.map(
      u32,
    );
    const me = groupRank![0]!;
    let to = 0;
    for (const [s, from] of [first!, second!].entries()) {
      const skip = me === 0 ? 0 : counts![2 * s]!;
      const rows = counts![2 * s + me]!;
      dst!.set(from.subarray(2 * skip, 2 * (skip + rows)), 2 * to);
      receivedCounts![s] = rows;
      to += rows;
    }
  }
}

function tensor(rows: number): HostTensor {
  return {
    dtype: "f32",
    shape: [rows, 2],
    data: Float32Array.from({ length: 2 * rows }, (_, i) => i + 1),
  };
}

t.test("a run writes counts and inputs, launches, exchanges and reads", async (t) => {
  const device = createNullDevice("null", emulate);
  const plan = examplePlan([[1, 2], [2, 0]]);
  const session = await createSession(plan, { devices: [device, device] });
  device.records.length = 0;
  const { y } = await session.run("main", { x: tensor(5) });
  t.same(y, tensor(5));
  t.same(
    device.records.map((r) =>
      r.op === "launch" ? `${nameOf(r.kernel)} ${r.workgroups[0]}` : r.op
    ),
    [
      ...["write", "write", "write", "write"],
      ...["work 3", "work 2", "gather_2 1", "gather_2 1"],
      ...["exchange_forward_2 1", "exchange_forward_2 1", "read", "read"],
    ],
  );
  const rows = await session.run("main", { x: tensor(5) }, {
    rows: { y: [4, 0] },
  });
  t.same([...rows["y"]!.data], [9, 10, 1, 2]);
});

const joinsColumns = (table: readonly number[][]) => async (t: Test) => {
  const vocab = table.flat().length;
  const net = model({ token: upTo(4), vocab, embed: 2 }, (m) => ({
    y: dot(m.input("x", "token embed"), m.param("w", "vocab embed"), "embed"),
  }));
  const plan = await compile(net, {
    mesh: { ep: 2, tp: 2 },
    place: { token: "ep", vocab: { over: "tp", table } },
  });
  const { axes } = plan.programs[0]!.outputs["y"]!;
  t.same(
    axes,
    ["token/ep", "vocab/tp"],
    "the output is sharded over both axes",
  );
  const w = Float32Array.from({ length: 2 * vocab }, (_, i) => i);
  const device = await createCpuDevice({ threads: 1 });
  t.teardown(() => device.destroy());
  const session = await createSession(plan, {
    devices: Array<Device>(4).fill(device),
    tensors: tensorsInMemory(
      { w: { dtype: "f32", shape: [vocab, 2], data: w } },
      "w",
    ),
  });
  const x = tensor(3);
  const row = (i: number) =>
    Array.from(
      { length: vocab },
      (_, o) => x.data[2 * i]! * w[2 * o]! + x.data[2 * i + 1]! * w[2 * o + 1]!,
    );
  const { y } = await session.run("main", { x });
  t.same([...y!.data], [0, 1, 2].flatMap(row));
  const some = await session.run("main", { x }, { rows: { y: [2, 0, 2] } });
  t.same(some["y"]!.shape, [3, vocab]);
  t.same([...some["y"]!.data], [2, 0, 2].flatMap(row));
};

const COLUMNS = {
  "in order": [[0, 1, 2], [3, 4, 5]],
  "in another order": [[1, 2, 5], [0, 3, 4]],
};
for (const [which, table] of Object.entries(COLUMNS)) {
  t.test(
    `sharded columns of outputs are joined, for all rows or some: ${which}`,
    joinsColumns(table),
  );
}

t.test("a run launches only what its outputs and states need", async (t) => {
  const net = model({ token: upTo(4), embed: 2, wide: 8 }, (m) => {
    const x = m.input("x", "token embed");
    const y = dot(x, m.param("w", "wide embed"), "embed");
    const z = dot(y, m.param("v", "embed wide"), "wide");
    const total = sum(z, "embed");
    return { y, z, total, grand: sum(total, "token") };
  });
  const device = createNullDevice();
  const plan = await compile(net, { mesh: {} });
  const session = await createSession(plan, {
    devices: [device],
    tensors: tensorsInMemory({
      w: { dtype: "f32", shape: [8, 2], data: new Float32Array(16) },
      v: { dtype: "f32", shape: [2, 8], data: new Float32Array(16) },
    }, "weights"),
  });
  let found: { readonly [output: string]: HostTensor } = {};
  const launchedBy = async (options: RunOptions) => {
    device.records.length = 0;
    found = await session.run("main", { x: tensor(3) }, options);
    return device.records.flatMap((record) =>
      record.op === "launch" ? record.buffers.at(-1) ?? "" : []
    );
  };
  const launched = (outputs: readonly string[]) => launchedBy({ outputs });
  const all = await launched(["y", "z", "total", "grand"]);
  const some = await launched(["z"]);
  t.strictSame(await launched([]), []);
  t.strictSame(await launched(["y"]), all.slice(0, 1));
  t.strictSame(some, all.slice(0, 2));
  t.strictSame(
    await launched(["grand", "total", "y", "z"]),
    all,
    "independent of order",
  );
  t.strictSame(await launched(["z"]), some);
  t.strictSame(await launchedBy(withoutRows(plan.programs[0]!)), all);
  const { y, z, total, grand } = found;
  const shapes = [y, z, total, grand].map((one) => one?.shape);
  t.strictSame(shapes, [[0, 8], [0, 2], [0], []], "no rows, or all");
});

t.test("runs in series continue from the outputs before them", async (t) => {
  const net = model({ token: upTo(4), embed: 2 }, (m) => {
    const x = m.input("x", "token embed");
    const added = m.input("added", "token");
    const total = add(sum(x, "embed"), added);
    return { total };
  });
  const session = await createSession(await compile(net, { mesh: {} }), {
    devices: [await createCpuDevice()],
  });
  const list = (...values: number[]): HostTensor => ({
    dtype: "f32",
    shape: [values.length],
    data: Float32Array.from(values),
  });
  const x = {
    dtype: "f32",
    shape: [2, 2],
    data: Float32Array.of(1, 2, 3, 4),
  } as const;
  const first = { x, added: list(0, 0) } as const;
  const fed = { input: "added", output: "total", rows: [1, 0] };
  const found = await session.series!.run("main", [
    { inputs: first },
    { inputs: first, fed },
    { inputs: { ...first, x: { ...x, data: x.data.map((v) => -v) } }, fed },
  ]);
  t.strictSame(found.map(({ total }) => [...total!.data]), [
    [3, 7],
    [10, 10],
    [7, 3],
  ]);
  const shorter = { x: { ...x, shape: [1, 2], data: x.data.subarray(2) } };
  await t.rejects(
    session.series!.run("main", [
      { inputs: first },
      { inputs: { ...shorter, added: list(0) } },
    ]),
    {
      message:
        "Cannot run program 'main' in series: the inputs of its runs have different lengths. Run them one by one",
    },
  );
  session.close();
});

t.test("a rank without items has no launches and sends nothing", async (t) => {
  const device = createNullDevice("null", emulate);
  const plan = examplePlan([[0, 0], [0, 0]]);
  const session = await createSession(plan, { devices: [device, device] });
  device.records.length = 0;
  const { y } = await session.run("main", { x: tensor(1) });
  t.same(y, tensor(1));
  t.equal(
    device.records.filter((r) =>
      r.op === "launch" && nameOf(r.kernel) === "work"
    )
      .length,
    1,
  );
  t.same(await session.run("main", { x: tensor(0) }), { y: tensor(0) });
});

t.test("local and host exchanges move the same rows and bytes, as predicted", async (t) => {
  const count = fc.nat(2);
  await fc.assert(
    fc.asyncProperty(
      fc.tuple(fc.tuple(count, count), fc.tuple(count, count)),
      async (counts) => {
        const plan = examplePlan(counts);
        const seen = [];
        for (const shared of [true, false]) {
          const first = createNullDevice("null", emulate);
          const second = shared ? first : createNullDevice("null", emulate);
          const received: string[] = [];
          const device = (d: Device): Device => ({
            ...d,
            createBuffer: (bytes, label) => {
              const buffer = d.createBuffer(bytes, label) as NullBuffer;
              if (label.endsWith("allocation 2")) created.push(buffer);
              return buffer;
            },
          });
          const created: NullBuffer[] = [];
          const [a, b] = [device(first), device(second)];
          const session = await createSession(plan, {
            devices: [a, shared ? a : b],
            statistics: true,
          });
          await session.run("main", { x: tensor(8) });
          for (const buffer of created) received.push(u32(buffer).join());
          const { ranks } = session.statistics();
          for (const { sentBytes, peakBytes, stagingBytes } of ranks) {
            for (const c of [...Object.values(sentBytes), peakBytes]) {
              if (c.actual !== c.predicted) return false;
            }
            if (stagingBytes.actual !== (shared ? 0 : 128)) return false;
          }
          const [one, two] = ranks;
          if (one!.sentBytes.dispatch.actual !== 8 * counts[0][1]) return false;
          if (two!.sentBytes.dispatch.actual !== 8 * counts[1][0]) return false;
          seen.push(received.join("|"));
        }
        return seen[0] === seen[1];
      },
    ),
    { numRuns: 40 },
  );
  t.pass();
});

t.test("each wait for an exchange submits earlier work", async (t) => {
  const { plan } = exchangePlan({
    mesh: [{ name: "ep", size: 2 }],
    over: ["ep"],
    rowWords: 1,
    sendRows: 4,
    receiveRows: 8,
    chunks: 2,
  });
  const devices = [createNullDevice(), createNullDevice()];
  const session = await createSession(plan, { devices });
  await session.run("main", {});
  for (const { records } of devices) {
    t.equal(records.filter(({ op }) => op === "submit").length, 4);
  }
  t.same(
    session.statistics().ranks.map(({ stagingBytes }) => stagingBytes.actual),
    [2 * (32 + 32), 2 * (32 + 32)],
    "staging for both chunks",
  );
});

t.test("run() rejects bad inputs with the reason", async (t) => {
  const device = createNullDevice("null", emulate);
  const plan = examplePlan([[0, 0], [0, 0]]);
  const session = await createSession(plan, { devices: [device, device] });
  const cases: [{ [name: string]: HostTensor }, string][] = [
    [{}, "the input 'x' is missing. Give it as f32 [token embed]"],
    [
      { x: tensor(1), y: tensor(1) },
      "it has no input 'y'. Its inputs are 'x'",
    ],
    [
      { x: { dtype: "i32", shape: [1, 2], data: new Int32Array(2) } },
      "the input 'x' is i32 [1, 2]. Give it as f32 [token embed]",
    ],
    [
      { x: new Float32Array(2) as never },
      "the input 'x' is a Float32Array, not { dtype, shape, data }. Give it as f32 [token embed]",
    ],
    [
      { x: 7 as never },
      "the input 'x' is a number, not { dtype, shape, data }. Give it as f32 [token embed]",
    ],
    [
      { x: { ...tensor(1), data: new Int32Array(2) } },
      "the data of the input 'x' are an Int32Array, and its dtype is f32. Give a Float32Array",
    ],
    [
      { x: { ...tensor(1), data: [0, 1] as never } },
      "the data of the input 'x' are an Array, and its dtype is f32. Give a Float32Array",
    ],
    [
      { x: { ...tensor(1), shape: [2, 1] } },
      "axis 'embed' of the input 'x' has length 1. It must be 2",
    ],
    [
      { x: tensor(9) },
      "axis 'token' of the input 'x' has length 9. It must be at most 8",
    ],
    [
      { x: { ...tensor(2), shape: [1, 2] } },
      "the input 'x' has 4 elements and its shape [1, 2] has 2. Make them equal",
    ],
  ];
  for (const [inputs, state] of cases) {
    await t.rejects(session.run("main", inputs), {
      name: "DataError",
      message: `Cannot run program 'main': ${state}`,
    });
  }
  await t.rejects(session.run("train", {}), {
    message: "Cannot run program 'train': the plan has only 'main'",
  });
  await t.rejects(
    session.run("main", { x: tensor(1) }, { outputs: ["logits"] }),
    { message: "Cannot read output 'logits': program 'main' has only 'y'" },
  );
  const bounded = structuredClone(plan) as {
    -readonly [K in keyof Plan]: Plan[K];
  };
  bounded.axes = { ...plan.axes, token: { size: 8, dynamic: true } };
  bounded.programs = [{
    ...plan.programs[0]!,
    inputs: {
      x: { buffer: "x", dtype: "i32", axes: ["token", "embed"], below: 3 },
    },
  }];
  const strict = await createSession(bounded, { devices: [device, device] });
  await t.rejects(
    strict.run("main", {
      x: { dtype: "i32", shape: [1, 2], data: Int32Array.of(2, 3) },
    }),
    {
      message:
        "Cannot run program 'main': the input 'x' is 3 at index 1. Its values must be 0 to 2",
    },
  );
});

t.test("createSession() rejects wrong numbers and kinds of devices", async (t) => {
  const plan = examplePlan([[0, 0], [0, 0]]);
  const device = createNullDevice();
  await t.rejects(createSession(plan, { devices: [device] }), {
    name: "MachineError",
    message:
      "Cannot run the plan on 1 ranks: it is made for 2. Give one device for each rank",
  });
  await t.rejects(
    createSession(plan, { devices: [device, createNullDevice("other")] }),
    { name: "MachineError", message: /devices 'null' and 'other'/ },
  );
});

/** Loads a plan of one weight; returns the host memory of its buffer on each rank. */
async function load(
  weight: PlanWeight,
  buffer: Partial<PlanBuffer>,
  tensors: TensorDirectory,
  table: number[][] = [[2], [0, 1]],
): Promise<NullBuffer[]> {
  const base = examplePlan([[0, 0], [0, 0]]);
  const plan: Plan = {
    ...base,
    axes: {
      expert: { size: 3 },
      "expert/ep": { size: 3, of: "expert", over: ["ep"], table },
    },
    allocations: [{ bytes: 64 }],
    buffers: {
      w: {
        name: "w",
        kind: "weight",
        dtype: weight.stored,
        axes: [],
        bytes: 64,
        allocation: 0,
        offset: 0,
        ...buffer,
      },
    },
    weights: [weight],
    programs: [],
  };
  const created: NullBuffer[] = [];
  const device = createNullDevice();
  const recording: Device = {
    ...device,
    createBuffer: (bytes, label) => {
      const buffer = device.createBuffer(bytes, label) as NullBuffer;
      created.push(buffer);
      return buffer;
    },
  };
  await createSession(plan, { devices: [recording, recording], tensors });
  return created;
}

function directory(
  tensors: { [name: string]: HostTensor },
): Promise<TensorDirectory> {
  const data = writeSafetensors(tensors);
  const source: FileSource = {
    name: "w.safetensors",
    size: data.length,
    read: (offset, length) =>
      Promise.resolve(data.slice(offset, offset + length)),
  };
  return openSafetensors([source]);
}

function f32(shape: number[], values: number[]): HostTensor {
  return { dtype: "f32", shape, data: Float32Array.from(values) };
}

function floats(buffer: NullBuffer): number[] {
  return [...new Float32Array(buffer.data.buffer)];
}

const STACKED: PlanWeight = {
  buffer: "w",
  source: "e.{expert}",
  stored: "f32",
  axes: ["n", "k"],
  shape: [2, 3],
  stack: "expert/ep",
};

t.test("loadWeights() stacks, transposes and pads the shard of each rank", async (t) => {
  const tensors = await directory({
    "e.0": f32([2, 3], [1, 2, 3, 4, 5, 6]),
    "e.1": f32([2, 3], [11, 12, 13, 14, 15, 16]),
    "e.2": f32([2, 3], [21, 22, 23, 24, 25, 26]),
  });
  const [one, two] = await load(STACKED, {
    axes: [
      { axis: "expert/ep", size: perRank([1, 2]) },
      { axis: "k", size: 3 },
      {
        axis: "n",
        size: 2,
      },
    ],
    bytes: perRank([24, 48]),
  }, tensors);
  t.same(floats(one!).slice(0, 6), [21, 24, 22, 25, 23, 26]);
  t.same(
    floats(two!).slice(0, 12),
    [1, 4, 2, 5, 3, 6, 11, 14, 12, 15, 13, 16],
  );
  const [padded] = await load(
    { ...STACKED, source: "e.0", stack: undefined } as unknown as PlanWeight,
    {
      axes: [{ axis: "n", size: 2 }, { axis: "k", size: 3 }],
      rowStride: 4,
      bytes: 32,
    },
    tensors,
  );
  t.same(floats(padded!).slice(0, 8), [1, 2, 3, 0, 4, 5, 6, 0]);
});

t.test("loadWeights() slices an axis of one tensor", async (t) => {
  const tensors = await directory({
    w: f32([3, 2], [1, 2, 3, 4, 5, 6]),
  });
  const [one, two] = await load(
    {
      buffer: "w",
      source: "w",
      stored: "f32",
      axes: ["expert/ep", "k"],
      shape: [3, 2],
    },
    {
      axes: [{ axis: "expert/ep", size: perRank([2, 1]) }, {
        axis: "k",
        size: 2,
      }],
      bytes: perRank([16, 8]),
    },
    tensors,
    [[2, 0], [1]],
  );
  t.same(floats(one!).slice(0, 4), [5, 6, 1, 2]);
  t.same(floats(two!).slice(0, 2), [3, 4]);
});

t.test("loadWeights() names missing, misshapen and non-finite weights", async (t) => {
  const shape = {
    axes: [{ axis: "expert/ep", size: 1 }, { axis: "k", size: 3 }, {
      axis: "n",
      size: 2,
    }],
    bytes: 24,
  };
  const table = [[0], [1]];
  const good = f32([2, 3], [1, 2, 3, 4, 5, 6]);
  const bad = f32([2, 3], [1, 2, 3, 4, NaN, Infinity]);
  await t.rejects(
    load(STACKED, shape, await directory({ "e.0": good }), table),
    {
      name: "DataError",
      message:
        "Cannot load weight 'e.1': the files have no tensor of that name. It must be F32 [2, 3]",
    },
  );
  await t.rejects(
    load(
      STACKED,
      shape,
      await directory({ "e.0": good, "e.1": f32([3, 2], [1, 2, 3, 4, 5, 6]) }),
      table,
    ),
    {
      message:
        "Cannot load weight 'e.1': it is F32 [3, 2] in 'w.safetensors' and the plan expects F32 [2, 3]. Compile the plan for these files",
    },
  );
  await t.rejects(
    load(STACKED, shape, await directory({ "e.0": good, "e.1": bad }), table),
    {
      message:
        "Cannot load weight 'e.1': element [1, 1] in 'w.safetensors' is not a finite number. Get the file again",
    },
  );
  // A tensor that no rank owns is never read.
  await t.resolves(
    load(
      STACKED,
      shape,
      await directory({ "e.0": good, "e.1": good, "e.2": bad }),
      table,
    ),
  );
});
