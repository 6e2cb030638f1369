// Storage of a checkpoint: 16 or 32 bits, one file or several, tied or separate output matrix.
// needs: cpu
// rotates with: runtime/weights/load.ts, runtime/weights/stored.ts, runtime/weights/safetensors
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import {
  copyCheckpoint,
  integers,
  type RawTensor,
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const folder = temporaryFolder(t);
const at = (name: string) => path.join(folder, `${name}.safetensors`);
const checkpoint = await copyCheckpoint("mixtral-6e", folder);
const weights = path.join(checkpoint, "model.safetensors");
const stored = await readRaw(weights);
await writeRaw(at("inputs"), {
  input_ids: integers([2, 4], [5, 6, 7, 8, 9, 10, 11, 12]),
});

/** Output bytes of a run of the stored checkpoint. */
async function outputs(name: string): Promise<Buffer> {
  const { code, err } = await switchyard([
    ...["run", checkpoint, "--adapter", "cpu", "--mesh", "ep=2"],
    ...["--inputs", at("inputs"), "--outputs", at(name)],
  ]);
  if (code !== 0) throw new Error(err);
  return readFileSync(at(name));
}

const floats = ({ data }: RawTensor) =>
  new Float32Array(new Uint8Array(data).buffer);

const scratch = new DataView(new ArrayBuffer(4));

/** Truncates a weight to a shorter float: returns its 16 bits and their value. */
const TRUNCATED: {
  readonly [dtype: string]: (x: number) => readonly [number, number];
} = {
  BF16: (x) => {
    scratch.setFloat32(0, x);
    scratch.setUint16(2, 0);
    return [scratch.getUint16(0), scratch.getFloat32(0)];
  },
  F16: (x) => {
    const size = Math.abs(x);
    if (size < 2 ** -14) return [0, 0];
    const exponent = Math.floor(Math.log2(size));
    const fraction = Math.floor((size / 2 ** exponent - 1) * 1024);
    const value = (1 + fraction / 1024) * 2 ** exponent;
    const bits = (exponent + 15) << 10 | fraction;
    return x < 0 ? [bits | 0x8000, -value] : [bits, value];
  },
};

for (const [dtype, cut] of Object.entries(TRUNCATED)) {
  t.test(`${dtype} gives the bytes of the same values in F32`, async (t) => {
    const pairs = Object.entries(stored).map(([name, tensor]) => {
      const cells = Array.from(floats(tensor), cut);
      const { shape } = tensor;
      const bits = Uint16Array.from(cells, ([bits]) => bits);
      const values = Float32Array.from(cells, ([, value]) => value);
      const short = { dtype, shape, data: new Uint8Array(bits.buffer) };
      const long = {
        dtype: "F32",
        shape,
        data: new Uint8Array(values.buffer),
      };
      return { name, short, long };
    });
    const write = (form: "short" | "long") =>
      writeRaw(
        weights,
        Object.fromEntries(pairs.map((pair) => [pair.name, pair[form]])),
      );
    await write("long");
    const wanted = await outputs(`${dtype}-long`);
    await write("short");
    t.ok((await outputs(`${dtype}-short`)).equals(wanted));
  });
}

t.test("files of an index give the bytes of one file", async (t) => {
  await writeRaw(weights, stored);
  const wanted = await outputs("whole");
  const names = Object.keys(stored);
  const parts = path.join(checkpoint, "parts");
  mkdirSync(parts);
  const file = (i: number) =>
    `${i === 1 ? "parts/" : ""}model-0000${i + 1}-of-00003.safetensors`;
  const shards = [0, 1, 2].map((i) => names.filter((_, n) => n % 3 === i));
  for (const [i, names] of shards.entries()) {
    await writeRaw(
      path.join(checkpoint, file(i)),
      Object.fromEntries(names.map((name) => [name, stored[name]!])),
    );
  }
  const map = Object.fromEntries(names.map((name, n) => [name, file(n % 3)]));
  const index = path.join(checkpoint, "model.safetensors.index.json");
  writeFileSync(index, JSON.stringify({ weight_map: map }));
  rmSync(weights);
  t.ok((await outputs("shards")).equals(wanted));
  await writeRaw(weights, stored);
  rmSync(parts, { recursive: true });
  t.ok((await outputs("stale")).equals(wanted), "a shard is missing");
  rmSync(index);
});

t.test("a tied checkpoint gives the bytes of one that stores its table twice", async (t) => {
  const config = path.join(checkpoint, "config.json");
  const text = readFileSync(config, "utf8");
  const table = "model.embed_tokens.weight";
  await writeRaw(weights, { ...stored, "lm_head.weight": stored[table]! });
  const wanted = await outputs("untied");
  const { "lm_head.weight": _, ...rest } = stored;
  await writeRaw(weights, rest);
  writeFileSync(
    config,
    JSON.stringify({ ...JSON.parse(text), tie_word_embeddings: true }),
  );
  t.ok((await outputs("tied")).equals(wanted));
  writeFileSync(config, text);
});

t.test("an unsupported dtype is rejected with the tensor's name", async (t) => {
  const name = "model.norm.weight";
  const { shape, data } = stored[name]!;
  const wide = { dtype: "F8_E4M3", shape, data: data.subarray(0, shape[0]!) };
  await writeRaw(weights, { ...stored, [name]: wide });
  const { code, err } = await switchyard([
    ...["run", checkpoint, "--adapter", "cpu"],
    ...["--inputs", at("inputs"), "--outputs", at("none")],
  ]);
  t.equal(code, 1);
  t.equal(
    err.replaceAll(checkpoint, "FOLDER"),
    `Cannot load 'FOLDER': tensor '${name}' is F8_E4M3, and the plan expects F32. Convert it, or compile the model again for these weights\n`,
  );
});

t.test("only layers for multi-token prediction are skipped", async (t) => {
  const deepseek = await copyCheckpoint("deepseekv3-16e", folder);
  const config = path.join(deepseek, "config.json");
  const file = path.join(deepseek, "model.safetensors");
  const text = JSON.parse(readFileSync(config, "utf8")) as object;
  const tensors = await readRaw(file);
  const run = async (
    predictors: number,
    more: { readonly [name: string]: RawTensor },
  ) => {
    const changed = { ...text, num_nextn_predict_layers: predictors };
    writeFileSync(config, JSON.stringify(changed));
    await writeRaw(file, { ...tensors, ...more });
    return await switchyard([
      ...["run", deepseek, "--adapter", "cpu", "--mesh", "ep=2"],
      ...["--inputs", at("inputs"), "--outputs", at("deepseek")],
    ]);
  };
  const one = integers([1], [1]);
  t.match(await run(0, {}), { code: 0 });
  const wanted = readFileSync(at("deepseek"));
  const behind = {
    "model.layers.3.eh_proj.weight": one,
    "model.layers.3.mlp.experts.0.up_proj.weight": one,
  };
  t.match(await run(1, behind), { code: 0, err: "" });
  t.ok(readFileSync(at("deepseek")).equals(wanted));
  t.match(await switchyard(["check", deepseek]), { code: 0 });
  const refused = (name: string) => ({
    code: 1,
    err: `tensor '${name}' is not part of the model`,
  });
  t.match(await run(0, behind), refused("model.layers.3.eh_proj.weight"));
  const wrong = "model.layers.30.eh_proj.weight";
  t.match(await run(1, { ...behind, [wrong]: one }), refused(wrong));
});
