/** The WebAssembly CPU device: order of work, repeated launches, short batches, errors. */
// needs: cpu
import { spawnSync } from "node:child_process";
import t from "tap";
import { createCpuDevice, openCpuPool } from "../runtime/cpu/mod.ts";
import type { Launch } from "../runtime/device.ts";
import {
  add,
  id,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../spec/kernel/build.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import type { PlanKernel } from "../spec/plan/plan.ts";

/** y[i] = y[i] * factor + i, in u32, so that the result depends on the order of launches. */
function step(factor: number): PlanKernel {
  const i = local("i", "u32");
  const tree: Kernel = {
    name: `step${factor}`,
    workgroupSize: 8,
    shared: [],
    bindings: [{ name: "y", type: "u32", access: "read_write" }],
    body: [
      let_("i", add(mul(id("group.x"), u32(8)), id("local"))),
      store("y", i, add(mul(load("y", i, "u32"), u32(factor)), i)),
    ],
  };
  return { tree };
}

const bytesOf = (words: Uint32Array) =>
  new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
const wordsOf = (bytes: Uint8Array) => new Uint32Array(bytes.slice().buffer);

t.test("createCpuDevice() runs writes, launches and copies in call order", async (t) => {
  const device = await createCpuDevice({ threads: 3 });
  t.equal(device.name, "CPU (WebAssembly SIMD, 3 threads)");
  await device.prepare({ three: step(3), five: step(5) });
  const length = 8 * 20011;
  const a = device.createBuffer(4 * length, "a");
  const b = device.createBuffer(4 * length, "b");
  t.ok(
    wordsOf(await device.read(a, 0, 4 * length)).every((w) => w === 0),
    "zero when created",
  );
  const want = new Uint32Array(length);
  const first = Uint32Array.from({ length }, (_, i) => i * 31);
  device.write(a, 0, bytesOf(first));
  want.set(first);
  for (let round = 0; round < 40; round++) {
    const factor = round % 2 ? 3 : 5;
    device.launch(round % 2 ? "three" : "five", [a], [length / 8, 1, 1]);
    want.forEach((w, i) => want[i] = Math.imul(w, factor) + i);
    if (round % 10 !== 0) continue;
    device.write(a, 4 * round, bytesOf(Uint32Array.of(round, 7)));
    want.set([round, 7], round);
    device.copy(a, 0, b, 0, 4 * length);
    device.copy(b, 4 * 100, a, 4 * 50000, 4 * 70000);
    want.set(want.slice(100, 70100), 50000);
  }
  t.equal(
    Buffer.compare(await device.read(a, 0, 4 * length), bytesOf(want)),
    0,
  );
  const small = device.createBuffer(4 * 8, "small");
  device.launch("three", [small], [0, 1, 1]);
  for (let i = 0; i < 5000; i++) device.launch("three", [small], [1, 1, 1]);
  device.write(small, 4, bytesOf(Uint32Array.of(9)));
  await device.idle();
  t.same(wordsOf(await device.read(small, 4, 4)), [9], "a part of a buffer");
  device.destroy();
  await t.rejects(device.idle(), /Cannot use the CPU device: it was destroyed/);
});

t.test("createCpuDevice() repeats launches on the current memory", async (t) => {
  const device = await createCpuDevice({ threads: 2, timestamps: true });
  await device.prepare({ three: step(3), five: step(5) });
  const [a, b] = ["a", "b"].map((name) => device.createBuffer(4 * 16, name));
  const launches = (...kernels: readonly string[]) =>
    Object.freeze(
      kernels.flatMap((kernel) =>
        [a!, b!].map((buffer, i): Launch => {
          return { kernel, buffers: [buffer], workgroups: [i + 1, 1, 1] };
        })
      ),
    );
  const [both, other] = [launches("three", "five"), launches("five")];
  const want = [new Uint32Array(16), new Uint32Array(16)];
  const apply = (factors: readonly number[]) => {
    for (const factor of factors) {
      for (const [i, words] of want.entries()) {
        for (let n = 0; n < 8 * (i + 1); n++) {
          words[n] = Math.imul(words[n]!, factor) + n;
        }
      }
    }
  };
  for (const round of [1, 2, 3]) {
    device.write(a!, 0, bytesOf(Uint32Array.of(round)));
    want[0]![0] = round;
    device.launchAll!(both);
    apply([3, 5]);
    device.launchAll!(other);
    apply([5]);
    t.strictSame(wordsOf(await device.read(a!, 0, 64)), want[0]);
    t.strictSame(wordsOf(await device.read(b!, 0, 64)), want[1]);
    t.equal((await device.timings!()).length, 6, "each launch is timed");
  }
  device.destroy();
});

t.test("createCpuDevice() runs short batches on this thread", async (t) => {
  const device = await createCpuDevice({ threads: 2 });
  await device.prepare({ three: step(3), five: step(5) });
  const length = 8 * 600_000;
  const a = device.createBuffer(4 * length, "a");
  const want = new Uint32Array(length);
  let here = 0;
  // Timing varies: some short batches must run here, and every result must be right on any thread.
  for (let round = 0; round < 60; round++) {
    const long = round % 5 === 0;
    const groups = long ? length / 8 : 3;
    device.launch(round % 2 ? "three" : "five", [a], [groups, 1, 1]);
    for (let i = 0; i < 8 * groups; i++) {
      want[i] = Math.imul(want[i]!, round % 2 ? 3 : 5) + i;
    }
    let done = false;
    const idle = device.idle().then(() => done = true);
    // No message of another thread arrives in between.
    for (let i = 0; i < 100 && !done; i++) await undefined;
    if (done) here++;
    t.notOk(long && done, "long batches do not run here");
    await idle;
  }
  t.ok(here > 0, `${here} of 60 here`);
  t.equal(
    Buffer.compare(await device.read(a, 0, 4 * length), bytesOf(want)),
    0,
  );
  device.destroy();
});

t.test("createCpuDevice() accepts a long write between launches", async (t) => {
  const device = await createCpuDevice({ threads: 1 });
  await device.prepare({ three: step(3) });
  const length = 8 * 200_000;
  const a = device.createBuffer(4 * length, "a");
  const first = Uint32Array.from({ length }, (_, i) => i ^ 0x5555);
  device.launch("three", [a], [1, 1, 1]);
  device.write(a, 0, bytesOf(first));
  device.launch("three", [a], [length / 8, 1, 1]);
  const want = first.map((w, i) => Math.imul(w, 3) + i);
  t.equal(
    Buffer.compare(await device.read(a, 0, 4 * length), bytesOf(want)),
    0,
  );
  device.destroy();
});

t.test("createCpuDevice() replaces a kernel that is prepared again with the same name", async (t) => {
  const pool = await openCpuPool(2);
  const [one, two] = [
    await createCpuDevice({ pool }),
    await createCpuDevice({ pool }),
  ];
  await one.prepare({ k: step(2) });
  await two.prepare({ k: step(7) });
  const [a, b] = [one.createBuffer(32, "a"), two.createBuffer(32, "b")];
  const ones = bytesOf(new Uint32Array(8).fill(1));
  one.write(a, 0, ones);
  two.write(b, 0, ones);
  one.launch("k", [a], [1, 1, 1]);
  two.launch("k", [b], [1, 1, 1]);
  await one.prepare({ k: step(7) });
  one.launch("k", [a], [1, 1, 1]);
  t.equal(wordsOf(await one.read(a, 0, 4))[0], 14);
  t.equal(wordsOf(await two.read(b, 0, 4))[0], 7);
  two.destroy();
  one.destroy();
  await pool.close();
});

t.test("createCpuDevice() rejects pending reads when it is destroyed", async (t) => {
  const device = await createCpuDevice({ threads: 2 });
  await device.prepare({ three: step(3) });
  const a = device.createBuffer(4 * 8 * 60000, "a");
  for (let i = 0; i < 2000; i++) device.launch("three", [a], [60000, 1, 1]);
  const reading = device.read(a, 0, 4);
  device.destroy();
  await t.rejects(reading, { name: "MachineError", message: /destroyed/ });
});

t.test("createCpuDevice() with timestamps reports start and end of each launch", async (t) => {
  const device = await createCpuDevice({ threads: 2, timestamps: true });
  await device.prepare({ three: step(3) });
  const a = device.createBuffer(4 * 8000, "a");
  device.launch("three", [a], [1000, 1, 1]);
  device.copy(a, 0, a, 16, 16);
  device.launch("three", [a], [1, 1, 1]);
  device.launch("three", [a], [0, 1, 1]);
  const timings = await device.timings!();
  t.equal(timings.length, 2);
  t.ok(timings[0]!.start <= timings[0]!.end);
  t.ok(timings[0]!.end <= timings[1]!.start, "in order");
  t.same(await device.timings!(), []);
  device.destroy();
});

t.test("createCpuDevice() reports insufficient memory", async (t) => {
  const device = await createCpuDevice({ threads: 1 });
  t.throws(
    () => device.createBuffer(2 ** 32, "weights"),
    {
      name: "MachineError",
      message: /Cannot create buffer 'weights'.*4096 MiB/,
    },
  );
  const large = device.createBuffer(3 * 2 ** 30, "large");
  t.throws(
    () => device.createBuffer(2 ** 30, "more"),
    /Cannot create buffer 'more'/,
  );
  device.write(large, 3 * 2 ** 30 - 8, bytesOf(Uint32Array.of(5, 6)));
  await device.prepare({ three: step(3) });
  t.same(wordsOf(await device.read(large, 3 * 2 ** 30 - 8, 8)), [5, 6]);
  device.launch("three", [large], [4, 1, 1]);
  t.same(wordsOf(await device.read(large, 4, 8)), [1, 2]);
  device.destroy();
  t.throws(() => device.createBuffer(4, "x"), /destroyed/);
  await t.rejects(createCpuDevice({ threads: 0 }), /Cannot start 0 threads/);
});

t.test("a device destroyed during a launch does not keep the process alive", (t) => {
  const program = `
    import { createCpuDevice, openCpuPool } from ${
    JSON.stringify(new URL("../.compiled/runtime/cpu/mod.js", import.meta.url))
  };
    const pool = await openCpuPool(1);
    const device = await createCpuDevice({ pool });
    await device.prepare(${JSON.stringify({ three: step(3) })});
    const a = device.createBuffer(4 * 8_000_000, "a");
    device.launch("three", [a], [1_000_000, 1, 1]);
    device.submit();
    await new Promise((resolve) => setImmediate(resolve));
    await pool.close();`;
  const { status, stderr } = spawnSync(process.execPath, [
    ...["--input-type=module", "--eval", program],
  ], { encoding: "utf8" });
  t.strictSame([status, stderr], [0, ""]);
  t.end();
});
