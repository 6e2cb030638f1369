// Streamed experts: the same logits as with all experts in memory; truncated files end a run.
// needs: cpu, gpu
// rotates with: runtime/weights/expert_
import { cpSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { open as openFile } from "node:fs/promises";
import { join } from "node:path";
import { Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { parseMemory } from "../cli/flags/values.ts";
import {
  CHOICES,
  Decoder,
  decoderShape,
  type OpenOptions,
  openTarget,
  recordedLoad,
} from "../engine/mod.ts";
import {
  expertBytesFor,
  MIN_EXPERTS,
  rankBytes,
} from "../engine/expert_bytes.ts";
import {
  openDiskMeter,
  READ_EXPERTS,
} from "../engine/planner/machine/measure_disk.ts";
import { uniformsFrom } from "../engine/planner/simulate/loads.ts";
import { simulate } from "../engine/planner/simulate/mod.ts";
import { HOSTS, selectDevices } from "../engine/devices.ts";
import { resolveTarget } from "../engine/target.ts";
import { withTensors } from "../engine/checkpoint/tensors.ts";
import { main } from "../cli/main.ts";
import { switchyard, withOutput } from "./helpers/cli.ts";
import { skipUnasked, skipWithoutGpu } from "./helpers/needs.ts";
import { inTurn } from "./helpers/seed.ts";
import { HostDevice } from "../runtime/host/device.ts";
import { largestExpert, streamableBytes } from "../runtime/weights/mapped.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import {
  add,
  for_,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../spec/kernel/build.ts";
import type { Expr, Kernel } from "../spec/kernel/tree.ts";
import { parseMachine } from "../spec/mod.ts";

const missing = await whyNotNative();
const skip = skipUnasked("cpu") || (missing ?? false);

function reference(name: string): string {
  return fileURLToPath(new URL(`references/${name}`, import.meta.url));
}

/** Opens a checkpoint with limited expert memory. `feed` runs the next tokens and returns logits. */
async function open(
  folder: string,
  expertMemory?: number | "auto",
  device: Pick<OpenOptions, "adapter" | "mesh"> = { adapter: "native" },
) {
  const target = await resolveTarget(folder, nodeFiles(), {
    loadModel: () => Promise.reject(new Error("no model file")),
  });
  const opened = await openTarget(target, nodeFiles(), {
    ...device,
    sharing: "shared",
    threads: 2,
    need: { tokens: 16, sequences: 1, context: 32 },
    ...expertMemory === undefined ? {} : { expertMemory },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  let position = 0;
  const feed = async (count: number) => {
    const positions = Int32Array.from(
      { length: count },
      (_, i) => position + i,
    );
    position += count;
    const [next] = await decoder.next({
      ids: positions.map((place) => (place * 7 + 3) % decoder.shape.vocabulary),
      sequence: new Int32Array(count),
      position: positions,
      cell: positions,
    }, [count - 1]);
    return next!.logits.slice();
  };
  return { opened, feed };
}

/** In rotation: a packed encoding, one file per expert, and rows of a shared file. */
for (
  const name of inTurn(
    ["gptoss-8e-mxfp4", "qwen3moe-8e-bf16", "deepseekv2-16e"],
    3,
  )
) {
  t.test(`${name} has the same logits with few experts in memory`, {
    skip,
  }, async (t) => {
    const folder = reference(name);
    const logits = async (expertMemory?: number) => {
      const { opened, feed } = await open(folder, expertMemory);
      const all = [await feed(13)];
      for (let i = 0; i < 5; i++) all.push(await feed(1));
      const { streaming } = opened.session.statistics();
      await opened.close();
      return { all, streaming };
    };
    const resident = await logits();
    const few = await logits(64_000);
    t.strictSame(few.all, resident.all);
    t.equal(resident.streaming, undefined);
    const { misses, bytesRead, residentBytes } = few.streaming!;
    t.ok(misses > 8, `${misses} experts were read`);
    t.ok(bytesRead > 64_000, `${bytesRead} bytes`);
    t.ok(residentBytes <= 64_000, `${residentBytes} bytes in memory`);
  });
}

/** Devices without streaming use slots, read from files or, for differently sharded weights, from host memory. */
const SLOTTED = [
  { name: "gptoss-8e-mxfp4", adapter: "cpu", mesh: { tp: 2, ep: 2 } },
  { name: "deepseekv2-16e", adapter: "cpu", mesh: { ep: 1 } },
  { name: "qwen3moe-8e-bf16", adapter: [0], mesh: { ep: 1 } },
] as const;

for (const { name, ...device } of inTurn(SLOTTED, 3)) {
  t.test(
    `${name} with slots on ${device.adapter} has the same logits, also after a load`,
    {
      skip: typeof device.adapter === "string"
        ? skipUnasked("cpu")
        : skipWithoutGpu,
    },
    async (t) => {
      const changed = t.testdir();
      cpSync(reference(name), changed, { recursive: true });
      const file = join(changed, "model.safetensors");
      const bytes = readFileSync(file);
      for (let i = bytes.length >> 1; i < bytes.length; i += 64) bytes[i]! ^= 1;
      writeFileSync(file, bytes);
      const logits = async (expertMemory?: number) => {
        const { opened, feed } = await open(
          reference(name),
          expertMemory,
          device,
        );
        const all = [await feed(13), await feed(1), await feed(1)];
        await withTensors(
          [file],
          nodeFiles(),
          (tensors) => opened.session.load(tensors),
        );
        all.push(await feed(2));
        const { streaming } = opened.session.statistics();
        await opened.close();
        return { all, streaming };
      };
      const resident = await logits();
      const few = await logits(64_000);
      t.strictSame(few.all, resident.all);
      const { misses, bytesRead, readMs, residentBytes } = few.streaming!;
      t.ok(misses > 8 && bytesRead > 64_000, `${misses} experts were read`);
      t.ok(readMs > 0);
      t.ok(residentBytes <= 64_000, `${residentBytes} bytes in memory`);
    },
  );
}

t.test("the planner predicts the expert reads of a run", {
  skip,
}, async (t) => {
  const { opened } = await open(reference("deepseekv2-16e"), 200_000);
  const { plan, session } = opened;
  const decoder = new Decoder(session, decoderShape(plan)!);
  const rows: { [name: string]: number[] } = {};
  let half = session.statistics().streaming!;
  for (let i = 0; i < 32; i++) {
    if (i === 16) half = session.statistics().streaming!;
    const cell = Int32Array.of(i);
    const ids = Int32Array.of((i * 7 + 3) % decoder.shape.vocabulary);
    const sequence = new Int32Array(1);
    const outputs = await decoder.outputs({
      ids,
      cell,
      position: cell,
      sequence,
    });
    for (const [name, { data }] of Object.entries(outputs)) {
      if (CHOICES.test(name)) (rows[name] ??= []).push(...data);
    }
  }
  const all = session.statistics().streaming!;
  await opened.close();
  const topK = Object.values(rows)[0]!.length / 32;
  const experts = recordedLoad(Object.fromEntries(
    Object.entries(rows).map(([name, data]) => [name, {
      dtype: "i32" as const,
      shape: [1, 32, topK],
      data: Int32Array.from(data),
    }]),
  ));
  const hits = all.hits - half.hits;
  const hitRate = hits / (hits + all.misses - half.misses);
  const machine = parseMachine(JSON.stringify({
    version: 1,
    name: "any",
    devices: {
      cpu: {
        multiplyAdds: 1e9,
        operations: 1e9,
        bandwidth: 1e9,
        launch: 0,
      },
    },
    hosts: [{ devices: [{ kind: "cpu" }] }],
    links: {},
  }));
  const { streamed } = simulate(
    plan,
    machine,
    { tokens: 1, past: 16, experts },
    {
      resident: 200_000 / streamableBytes(plan, 0),
    },
  );
  const { hitRate: predicted } = streamed!;
  t.ok(hitRate > 0.1 && hitRate < 0.9, `${hitRate} hits, ${predicted}`);
  t.ok(Math.abs(predicted - hitRate) < 0.05, `${predicted} of ${hitRate}`);
});

t.test("experts that are read when they are used cannot be replaced", {
  skip,
}, async (t) => {
  const folder = reference("qwen3moe-8e-bf16");
  const { opened, feed } = await open(folder, 1 << 20);
  t.teardown(() => opened.close());
  await feed(1);
  const target = await resolveTarget(folder, nodeFiles(), {
    loadModel: () => Promise.reject(new Error("no model file")),
  });
  if (target.kind !== "checkpoint") throw new Error("no checkpoint");
  await withTensors(
    target.checkpoint.weightFiles,
    nodeFiles(),
    (tensors) =>
      t.rejects(
        opened.session.load(tensors),
        /^Cannot write experts: they are read from their files/,
      ),
  );
});

t.test("a truncated file ends a run with one message", {
  skip,
}, async (t) => {
  const folder = t.testdir();
  cpSync(reference("qwen3moe-8e-bf16"), folder, { recursive: true });
  const { opened, feed } = await open(folder, 64_000);
  await feed(1);
  truncateSync(join(folder, "model.safetensors"), 1000);
  await t.rejects(
    (async () => {
      for (let i = 0; i < 8; i++) await feed(1);
    })(),
    /^Cannot read experts: a file of weights has become shorter/,
  );
  await opened.close();
});

t.test("experts have the bytes of their files after evictions", {
  skip,
}, async (t) => {
  // Experts of two launches share memory. Their sizes are not multiples of a page, or differ.
  const [experts, samples, skew] = [9, 64, 72];
  const groups = [[2 << 12, (3 << 12) + 64], [5 << 12]];
  const words = Uint32Array.from(
    { length: (skew + experts * (10 << 12) + 4096) / 4 },
    (_, i) => Math.imul(i, 2654435761),
  );
  const file = join(t.testdir(), "experts");
  writeFileSync(file, words);
  const handle = await openFile(file);
  const pool = await NativePool.open(1, { expertBytes: 150_000 });
  const device = new HostDevice(pool, { closesPool: true });
  const tiles = device.createBuffer(4 * (1 + 3 * experts), "tiles");
  const y = device.createBuffer(4 * experts * samples, "y");
  let offset = skew;
  const launches: ((list: readonly number[]) => Promise<void>)[] = [];
  for (const [number, sizes] of groups.entries()) {
    const weights = sizes.map((bytes) => {
      const first = offset;
      offset += bytes * experts;
      const runs = Array.from({ length: experts }, (_, e) => ({
        name: file,
        descriptor: handle.fd,
        bytes,
        offset: first + e * bytes,
      }));
      return { first, bytes, buffer: device.stream!(runs)! };
    });
    const name = `sum_${number}`;
    const index = (expert: Expr, j: Expr, bytes: number) =>
      add(
        mul(expert, u32(bytes / 4)),
        mul(j, u32(Math.floor(bytes / 4 / samples))),
      );
    const [e, j] = [local("e", "u32"), local("j", "u32")];
    const sum = sizes.map((bytes, w) =>
      load(`w${w}`, index(e, j, bytes), "u32")
    )
      .reduce((a, b) => add(a, b));
    const tree: Kernel = {
      name,
      workgroupSize: 1,
      bindings: [
        { name: "tiles", type: "u32", access: "read" },
        ...sizes.map((_, w) =>
          ({ name: `w${w}`, type: "u32", access: "read" }) as const
        ),
        { name: "y", type: "u32", access: "write" },
      ],
      shared: [],
      body: [for_("i", u32(0), load("tiles", u32(0), "u32"), [
        let_(
          "e",
          load("tiles", add(mul(local("i", "u32"), u32(3)), u32(1)), "u32"),
        ),
        for_("j", u32(0), u32(samples), [
          store("y", add(mul(e, u32(samples)), j), sum),
        ]),
      ])],
    };
    await device.prepare({ [name]: { tree } });
    const buffers = Object.freeze([tiles, ...weights.map((w) => w.buffer), y]);
    device.streamFor(buffers, 0);
    launches.push(async (list) => {
      const tileWords = [list.length, ...list.flatMap((e) => [e, 0, 0])];
      device.write(
        tiles,
        0,
        new Uint8Array(Uint32Array.from(tileWords).buffer),
      );
      device.launch(name, buffers, [1, 1, 1]);
      const got = new Uint32Array(
        (await device.read(y, 0, y.bytes)).slice().buffer,
      );
      for (const e of list) {
        const want = Uint32Array.from(
          { length: samples },
          (_, j) =>
            weights.reduce((n, { first, bytes }) =>
              n +
              words[
                (first + e * bytes) / 4 + j * Math.floor(bytes / 4 / samples)
              ]!, 0),
        );
        t.strictSame(
          got.subarray(e * samples, (e + 1) * samples),
          want,
          `${name}, ${list}`,
        );
      }
    });
  }
  const random = uniformsFrom(3);
  for (let step = 0; step < 60; step++) {
    const list = Array.from({ length: experts }, (_, e) => e)
      .filter(() => random() < 0.4);
    for (const launch of launches) await launch(list);
  }
  const { hits, misses, residentBytes, readMs } = device.streaming!();
  t.ok(readMs > 0);
  t.ok(hits > 30 && misses > 200, `${hits} hits, ${misses} misses`);
  t.ok(residentBytes <= 150_000);
  device.destroy();
  await handle.close();
});

t.test("unreadable experts end a run, also without a memory limit", {
  skip,
}, async (t) => {
  const file = join(t.testdir(), "experts");
  writeFileSync(file, new Uint8Array(1 << 14));
  const handle = await openFile(file);
  const pool = await NativePool.open(1);
  const device = new HostDevice(pool, { closesPool: true });
  const experts = [0, 1].map((i) => ({
    name: file,
    descriptor: handle.fd,
    offset: i << 13,
    bytes: 1 << 13,
  }));
  const weight = device.stream!(experts)!;
  const { name } = READ_EXPERTS;
  await device.prepare({ [name]: { tree: READ_EXPERTS } });
  const tiles = device.createBuffer(16, "tiles");
  device.write(tiles, 0, new Uint8Array(Uint32Array.of(1, 0, 0, 0).buffer));
  const buffers = Object.freeze([tiles, weight, device.createBuffer(4, "y")]);
  device.streamFor(buffers, 0);
  truncateSync(file, 0);
  device.launch(name, buffers, [1, 1, 1]);
  await t.rejects(device.idle(), /^Cannot read experts: a file of weights/);
  device.destroy();
  await handle.close();
});

t.test("the disk's rate is that of the reads alone", { skip }, async (t) => {
  // A clock that stands still: times of launches are not counted.
  const disk = await openDiskMeter({ now: () => 0, repetitions: 2 });
  t.teardown(() => disk?.close());
  const rate = await disk?.measure();
  t.ok(rate !== undefined && rate > 1e6 && rate < 1e12, `${rate} bytes/s`);
});

t.test("the disk's rate is that of a given file of 256 MiB", {
  skip,
}, async (t) => {
  const name = join(t.testdir(), "weights");
  writeFileSync(name, "");
  const handle = await openFile(name, "r");
  t.teardown(() => handle.close());
  const measure = async (bytes: number, left: number) => {
    truncateSync(name, bytes);
    const disk = await openDiskMeter({
      now: () => 0,
      repetitions: 1,
      file: { name, descriptor: handle.fd, bytes },
    });
    truncateSync(name, left);
    try {
      return await disk?.measure();
    } finally {
      await disk?.close();
    }
  };
  t.ok(await measure(2 ** 28, 2 ** 28), "a complete file");
  await t.rejects(
    measure(2 ** 28, 0),
    /^Cannot read experts: a file of weights/,
  );
  t.ok(await measure(2 ** 20, 0), "too small: a temporary file");
});

t.test("--stats of streamed experts, and a progress bar of --preload", {
  skip,
}, async (t) => {
  const argv = ["generate", reference("qwen3moe-8e-bf16"), "--tokens", "1,2"];
  argv.push("-n", "6", "--adapter", "native");
  const limited = [...argv, "--expert-memory", "64KB"];
  const { out } = await switchyard([...limited, "--stats", "--json"]);
  const { stats } = JSON.parse(out) as { stats: { [name: string]: number } };
  t.ok(stats["expertBytes"]! > 64_000, `${stats["expertBytes"]} bytes`);
  t.ok(stats["hitRate"]! >= 0 && stats["hitRate"]! < 1, "some were read");
  t.ok(stats["loadTtftMs"]! >= stats["loadMs"]! + stats["ttftMs"]! - 2);
  const shown: string[] = [];
  const errorStream = new Writable({
    write: (text, _, done) => done(void shown.push(String(text))),
  });
  const bar = Object.assign(errorStream, { isTTY: true, columns: 80 });
  const loaded = await withOutput((io) => main([...argv, "--preload"], io), {
    terminal: true,
    errorStream: bar,
  });
  t.equal(loaded.code, 0, loaded.err);
  t.match(
    shown.join(""),
    /Compiling kernels.* (\d+) of \1.*Loading weights.*Reading files/s,
  );
  const both = await switchyard([...limited, "--preload"]);
  t.match(both.err, /^Cannot use --preload with --expert-memory/);
  t.equal(both.code, 2);
});

t.test("memory for fewer than two experts is rejected", { skip }, async (t) => {
  await t.rejects(
    open(reference("qwen3moe-8e-bf16"), 1000),
    /Cannot keep experts in 1000 bytes of memory: 2 of a layer need \d+\. Give --expert-memory at least that/,
  );
});

t.test("experts have at most the memory that is left", { skip }, async (t) => {
  const { opened } = await open(reference("qwen3moe-8e-bf16"));
  const { plan } = opened;
  await opened.close();
  const { all, experts } = rankBytes(plan, [0]);
  const least = MIN_EXPERTS * largestExpert(plan, 0);
  const cases = [
    // Processes of a host have equal shares.
    { left: least + 5, given: experts, has: least + 5, sharing: 2 },
    { left: least + 5, given: least + 4, has: least + 4, sharing: 1 },
    { left: least + 5, given: "auto", has: least + 5, sharing: 1 },
    { left: -1, given: experts, has: least, sharing: 1 },
    { left: experts, given: 2 * experts, has: experts, sharing: 1 },
  ] as const;
  for (const { left, given, has, sharing } of cases) {
    const notices: string[] = [];
    const bytes = expertBytesFor(plan, {
      kind: "native",
      ranks: [0],
      expertMemory: given,
      available: sharing * (all - experts + left),
      sharing,
      notice: (text) => notices.push(text),
    });
    t.equal(bytes, has);
    const isLess = given !== "auto" && has < Math.min(given, experts);
    t.equal(notices.length, isLess ? 1 : 0, notices.join());
  }
});

t.test("plans that fit with fewer experts in memory name the option", {
  skip,
}, async (t) => {
  const { opened } = await open(reference("qwen3moe-8e-bf16"));
  const { plan } = opened;
  await opened.close();
  const { experts } = rankBytes(plan, [0]);
  const { memory } = HOSTS.cpu.limits;
  const devices = await selectDevices({ adapter: "cpu" });
  const remedies = [
    [1, "Limit the memory of experts with --expert-memory auto, use a GPU"],
    [experts + 1, "Use a GPU"],
  ] as const;
  for (const [missing, remedy] of remedies) {
    const bytes = memory! + missing;
    await t.rejects(devices.open({ ...plan, peakBytes: bytes }), {
      message:
        `Cannot run the plan on the CPU: its ranks need ${bytes} bytes, and the CPU device has ${memory}. ${remedy}, or smaller bounds`,
    });
  }
});

t.test("parseMemory() reads sizes", (t) => {
  t.equal(parseMemory("4GiB"), 4 * 2 ** 30);
  t.equal(parseMemory("1.5MB"), 1.5e6);
  t.equal(parseMemory("123"), 123);
  t.equal(parseMemory("auto"), "auto");
  for (const text of ["", "0", "4G", "-1", "GiB", "1e9", "9999999999999TiB"]) {
    t.throws(() => parseMemory(text), /Cannot use --expert-memory/);
  }
  t.end();
});
