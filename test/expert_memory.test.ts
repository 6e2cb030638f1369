// Experts that are read while they are used: logits are those of experts that are all in memory, and files that end early end a run.
// needs: cpu
import { cpSync, truncateSync, writeFileSync } from "node:fs";
import { open as openFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { parseMemory } from "../cli/values.ts";
import { Decoder, decoderShape, openTarget } from "../engine/mod.ts";
import { resolveTarget } from "../engine/target.ts";
import { HostDevice } from "../runtime/host_device.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import { load, store, u32 } from "../spec/kernel/build.ts";
import type { Kernel } from "../spec/kernel/tree.ts";

const missing = await whyNotNative();
const skip = missing ?? false;

function reference(name: string): string {
  return fileURLToPath(new URL(`references/${name}`, import.meta.url));
}

/** A checkpoint with memory for experts: the logits of a prompt that uses most of them and of some tokens after it. */
async function open(folder: string, expertMemory?: number | "auto") {
  const target = await resolveTarget(folder, nodeFiles(), {
    loadModel: () => Promise.reject(new Error("no model file")),
  });
  const opened = await openTarget(target, nodeFiles(), {
    adapter: "native",
    sharing: "shared",
    threads: 2,
    need: { tokens: 16, sequences: 1, context: 32 },
    ...expertMemory === undefined ? {} : { expertMemory },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  let position = 0;
  const feed = async (count: number) => {
    const places = Int32Array.from({ length: count }, (_, i) => position + i);
    position += count;
    const [next] = await decoder.next({
      ids: places.map((place) => (place * 7 + 3) % decoder.vocabulary),
      sequence: new Int32Array(count),
      position: places,
      cell: places,
    }, [count - 1]);
    return next!.logits.slice();
  };
  return { opened, feed };
}

/** In turns: a packed encoding, experts of a file each, and rows of a shared file. */
for (const name of ["gptoss-8e-mxfp4", "qwen3moe-8e-bf16", "deepseekv2-16e"]) {
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
    const whole = await logits();
    const few = await logits(64_000);
    t.strictSame(few.all, whole.all);
    t.equal(whole.streaming, undefined);
    const { misses, bytesRead, residentBytes } = few.streaming!;
    t.ok(misses > 8, `${misses} experts were read`);
    t.ok(bytesRead > 64_000, `${bytesRead} bytes`);
    t.ok(residentBytes <= 64_000, `${residentBytes} bytes in memory`);
  });
}

t.test("a file that became shorter ends a run in one sentence", {
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

t.test("experts that cannot be read end a run without a limit of memory, too", {
  skip,
}, async (t) => {
  const file = join(t.testdir(), "experts");
  writeFileSync(file, new Uint8Array(1 << 14));
  const handle = await openFile(file);
  const pool = await NativePool.open(1);
  const device = new HostDevice(pool, { ownsPool: true });
  const experts = [0, 1].map((i) => ({
    name: file,
    descriptor: handle.fd,
    offset: i << 13,
    bytes: 1 << 13,
  }));
  const weight = device.stream!(experts)!;
  const tree: Kernel = {
    name: "first",
    workgroupSize: 1,
    bindings: [
      { name: "tiles", type: "u32", access: "read" },
      { name: "weight", type: "u32", access: "read" },
      { name: "y", type: "u32", access: "write" },
    ],
    shared: [],
    body: [store("y", u32(0), load("weight", u32(0), "u32"))],
  };
  await device.prepare({ first: { tree } });
  const tiles = device.createBuffer(16, "tiles");
  device.write(tiles, 0, new Uint8Array(Uint32Array.of(1, 0, 0, 0).buffer));
  const buffers = Object.freeze([tiles, weight, device.createBuffer(4, "y")]);
  device.streamFor(buffers, 0);
  truncateSync(file, 0);
  device.launch("first", buffers, [1, 1, 1]);
  await t.rejects(device.idle(), /^Cannot read experts: a file of weights/);
  device.destroy();
  await handle.close();
});

t.test("memory that holds no two experts is refused", { skip }, async (t) => {
  await t.rejects(
    open(reference("qwen3moe-8e-bf16"), 1000),
    /Cannot keep experts in 1000 bytes of memory: 2 of a layer need \d+\. Give --expert-memory at least that/,
  );
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
