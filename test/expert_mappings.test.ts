// Experts of a layer in several files: mapped, with the same logits as experts in one file.
// needs: cpu
// rotates with: runtime/weights/mapped.ts, runtime/native/groups.ts, runtime/native/files.ts, runtime/native/heap.ts
import {
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { open as openFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import {
  type PublishedConfig,
  writePublished,
} from "../bench/large/published.ts";
import {
  Decoder,
  decoderShape,
  type FileSystem,
  openTarget,
} from "../engine/mod.ts";
import { READ_EXPERTS } from "../engine/planner/machine/measure_disk.ts";
import { uniformsFrom } from "../engine/planner/simulate/loads.ts";
import { resolveTarget } from "../engine/target.ts";
import type { DeviceBuffer, FileRun } from "../runtime/device.ts";
import { HostDevice } from "../runtime/host/device.ts";
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
import type { Kernel } from "../spec/kernel/tree.ts";
import { files, meshOf } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { inTurn } from "./helpers/seed.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

/** A model with expert weights of 8 MiB. */
const CONFIG: PublishedConfig = {
  architectures: ["Qwen3MoeForCausalLM"],
  attention_bias: false,
  decoder_sparse_step: 1,
  head_dim: 32,
  hidden_act: "silu",
  hidden_size: 256,
  intermediate_size: 512,
  max_position_embeddings: 128,
  mlp_only_layers: [],
  model_type: "qwen3_moe",
  moe_intermediate_size: 512,
  norm_topk_prob: true,
  num_attention_heads: 4,
  num_experts: 32,
  num_experts_per_tok: 4,
  num_hidden_layers: 2,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  use_sliding_window: false,
  vocab_size: 320,
};

/** Files and meshes. With 16 files, a weight is in up to four of them. */
const SPLITS = [
  { shards: 2, mesh: "ep=1" },
  { shards: 3, mesh: "ep=2" },
  { shards: 16, mesh: "ep=1" },
  { shards: 16, mesh: "ep=2" },
] as const;

async function writeShards(folder: string, shards: number): Promise<void> {
  mkdirSync(folder);
  await writePublished(CONFIG, {
    shards,
    write: (name, parts) => {
      const descriptor = openSync(join(folder, name), "w");
      for (const part of parts) writeSync(descriptor, part);
    },
  });
}

/** Logits of a prompt and of the tokens after it, statistics of streaming, and bytes that were read as tensors. */
async function runFrom(
  folder: string,
  { mesh, expertMemory, isMapped = true }: {
    readonly mesh: string;
    readonly expertMemory?: number;
    /** False: files have no descriptors, so weights are read. */
    readonly isMapped?: boolean;
  },
) {
  let bytesRead = 0;
  const counted: FileSystem = {
    ...files,
    open: async (path) => {
      const { descriptor, ...file } = await files.open(path);
      return {
        ...file,
        ...isMapped && descriptor !== undefined ? { descriptor } : {},
        read: (offset, length) => {
          bytesRead += length;
          return file.read(offset, length);
        },
      };
    },
  };
  const target = await resolveTarget(folder, counted, {
    loadModel: () => Promise.reject(new Error("no model file")),
  });
  const opened = await openTarget(target, counted, {
    adapter: "native",
    mesh: meshOf(mesh),
    sharing: "shared",
    threads: 2,
    need: { tokens: 32, sequences: 1, context: 64 },
    ...expertMemory === undefined ? {} : { expertMemory },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const logits: Float32Array[] = [];
  let position = 0;
  for (const count of [24, 1, 1, 3]) {
    const cell = Int32Array.from({ length: count }, (_, i) => position + i);
    position += count;
    const [next] = await decoder.next({
      ids: cell.map((at) => (at * 37 + 3) % decoder.shape.vocabulary),
      sequence: new Int32Array(count),
      position: cell,
      cell,
    }, [count - 1]);
    logits.push(next!.logits.slice());
  }
  const { streaming } = opened.session.statistics();
  await opened.close();
  return { logits, streaming, bytesRead };
}

for (const { shards, mesh } of inTurn(SPLITS, 2)) {
  t.test(`experts of ${shards} files on ${mesh} are mapped`, {
    skip,
  }, async (t) => {
    const folder = join(temporaryFolder(t), "split");
    await writeShards(folder, shards);
    const read = await runFrom(folder, { mesh, isMapped: false });
    t.ok(read.bytesRead > 2 ** 25, `${read.bytesRead} bytes are read`);
    const mapped = await runFrom(folder, { mesh });
    t.strictSame(mapped.logits, read.logits, "the same bits");
    t.equal(mapped.streaming, undefined, "readers read no expert");
    // Headers and small weights.
    t.ok(mapped.bytesRead < 2 ** 21, `${mapped.bytesRead} bytes are read`);
    const few = await runFrom(folder, { mesh, expertMemory: 4_000_000 });
    t.strictSame(few.logits, read.logits, "the same bits with --expert-memory");
    t.ok(
      few.streaming!.misses > 8,
      `${few.streaming!.misses} experts are read`,
    );
  });
}

/** Experts of weights in three files whose layouts have no common offset in pages, in random order. */
function splitWeight(
  folder: string,
  { name, experts, bytes, random }: {
    readonly name: string;
    readonly experts: number;
    readonly bytes: number;
    readonly random: () => number;
  },
) {
  const contents = [8, 4, 4096 + 20].map((skew, i) =>
    Uint32Array.from(
      { length: (skew + experts * bytes) / 4 },
      (_, at) => Math.imul(at + 7 * i + name.length, 2654435761),
    )
  );
  const skews = [8, 4, 4096 + 20];
  const owners = Array.from(
    { length: experts },
    () => Math.floor(3 * random()),
  );
  const descriptors = contents.map((words, i) => {
    const path = join(folder, `${name}-${i}`);
    writeFileSync(path, words);
    return { path, file: openFile(path) };
  });
  const at = (e: number) => skews[owners[e]!]! + e * bytes;
  const word = (e: number, i: number) => contents[owners[e]!]![at(e) / 4 + i]!;
  const runs = async () =>
    await Promise.all(owners.map(async (file, e): Promise<FileRun> => ({
      name: descriptors[file]!.path,
      descriptor: (await descriptors[file]!.file).fd,
      offset: at(e),
      bytes,
    })));
  const close = async () => {
    for (const { file } of descriptors) await (await file).close();
  };
  return { word, runs, close, paths: descriptors.map(({ path }) => path) };
}

t.test("launches find experts in several mappings", { skip }, async (t) => {
  const [experts, samples] = [13, 64];
  const folder = temporaryFolder(t);
  const random = uniformsFrom(5);
  // Sizes that are and are not multiples of a page.
  const sizes = [1 << 19, (1 << 19) + 4096 * 3];
  const weights = sizes.map((bytes, w) =>
    splitWeight(folder, { name: `w${w}`, experts, bytes, random })
  );
  const pool = await NativePool.open(2);
  const device = new HostDevice(pool);
  const mapped = [];
  for (const { runs } of weights) {
    const parts = await runs();
    t.equal(device.map!(parts), undefined, "no common layout");
    mapped.push(device.mapExperts!(parts, experts)!);
  }
  for (const { close } of weights) await close();
  const [e, j] = [local("e", "u32"), local("j", "u32")];
  const strides = sizes.map((bytes) => Math.floor(bytes / 4 / samples));
  const tree: Kernel = {
    name: "sum",
    workgroupSize: 1,
    bindings: [
      { name: "tiles", type: "u32", access: "read" },
      { name: "w0", type: "u32", access: "read" },
      { name: "w1", type: "u32", access: "read" },
      { name: "y", type: "u32", access: "write" },
    ],
    shared: [],
    body: [for_("i", u32(0), load("tiles", u32(0), "u32"), [
      let_(
        "e",
        load("tiles", add(mul(local("i", "u32"), u32(3)), u32(1)), "u32"),
      ),
      for_("j", u32(0), u32(samples), [
        store(
          "y",
          add(mul(e, u32(samples)), j),
          strides.map((stride, w) =>
            load(
              `w${w}`,
              add(mul(e, u32(sizes[w]! / 4)), mul(j, u32(stride))),
              "u32",
            )
          ).reduce((a, b) => add(a, b)),
        ),
      ]),
    ])],
  };
  await device.prepare({ sum: { tree } });
  const tiles = device.createBuffer(4 * (1 + 3 * experts), "tiles");
  const y = device.createBuffer(4 * experts * samples, "y");
  const buffers = Object.freeze([tiles, mapped[0]!, mapped[1]!, y]);
  device.streamFor(buffers, 0);
  const changed = new Map<number, number>();
  const check = async (list: readonly number[]) => {
    const words = Uint32Array.from([
      list.length,
      ...list.flatMap((expert) => [expert, 0, 0]),
    ]);
    device.write(tiles, 0, new Uint8Array(words.buffer));
    device.launch("sum", buffers, [1, 1, 1]);
    const found = new Uint32Array(
      (await device.read(y, 0, y.bytes)).slice().buffer,
    );
    for (const expert of list) {
      const wanted = Uint32Array.from({ length: samples }, (_, sample) => {
        const [a, b] = weights.map(({ word }, w) =>
          word(expert, sample * strides[w]!)
        ) as [number, number];
        return (sample === 0 ? changed.get(expert) ?? a : a) + b;
      });
      t.strictSame(
        found.subarray(expert * samples, (expert + 1) * samples),
        wanted,
        `expert ${expert} of ${list}`,
      );
    }
    const after = new Uint32Array(
      (await device.read(tiles, 0, words.byteLength)).slice().buffer,
    );
    t.strictSame(after, words, "the list of tiles is unchanged");
  };
  const all = Array.from({ length: experts }, (_, expert) => expert);
  await check(all);
  for (let i = 0; i < 8; i++) await check(all.filter(() => random() < 0.4));
  // Writes change memory, and no file.
  device.write(
    mapped[0]!,
    sizes[0]! - 4,
    Uint8Array.of(1, 0, 0, 0, 9, 0, 0, 0),
  );
  changed.set(1, 9);
  await check(all);
  t.strictSame(
    await device.read(mapped[0]!, sizes[0]! - 4, 8),
    Uint8Array.of(1, 0, 0, 0, 9, 0, 0, 0),
  );
  for (const [w, bytes] of sizes.entries()) {
    const read = await device.read(mapped[w]!, 2 * bytes, 8 * bytes);
    const found = new Uint32Array(read.buffer, read.byteOffset);
    const wanted = all.slice(2, 10).flatMap((expert) => [
      weights[w]!.word(expert, 0),
      weights[w]!.word(expert, bytes / 4 - 1),
    ]);
    t.strictSame(
      all.slice(0, 8).flatMap((i) => [
        found[i * bytes / 4]!,
        found[(i + 1) * bytes / 4 - 1]!,
      ]),
      wanted,
      "first and last words",
    );
  }
  t.equal(device.streaming!().misses, 0);
  const isMapped = () =>
    existsSync("/proc/self/maps") &&
    readFileSync("/proc/self/maps", "utf8").includes(weights[0]!.paths[0]!);
  if (existsSync("/proc/self/maps")) t.ok(isMapped());
  device.destroy();
  await pool.close();
  t.notOk(isMapped(), "unmapped");
});

/** Prepares a launch that reads one expert of a weight. */
async function readerOf(
  device: HostDevice<unknown>,
  weight: DeviceBuffer,
  expert: number,
): Promise<() => void> {
  const { name } = READ_EXPERTS;
  await device.prepare({ [name]: { tree: READ_EXPERTS } });
  const tiles = device.createBuffer(16, "tiles");
  const buffers = Object.freeze([tiles, weight, device.createBuffer(4, "y")]);
  device.streamFor(buffers, 0);
  const list = Uint32Array.of(1, expert, 0, 0);
  device.write(tiles, 0, new Uint8Array(list.buffer));
  return () => device.launch(name, buffers, [1, 1, 1]);
}

t.test("a damaged list of tiles ends a run; fractions are not mapped", {
  skip,
}, async (t) => {
  const folder = temporaryFolder(t);
  const [experts, bytes] = [4, 1 << 20];
  const random = uniformsFrom(1);
  const weight = splitWeight(folder, { name: "w", experts, bytes, random });
  const runs = await weight.runs();
  const pool = await NativePool.open(1);
  const device = new HostDevice(pool, { closesPool: true });
  t.equal(device.mapExperts!(runs, 3), undefined, "fractions of experts");
  t.equal(
    device.mapExperts!(runs.map((run) => ({ ...run, bytes: 4096 })), experts),
    undefined,
    "small mappings",
  );
  const mapped = device.mapExperts!(runs, experts)!;
  const read = await readerOf(device, mapped, 4);
  read();
  await t.rejects(device.idle(), /^Cannot read experts/);
  device.destroy();
  await weight.close();
});

t.test("a truncated file of several ends a run", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const [experts, bytes] = [4, 1 << 20];
  const random = uniformsFrom(1);
  const weight = splitWeight(folder, { name: "w", experts, bytes, random });
  const pool = await NativePool.open(1);
  const device = new HostDevice(pool, { closesPool: true });
  const runs = await weight.runs();
  const mapped = device.mapExperts!(runs, experts)!;
  const read = await readerOf(device, mapped, 0);
  truncateSync(runs[0]!.name, 0);
  read();
  await t.rejects(device.idle(), {
    message: `Cannot resume '${
      runs[0]!.name
    }': it became shorter during the run, or cannot be read. Copy it again`,
  });
  device.destroy();
  await weight.close();
});
