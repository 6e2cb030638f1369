/** The WebGPU device on an adapter: order, errors, timestamps and waits. */
// needs: gpu
// rotates with: runtime/gpu, runtime/gpu/adapters.ts

import t from "tap";
import type { DeviceKernel } from "../runtime/device.ts";
import { u32 } from "../spec/kernel/build.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { kernelKey, kernelsByKey } from "../runtime/kernel_key.ts";
import {
  createGpuDevice,
  type Device,
  type GpuAdapter,
  listAdapters,
  openGpu,
} from "../runtime/mod.ts";
import { countTurns } from "./helpers/count_turns.ts";
import { skipWithoutGpu } from "./helpers/needs.ts";

const adapters: GpuAdapter[] = await listAdapters();
const skip = skipWithoutGpu;

/** b[i] = a[i] * 2, repeated `rounds` times. */
function double(rounds = 1): DeviceKernel {
  return {
    tree: {
      name: "double",
      workgroupSize: 64,
      bindings: [
        { name: "a", type: "f32", access: "read" },
        { name: "b", type: "f32", access: "write" },
      ],
      shared: [],
      body: [{ op: "let", name: "rounds", value: u32(rounds) }],
    },
    wgsl: `
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read_write> b: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32) {
  var x = a[i];
  for (var n = 0u; n < ${rounds}u; n++) { x = sin(x) + a[(i + n) % 64u]; }
  b[i] = select(x, a[i] * 2.0, ${rounds}u == 1u);
}`,
  };
}

async function open(timestamps = false): Promise<Device> {
  return await createGpuDevice(await openGpu(0), { timestamps });
}

function floats(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

async function first(device: Device, buffer: Parameters<Device["read"]>[0]) {
  return new Float32Array((await device.read(buffer, 0, 4)).buffer)[0];
}

t.test("listAdapters() numbers and describes", { skip }, (t) => {
  for (const [i, adapter] of adapters.entries()) {
    t.equal(adapter.number, i);
    t.match(adapter.type, /hardware|software/);
    t.ok(adapter.limits["maxBufferSize"]! > 0);
    if (/llvmpipe|swiftshader/i.test(adapter.name)) {
      t.equal(adapter.type, "software");
    }
  }
  t.end();
});

t.test("openGpu() names an unknown number", async (t) => {
  await t.rejects(openGpu(99), {
    name: "MachineError",
    message: /^Cannot open adapter 99: this machine has /,
  });
});

t.test("write, launch, copy and read keep their order", { skip }, async (t) => {
  const device = await open();
  const progress: number[] = [];
  await device.prepare({ double: double() }, (n) => progress.push(n));
  t.same(progress, [0, 1]);
  const [a, b, c] = ["a", "b", "c"].map((n) => device.createBuffer(256, n));
  const ab = Object.freeze([a!, b!]);
  t.equal(await first(device, a!), 0, "memory starts at zero");
  device.write(a!, 0, floats(1));
  device.launch("double", ab, [1, 1, 1]);
  device.write(a!, 0, floats(5));
  device.copy(b!, 0, c!, 0, 256);
  device.launch("double", ab, [1, 1, 1]);
  device.launch("double", Object.freeze([c!, a!]), [0, 1, 1]);
  t.equal(await first(device, a!), 5, "no workgroups, nothing started");
  t.equal(await first(device, b!), 10);
  t.equal(await first(device, c!), 2);
  const reads = await Promise.all([a, b, c].map((x) => first(device, x!)));
  t.same(reads, [5, 10, 2]);
  device.destroy();
});

t.test("long reads are split into pieces", { skip }, async (t) => {
  const device = await open();
  const bytes = 65 << 20;
  const buffer = device.createBuffer(bytes, "long");
  device.write(buffer, bytes - 4, floats(7));
  const read = await device.read(buffer, 8, bytes - 8);
  t.equal(read.length, bytes - 8);
  t.same(read.slice(-4), floats(7));
  device.destroy();
});

t.test("timings() returns the times of launches", { skip }, async (t) => {
  const device = await open(true);
  if (!device.timings) return t.pass("no timestamp-query");
  await device.prepare({ double: double() });
  const buffers = [
    device.createBuffer(256, "a"),
    device.createBuffer(256, "b"),
  ];
  for (let i = 0; i < 3; i++) device.launch("double", buffers, [1, 1, 1]);
  const timings = await device.timings();
  t.equal(timings.length, 3);
  t.ok(timings.every(({ start, end }) => end >= start));
  device.launch("double", buffers, [1, 1, 1]);
  t.equal((await device.timings()).length, 1);
  t.equal((await device.timings()).length, 0);
  device.destroy();
});

t.test(
  "errors name the device and contain WebGPU's message",
  { skip },
  async (t) => {
    const { name } = adapters[0]!;
    const prefix = (text: string) => (error: Error) =>
      error.name === "MachineError" && error.message.startsWith(text);
    const rejects = async (promise: Promise<unknown>, text: string) => {
      const error = await promise.then(() => undefined, (e: Error) => e);
      t.ok(error && prefix(text)(error), error?.message ?? "nothing thrown");
    };
    const bad = await open();
    await rejects(
      bad.prepare({ bad: { ...double(), wgsl: "fn main( {" } }),
      `Cannot compile kernel 'bad' on device '${name}': 1:10 `,
    );
    const over = await open();
    const small = over.createBuffer(16, "small");
    over.copy(small, 0, small, 8, 8);
    await rejects(over.idle(), `Cannot compute on device '${name}': `);
    const lost = await open();
    const pending = lost.read(lost.createBuffer(16, "x"), 0, 16);
    lost.destroy();
    await rejects(pending, `Cannot compute on device '${name}': it was closed`);
    await rejects(lost.idle(), `Cannot compute on device '${name}': `);
    await rejects(
      openGpu(0).then((gpu) =>
        createGpuDevice(gpu, { limits: { maxBufferSize: 2 ** 50 } })
      ),
      `Cannot open a device on adapter '${name}': the plan needs 'maxBufferSize' of ${
        2 ** 50
      }`,
    );
    await rejects(
      openGpu(0).then((gpu) =>
        createGpuDevice(gpu, { features: ["no-such-feature"] })
      ),
      `Cannot open a device on adapter '${name}': the plan needs the feature 'no-such-feature'`,
    );
    const device = await open();
    t.throws(() => device.createBuffer(2 ** 40, "huge"), {
      name: "MachineError",
      message: new RegExp(`^Cannot allocate 'huge' on device `),
    });
    device.destroy();
  },
);

t.test("waiting for the GPU does not spin a core", { skip }, async (t) => {
  const immediate = globalThis.setImmediate;
  const device = await open();
  await device.prepare({ slow: double(2) });
  await device.prepare({ slower: double(3_000_000) });
  const buffers = [
    device.createBuffer(256, "a"),
    device.createBuffer(256, "b"),
  ];
  device.launch("slower", buffers, [2, 1, 1]);
  const turns = countTurns();
  const waited = device.idle();
  t.not(globalThis.setImmediate, immediate, "wrapped while waiting");
  let others = 0;
  setImmediate(() => others++);
  await waited;
  const { milliseconds, unneeded } = turns();
  t.equal(others, 1, "other immediates still run");
  t.equal(globalThis.setImmediate, immediate, "restored afterwards");
  t.ok(
    milliseconds > 30,
    `the wait was long enough: ${milliseconds} ms`,
  );
  t.equal(
    unneeded,
    0,
    "iterations of the event loop beyond one per millisecond",
  );
  device.destroy();
});

t.test(
  "plans on a shared device may use one name for two kernels",
  { skip },
  async (t) => {
    const device = await open();
    const keys = [double(1), double(2)].map((kernel) => {
      const plan = {
        kernels: { double: kernel },
        programs: [{ steps: [{ op: "launch", kernel: "double" }] }],
        numerics: { class: "exact" },
      } as unknown as Plan;
      return { key: kernelKey(plan, "double"), kernels: kernelsByKey(plan) };
    });
    for (const { kernels } of keys) await device.prepare(kernels);
    const buffers = [
      device.createBuffer(256, "a"),
      device.createBuffer(256, "b"),
    ];
    device.write(buffers[0]!, 0, floats(3));
    device.launch(keys[0]!.key, buffers, [1, 1, 1]);
    t.equal(await first(device, buffers[1]!), 6);
    device.launch(keys[1]!.key, buffers, [1, 1, 1]);
    t.not(await first(device, buffers[1]!), 6);
    device.destroy();
  },
);
