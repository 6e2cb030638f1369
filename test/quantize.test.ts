/** Quantization: encoders, GGUF files and folders, their quality and their bits on meshes. */
// needs: cpu
// rotates with: engine/quantize/, engine/gguf/

import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gguf } from "@huggingface/gguf";
import fc from "fast-check";
import t, { type Test } from "tap";
import { valuesOf } from "../bench/peers/gguf_blocks.ts";
import { nodeFiles } from "../cli/files.ts";
import {
  type FileSystem,
  type Importance,
  loadTarget,
  measureImportance,
  openTarget,
  openTokenizer,
  quantizeCheckpoint,
} from "../engine/mod.ts";
import { nearestCode } from "../engine/encodings/nearest.ts";
import { ARCHITECTURES } from "../engine/gguf/architectures.ts";
import { joinedLatent } from "../engine/gguf/latent.ts";
import { ggufName } from "../engine/gguf/names.ts";
import { readTensor, type TensorEntry } from "../runtime/mod.ts";
import { type BlockType, isBlockType } from "../engine/gguf/blocks.ts";
import { ropeScalingKeys, ropeScalingOf } from "../engine/gguf/rope_scaling.ts";
import { encodeRows } from "../engine/quantize/encode.ts";
import { WRITTEN_TYPES } from "../engine/quantize/types.ts";
import { MachineError } from "../spec/errors.ts";
import { PACKED_ELEMENTS } from "../spec/weights/packed.ts";
import {
  checkpointFolder,
  files,
  readReference,
} from "./helpers/checkpoints.ts";
import { inTurn, isInTurn, repeatWith } from "./helpers/seed.ts";
import {
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu");
const demo = checkpointFolder("demo-lm");

/** Max root mean square error on normally distributed numbers, relative to theirs. */
const ERRORS: { readonly [type: string]: number } = {
  Q8_0: 0.0065,
  Q6_K: 0.02,
  Q5_0: 0.045,
  Q4_K: 0.075,
  Q4_0: 0.09,
  MXFP4: 0.12,
};

/** Pseudo-random, normally distributed numbers. */
function normal(count: number): Float32Array {
  let state = 1;
  const next = () => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return (state + 1) / (2 ** 32 + 1);
  };
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(next())) * Math.cos(2 * Math.PI * next()),
  );
}

const ENCODED = [...WRITTEN_TYPES.values()].filter((type) =>
  isBlockType(type)
) as (BlockType & { readonly number: number })[];

t.test("encoders match decoders", (t) => {
  t.strictSame(
    ENCODED.map(({ name }) => name).sort(),
    Object.keys(ERRORS).sort(),
  );
  const values = normal(256 * 64);
  for (const type of ENCODED) {
    const encode = (x: Float32Array) => encodeRows(x, type, undefined);
    const decoded = valuesOf(type, encode(values));
    let [errors, squares] = [0, 0];
    values.forEach((x, i) => {
      errors += (decoded[i]! - x) ** 2;
      squares += x * x;
    });
    const error = Math.sqrt(errors / squares);
    t.ok(error < ERRORS[type.name]!, `${type.name}: ${error}`);
    t.ok(error > ERRORS[type.name]! / 2, `${type.name}: ${error}`);
    t.ok(
      valuesOf(type, encode(new Float32Array(256))).every((x) => x === 0),
      `${type.name}: zeros`,
    );
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), {
          minLength: 256,
          maxLength: 256,
        }),
        (list) => {
          const block = Float32Array.from(list);
          const found = valuesOf(type, encode(block));
          return found.every((x) => Number.isFinite(x));
        },
      ),
      { numRuns: 50 },
    );
  }
  t.end();
});

/** SHA-256 of the blocks of 65,536 numbers, without and with importance: first digits. */
const BYTES: { readonly [type: string]: string } = {
  Q4_0: "81b59f4153db",
  Q5_0: "7ad7bbb1ab1f",
  Q8_0: "c434732aaf15",
  Q4_K: "564538a1edff",
  Q6_K: "f93959299c16",
  MXFP4: "235d19597516",
};

t.test("encoders choose the same bytes on every machine", (t) => {
  let state = 1;
  const values = Float32Array.from({ length: 256 * 256 }, () => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return (state - 2 ** 31) / 2 ** 34;
  });
  const importance = Float32Array.from({ length: 256 }, (_, i) => 1 + i % 7);
  for (const type of ENCODED) {
    const hash = createHash("sha256");
    for (const columns of [undefined, importance]) {
      hash.update(encodeRows(values, type, columns));
    }
    t.equal(hash.digest("hex").slice(0, 12), BYTES[type.name], type.name);
  }
  t.end();
});

t.test("important columns have smaller errors", (t) => {
  const values = normal(256 * 64);
  const importance = Float32Array.from(
    { length: 256 },
    (_, i) => i % 8 === 0 ? 1000 : 1,
  );
  for (const type of ENCODED) {
    if (type.name === "Q8_0") continue;
    const errorOf = (columnImportance: Float32Array | undefined) =>
      valuesOf(type, encodeRows(values, type, columnImportance)).reduce(
        (sum, x, i) => sum + (i % 8 === 0 ? (x - values[i]!) ** 2 : 0),
        0,
      );
    const [unweighted, weighted] = [errorOf(undefined), errorOf(importance)];
    t.ok(weighted < unweighted, `${type.name}: ${weighted} and ${unweighted}`);
  }
  t.end();
});

t.test(
  "importance of experts in one tensor equals that of separate tensors",
  { skip },
  async (t) => {
    const fused = checkpointFolder("granitemoe-8e");
    const out = (name: string) => join(folder, `${name}.gguf`);
    const folder = temporaryFolder(t);
    const write = (from: string, to: string, importance?: Importance) =>
      quantizeCheckpoint(from, files, {
        to: "q8_0",
        out: out(to),
        rules: [{ pattern: "*", type: importance ? "q4_0" : "F32" }],
        ...importance ? { importance } : {},
      });
    await write(fused, "separate");
    const measure = async (path: string) => {
      const opened = await openTarget(await loadTarget(path, files), files, {
        sharing: "shared",
        adapter: "cpu",
        recordSquares: true,
        need: { tokens: 16, sequences: 1, context: 16 },
      });
      const texts = [[5, 60, 7, 3, 100, 42, 17, 9], [200, 33, 71, 8]];
      const found = await measureImportance(opened, texts, { context: 16 });
      await opened.close();
      return found;
    };
    const [fusedImportance, separate] = [
      await measure(fused),
      await measure(out("separate")),
    ];
    let count = 0;
    await write(fused, "weighted", (tensor) => {
      const found = fusedImportance(tensor);
      const wanted = separate({ name: tensor.name });
      t.strictSame(found, wanted, tensor.name);
      if (tensor.fused && found) count++;
      return found;
    });
    t.ok(count > 3 * 3 * 4, `${count} matrices of chosen experts`);
  },
);

t.test("codes are those of the nearest values", (t) => {
  for (const element of ["fp4", "fp8"] as const) {
    const { code, value } = nearestCode(element);
    const { bits } = PACKED_ELEMENTS[element];
    const all = Array.from({ length: 1 << bits }, (_, i) => i)
      .filter((i) => element !== "fp8" || (i & 127) !== 127);
    for (const i of all) t.equal(value(code(value(i))) + 0, value(i) + 0);
    const positive = all.filter((i) => i < 1 << bits - 1);
    for (const i of positive.slice(1)) {
      const middle = (value(i - 1) + value(i)) / 2;
      const even = i - i % 2;
      const sign = even === 0 ? 0 : 1 << bits - 1;
      t.equal(code(middle), even, `${element}: ${middle}`);
      t.equal(code(-middle), even | sign, `${element}: ${-middle}`);
      t.equal(code(middle * (1 + 2 ** -50)), i, `${element}: above ${middle}`);
      t.equal(code(middle * (1 - 2 ** -50)), i - 1);
    }
    t.equal(code(2 ** 60), positive.at(-1));
    fc.assert(fc.property(
      fc.double({ min: -600, max: 600, noNaN: true }),
      (x) => {
        const nearest = Math.min(...all.map((i) => Math.abs(value(i) - x)));
        return Math.abs(value(code(x)) - x) === nearest;
      },
    ));
  }
  t.end();
});

/** Writes held-out text of the bundled checkpoint to a file. */
async function heldOut(folder: string): Promise<string> {
  const { data } = (await readReference("demo-lm"))["eval.input_ids"]!;
  const tokenizer = (await openTokenizer(demo, files))!;
  const file = join(folder, "held_out.txt");
  writeFileSync(file, await tokenizer.decode([...data]));
  tokenizer.close();
  return file;
}

/** Max change of perplexity, and types of matrices, by format. Rows of 128 and 192 have no blocks of 256. */
const FORMATS = {
  q8_0: { change: 0.001, divergence: 0.001, types: "F32 Q8_0" },
  q4_k: { change: 0.02, divergence: 0.005, types: "F32 Q5_0 Q8_0" },
  mxfp4: { change: 0.04, divergence: 0.02, types: "F32 MXFP4 Q8_0" },
} as const;

t.test(
  "files of all formats are read by other programs, and predict as well",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const text = await heldOut(folder);
    for (
      const [to, { change, divergence, types }] of inTurn(
        Object.entries(FORMATS),
        3,
      )
    ) {
      const out = join(folder, `${to}.gguf`);
      const { code, out: printed, err } = await switchyard([
        ...["quantize", demo, "--to", to, "--out", out, "--text", text],
        ...["--window", "128", "--adapter", "cpu", "--json"],
      ]);
      t.equal(code, 0, err);
      const { score, after, before } = JSON.parse(printed) as {
        before: number;
        after: number;
        score: {
          against: {
            change: { value: number; error: number };
            sameToken: number;
            sameExperts: number;
            divergence: { mean: number };
          };
        };
      };
      t.ok(after < 0.6 * before);
      // The error of a short text is large.
      const { value, error } = score.against.change;
      t.ok(Math.abs(value) < change + 2 * error, `${to}: ${value}, ${error}`);
      t.ok(error < 0.01);
      t.ok(score.against.sameExperts > 0.95, `${score.against.sameExperts}`);
      t.ok(score.against.divergence.mean < divergence);
      const { metadata, tensorInfos } = await gguf(out, {
        allowLocalFile: true,
      });
      const names = new Map(
        [...WRITTEN_TYPES.values()].map(({ number, name }) => [number, name]),
      );
      t.equal(
        [...new Set(tensorInfos.map(({ dtype }) => names.get(dtype)))].sort()
          .join(" "),
        types,
      );
      for (const { name, dtype } of tensorInfos) {
        if (/norm|ffn_gate_inp/.test(name)) t.equal(dtype, 0, name);
      }
      t.equal(metadata["general.architecture"], "olmoe");
    }
  },
);

t.test(
  "importance changes a file, with equal bytes on meshes",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const text = await heldOut(folder);
    const quantize = async (name: string, ...more: string[]) => {
      const out = join(folder, name);
      const { code, err } = await switchyard([
        ...["quantize", demo, "--to", "Q4_K", "--out", out, ...more],
      ]);
      t.equal(code, 0, err);
      return out;
    };
    const generate = async (model: string, ...more: string[]) => {
      const { code, out, err } = await switchyard([
        ...["generate", model, "-p", "It was a dark night, and", "-n", "8"],
        ...["--adapter", "cpu", ...more],
      ]);
      t.equal(code, 0, err);
      return out;
    };
    const weighted = async (mesh: string) => {
      const measured = ["--importance", text, "--window", "128"];
      const on = ["--mesh", mesh, "--adapter", "cpu"];
      return readFileSync(await quantize(`${mesh}.gguf`, ...measured, ...on));
    };
    const found = await weighted("ep=2");
    t.ok(found.equals(await weighted("ep=1")), "equal bytes on meshes");
    const q4 = await quantize("q4_k.gguf");
    t.notOk(found.equals(readFileSync(q4)), "importance has an effect");
    t.equal(await generate(q4, "--mesh", "ep=4"), await generate(q4));
  },
);

t.test("useless texts and windows are rejected before a file is written", async (t) => {
  const folder = temporaryFolder(t);
  const [text, out] = [join(folder, "text.txt"), join(folder, "model.gguf")];
  const cases = [
    ["--text", "a", /^Cannot score the texts: they have fewer than two tokens/],
    ["--importance", "", /^Cannot compute importance: the texts have no token/],
    [
      "--text",
      "long",
      /^Cannot use windows of 4096 tokens: the model has 512 /,
    ],
    ["--importance", "long", /^Cannot use windows of 4096 tokens: the model /],
  ] as const;
  for (const [flag, content, message] of cases) {
    writeFileSync(text, content);
    const { code, err } = await switchyard([
      ...["quantize", demo, "--to", "q8_0", "--out", out, flag, text],
      ...content === "long" ? ["--window", "4096"] : [],
    ]);
    t.equal(code, 1, flag);
    t.match(err, message);
    t.notOk(existsSync(out), flag);
  }
});

t.test("folders keep unquantized tensors", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const original = await readRaw(join(demo, "model.safetensors"));
  for (
    const [to, scales, others] of [
      ["fp8", "_scale_inv", 22],
      ["mxfp4", "_scales", 38],
    ] as const
  ) {
    const out = join(folder, to);
    const { code, err } = await switchyard([
      ...["quantize", demo, "--to", to, "--out", out],
    ]);
    t.equal(code, 0, err);
    const tensors = await readRaw(join(out, "model.safetensors"));
    const same = Object.entries(tensors).filter(([name, { data }]) =>
      original[name] && Buffer.compare(original[name].data, data) === 0
    );
    t.ok(same.some(([name]) => name.endsWith("mlp.gate.weight")), "routers");
    const scaled = Object.keys(tensors).filter((name) => name.endsWith(scales));
    t.equal(same.length + scaled.length, Object.keys(original).length);
    t.equal(same.length, others, same.map(([name]) => name).join());
    const config = JSON.parse(
      readFileSync(join(out, "config.json"), "utf8"),
    ) as { quantization_config: { quant_method: string } };
    t.equal(config.quantization_config.quant_method, to);
    const generate = async (mesh: string) => {
      const { code, out: text, err } = await switchyard([
        ...["generate", out, "-p", "It was a dark night, and", "-n", "8"],
        ...["--adapter", "cpu", "--mesh", mesh],
      ]);
      t.equal(code, 0, err);
      return text;
    };
    t.equal(await generate("tp=2,ep=2"), await generate("ep=1"), to);
  }
});

/** SHA-256 of the tensors of the bundled checkpoint in a folder, without and with importance: first digits. */
const FOLDERS = {
  fp8: ["e6fe4400789a", "e6fe4400789a"],
  mxfp4: ["4911cdcd8a6a", "6324b715116b"],
} as const;

t.test("folders have the same bytes on every machine", async (t) => {
  const folder = temporaryFolder(t);
  const columns = (name: string) => /down_proj/.test(name) ? 192 : 128;
  const importance: Importance = ({ name }) =>
    Float32Array.from({ length: columns(name) }, (_, i) => 1 + i % 7);
  for (const to of ["fp8", "mxfp4"] as const) {
    for (const [i, digest] of FOLDERS[to].entries()) {
      const out = join(folder, `${to}-${i}`);
      await quantizeCheckpoint(demo, files, {
        to,
        out,
        ...i === 0 ? {} : { importance },
      });
      const bytes = readFileSync(join(out, "model.safetensors"));
      const found = createHash("sha256").update(bytes).digest("hex");
      t.equal(found.slice(0, 12), digest, out);
    }
  }
});

t.test("a folder is empty after an error, and can be written again", async (t) => {
  const out = join(temporaryFolder(t), "fp8");
  const options = { to: "fp8", out } as const;
  for (const failing of ["tokenizer.json", "config.json"]) {
    const full: FileSystem = {
      ...files,
      write: async (path, parts) => {
        if (path.endsWith(failing)) throw new MachineError("full");
        await files.write(path, parts);
      },
    };
    await t.rejects(quantizeCheckpoint(demo, full, options), {
      message: "full",
    });
    t.strictSame(await files.list(out), [], failing);
  }
  await quantizeCheckpoint(demo, files, options);
  t.ok((await files.list(out)).includes("config.json"));
  await t.rejects(quantizeCheckpoint(demo, files, options), {
    message:
      `Cannot write '${out}': there is a folder of that name with files. Choose another name`,
  });
});

t.test("files of multimodal models have a tokenizer", async (t) => {
  const folder = temporaryFolder(t);
  const from = checkpointFolder("gemma4moe-6e-wrapped");
  const { eos_token_id, text_config } = JSON.parse(
    readFileSync(join(from, "config.json"), "utf8"),
  );
  const changed = await withFields(from, {
    to: join(folder, "from"),
    fields: {
      eos_token_id: undefined,
      text_config: { ...text_config, eos_token_id },
    },
  });
  const { model, ...tokenizer } = JSON.parse(
    readFileSync(join(demo, "tokenizer.json"), "utf8"),
  );
  const vocab = Object.entries({ ...model.vocab, null: 9 })
    .filter(([, id]) => Number(id) < 99);
  writeFileSync(
    join(changed, "tokenizer.json"),
    JSON.stringify({
      ...tokenizer,
      model: { ...model, vocab: Object.fromEntries(vocab), merges: [] },
    }),
  );
  writeFileSync(
    join(changed, "tokenizer_config.json"),
    JSON.stringify({ unk_token: null, pad_token: vocab[4]![0] }),
  );
  writeFileSync(
    join(changed, "generation_config.json"),
    JSON.stringify({ eos_token_id: [7, eos_token_id, 0] }),
  );
  const out = join(folder, "wrapped.gguf");
  const written = await switchyard([
    "quantize",
    changed,
    "--to",
    "q8_0",
    "--out",
    out,
  ]);
  t.equal(written.code, 0, written.err);
  const { metadata } = await gguf(out, { allowLocalFile: true }) as unknown as {
    metadata: { [key: string]: unknown };
  };
  const tokens = metadata["tokenizer.ggml.tokens"] as string[];
  t.equal(tokens.length, text_config.vocab_size);
  t.strictSame([tokens[98], tokens[99]], [vocab[98]![0], "[PAD99]"]);
  t.strictSame(
    ["eos", "eot", "eom", "unknown"].map((key) =>
      metadata[`tokenizer.ggml.${key}_token_id`]
    ),
    [eos_token_id, 7, 0, undefined],
  );
  const target = await loadTarget(out, files);
  t.ok(target.kind === "checkpoint");
  if (target.kind !== "checkpoint") return;
  t.strictSame(
    [...target.checkpoint.stop],
    [eos_token_id, 7, 0],
    "a file has the end tokens of its folder",
  );
});

t.test("tensors are read in pieces, and rules are applied", async (t) => {
  const folder = temporaryFolder(t);
  let [largest, total] = [0, 0];
  const counted = {
    ...nodeFiles(),
    open: async (path: string) => {
      const file = await files.open(path);
      return {
        ...file,
        read: (offset: number, length: number) => {
          if (path.endsWith(".safetensors")) {
            largest = Math.max(largest, length);
            total += length;
          }
          return file.read(offset, length);
        },
      };
    },
  };
  const out = join(folder, "rules.gguf");
  const { code, out: printed, err } = await switchyard([
    ...["quantize", demo, "--to", "q8_0", "--out", out],
    ...["--rule", "*.layers.1.*=q4_0", "--rule", "*.embed_tokens.*=keep"],
    ...["--rule", "*.gate.*=q4_0"],
  ], counted);
  t.equal(code, 0, err);
  t.match(printed, /^wrote .*: 3.\d MiB of 5.5 MiB \(.*BF16 512.0 KiB/);
  t.ok(largest < 2 ** 20 && total > 5 * 2 ** 20, `${largest} of ${total}`);
  const { tensorInfos } = await gguf(pathToFileURL(out).pathname, {
    allowLocalFile: true,
  });
  const typeOf = (name: string) =>
    tensorInfos.find((tensor) => tensor.name === name)?.dtype;
  t.equal(typeOf("blk.1.ffn_down_exps.weight"), 2);
  t.equal(typeOf("blk.0.ffn_down_exps.weight"), 8);
  t.equal(typeOf("token_embd.weight"), 30);
  t.equal(typeOf("blk.1.ffn_gate_inp.weight"), 0, "routers are f32");
  t.equal(typeOf("blk.1.attn_norm.weight"), 0);

  const refused = async (
    argv: readonly string[],
    pattern: RegExp,
    code = 1,
  ) => {
    const found = await switchyard(["quantize", ...argv]);
    t.equal(found.code, code, found.err);
    t.match(found.err, pattern);
  };
  await refused(
    [demo, "--to", "q8_0", "--out", out],
    /there is a file of that name/,
  );
  await refused(
    [demo, "--to", "q8_0", "--out", join(folder, "x")],
    /Give FILE.gguf/,
  );
  await refused(
    [demo, "--to", "fp8", "--out", join(folder, "x.gguf")],
    /the format is written to a folder/,
  );
  await refused(
    [demo, "--to", "fp8", "--out", join(folder, "x"), "--rule", "a=q8_0"],
    /types of tensors are those of GGUF files/,
  );
  await refused([demo, "--to", "q9"], /Cannot use --to 'q9'/, 2);
  await refused(
    [demo, "--to", "q8_0", "--rule", "q8_0"],
    /Give PATTERN=TYPE/,
    2,
  );
  await refused(
    [demo, "--to", "q8_0", "--out", join(folder, "y.gguf"), "--rule", "*=q3_k"],
    /Cannot quantize to type 'q3_k'\. Known ones are F32,/,
  );
  await refused(
    [
      ...[demo, "--to", "q8_0", "--out", join(folder, "y.gguf")],
      ...["--rule", "*.mlp.*=q4_0", "--rule", "blk.*=q4_0"],
    ],
    /Cannot use rule 'blk\.\*=q4_0': it matches no tensor\. Use names such as 'model\./,
  );
  await refused(
    [
      checkpointFolder("longcatflash-12e"),
      "--to",
      "q8_0",
      "--out",
      join(folder, "z.gguf"),
    ],
    /^Cannot write a GGUF file of architecture 'LongcatFlashForCausalLM'/,
  );
});

const YARN = {
  rope_theta: 1e4,
  rope_type: "yarn",
  factor: 4,
  original_max_position_embeddings: 8,
};

/** Scaled rotary positions. */
function scaled(scaling: object): object {
  return { rope_parameters: { ...YARN, ...scaling }, rope_scaling: null };
}

/** Fields that replace recorded ones, by checkpoint. */
const CHANGED: { readonly [checkpoint: string]: object } = {
  "qwen3moe-16e": scaled({ beta_fast: 2 }),
  // Files store the base in f32, which cannot represent a scaled one.
  "hunyuanmoe-12e": scaled({ rope_type: "default" }),
  "deepseekv3-16e": scaled({ mscale: 0.8, mscale_all_dim: 0.8 }),
  "deepseekv32-16e": { index_topk: 2 },
  // GGUF files have entries of 4 and 128 tokens only.
  "deepseekv4-12e": {
    layer_types: [
      ...["sliding_attention", "compressed_sparse_attention"],
      ...["sliding_attention", "compressed_sparse_attention"],
    ],
  },
  "glmmoedsa-16e": { index_topk: 2 },
  // Fields without a key, and the scaling of Scout.
  "llama4-8e": {
    attention_chunk_size: 8192,
    floor_scale: 8192,
    rope_scaling: {
      rope_type: "llama3",
      factor: 16,
      low_freq_factor: 1,
      high_freq_factor: 1,
      original_max_position_embeddings: 8192,
    },
  },
  // GGUF files have no feed-forward layers without experts, such as the sixth.
  "nemotronh-16e": {
    layers_block_type: ["mamba", "moe", "attention", "moe", "mamba"],
  },
  "nemotronhlatent-12e": {
    layers_block_type: ["mamba", "moe", "attention", "moe", "mamba"],
  },
  "step3p5-12e": {
    rope_scaling: {
      rope_type: "llama3",
      factor: 2,
      original_max_position_embeddings: 131072,
      low_freq_factor: 1,
      high_freq_factor: 32,
    },
  },
};

/** Copies a checkpoint with other fields, without tensors that become unused. Returns `to`. */
async function withFields(
  from: string,
  { to, fields }: { readonly to: string; readonly fields: object },
): Promise<string> {
  cpSync(from, to, { recursive: true });
  const at = (name: string) => join(to, name);
  const config = JSON.parse(
    readFileSync(at("config.json"), "utf8"),
  ) as object;
  writeFileSync(at("config.json"), JSON.stringify({ ...config, ...fields }));
  const { layers_block_type: kinds = [], layer_types: types = [] } = fields as {
    layers_block_type?: readonly string[];
    layer_types?: readonly string[];
  };
  const unused = [
    ...kinds.length > 0 ? [`backbone.layers.${kinds.length}.`] : [],
    ...types.flatMap((type, i) =>
      type === "sliding_attention" ? [`layers.${i}.attn.compressor.`] : []
    ),
  ];
  if (unused.length === 0) return to;
  const tensors = await readRaw(at("model.safetensors"));
  await writeRaw(
    at("model.safetensors"),
    Object.fromEntries(
      Object.entries(tensors).filter(([name]) =>
        !unused.some((start) => name.startsWith(start))
      ),
    ),
  );
  return to;
}

t.test("keys and values of latent attention are joined by head", async (t) => {
  const part = (name: string, ...shape: number[]): TensorEntry => {
    const values = Float32Array.from(
      { length: shape.reduce((n, size) => n * size, 1) },
      (_, i) => i + (name === "v" ? 100 : 0),
    );
    return {
      name,
      dtype: "F32",
      shape,
      offset: 0,
      bytes: values.byteLength,
      source: {
        name: "file",
        size: values.byteLength,
        read: (offset, length) =>
          Promise.resolve(new Uint8Array(values.buffer, offset, length)),
      },
    };
  };
  const joined = joinedLatent("kv_b", {
    keys: part("k", 2, 2, 3),
    values: part("v", 2, 1, 2),
  });
  const { data } = await readTensor(joined);
  t.strictSame(joined.shape, [8, 2]);
  t.strictSame([...data], [
    ...[0, 3, 1, 4, 2, 5, 100, 101],
    ...[6, 9, 7, 10, 8, 11, 102, 103],
  ]);
});

t.test("other rotary scalings are rejected by name", (t) => {
  const dots1 = { name: "dots1", row: ARCHITECTURES["dots1"]! };
  const refused = (keys: { readonly [key: string]: unknown }) => () =>
    ropeScalingOf("m.gguf", keys, dots1);
  t.throws(
    refused({ "dots1.rope.scaling.type": "linear" }),
    {
      message:
        "Cannot open 'm.gguf': its key 'dots1.rope.scaling.type' is 'linear', and only 'none' or 'yarn' is read. Use another file",
    },
  );
  const yarn = { "dots1.rope.scaling.type": "yarn" };
  t.throws(
    refused({ ...yarn, "dots1.rope.scaling.yarn_ext_factor": 0.5 }),
    /'dots1.rope.scaling.yarn_ext_factor' is '0.5', and only 1 is read/,
  );
  t.equal(ropeScalingOf("m.gguf", {}, dots1), undefined);
  const mistral = { name: "mistral4", row: ARCHITECTURES["mistral4"]! };
  const growing = {
    rope_type: "yarn",
    factor: 128,
    original_max_position_embeddings: 8192,
    llama_4_scaling_beta: 0.1,
  };
  const written = ropeScalingKeys(growing, { ...mistral, base: 1e4, dim: 8 })!;
  t.match(
    ropeScalingOf(
      "m.gguf",
      Object.fromEntries(
        Object.entries(written).map(([key, value]) => [
          `mistral4.${key}`,
          "f32" in value ? Math.fround(value.f32) : Object.values(value)[0],
        ]),
      ),
      mistral,
    ),
    growing,
  );
  t.equal(
    ropeScalingKeys({ rope_type: "yarn", mscale: 2 }, {
      ...dots1,
      base: 1e4,
      dim: 8,
    }),
    undefined,
  );
  t.end();
});

t.test("names of an architecture precede those of all", (t) => {
  const nameOf = (architecture: string, tensor: string) =>
    ggufName(ARCHITECTURES[architecture]!, tensor)?.gguf;
  t.equal(nameOf("olmoe", "model.norm.weight"), "output_norm.weight");
  t.equal(
    nameOf("lfm2moe", "model.embedding_norm.weight"),
    "token_embd_norm.weight",
  );
  t.equal(
    nameOf("lfm2moe", "model.embed_tokens.weight"),
    "token_embd.weight",
  );
  t.end();
});

for (
  const [i, checkpoint] of [
    ...["mixtral-8e", "qwen2moe-8e", "qwen3moe-16e", "dots1-16e"],
    ...["ernie45moe-16e", "glm4moe-16e", "minimaxm2-16e", "deepseekv3-16e"],
    ...["hunyuanmoe-12e", "deepseekv2-16e", "deepseekv2-lite-8e"],
    ...["gptoss-8e", "granitemoe-8e", "lfm2moe-16e"],
    ...["qwen3next-16e", "qwen35moe-16e", "gemma4moe-12e"],
    ...["granitemoehybrid-12e", "llama4-8e", "nemotronh-16e"],
    ...[
      "deepseekv32-16e",
      "glmmoedsa-16e",
      "glm4moelite-16e",
      "deepseekv4-12e",
    ],
    ...["qwen35moe-8e-wrapped", "gemma4moe-6e-wrapped"],
    ...["glm4vmoe-12e", "solaropen-12e", "qwen3vlmoe-8e", "qwen3omnimoe-8e"],
    ...["afmoe-12e", "bailingmoe-16e", "exaonemoe-12e", "hyv3-12e"],
    ...["mimov2-12e", "step3p5-12e", "nemotronhlatent-12e", "kimik25-12e"],
    ...["mistral4-12e", "laguna-12e", "bailingmoev3-12e"],
    ...["cohere2moe-12e", "cohere2moe-12e-wrapped", "mellum-12e"],
    ...["minimaxm3-12e-long"],
  ].entries()
) {
  if (!isInTurn(i, 9)) {
    t.comment(`${checkpoint} is not written in this run: ${repeatWith()}`);
    continue;
  }
  t.test(
    `${checkpoint} as an unquantized GGUF file computes the same as its folder`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t);
      const out = join(folder, "same.gguf");
      const fields = CHANGED[checkpoint];
      const from = fields
        ? await withFields(checkpointFolder(checkpoint), {
          to: join(folder, "changed"),
          fields,
        })
        : checkpointFolder(checkpoint);
      const written = await switchyard([
        ...["quantize", from, "--to", "q8_0", "--out", out],
        ...["--rule", "*=keep"],
      ]);
      t.equal(written.code, 0, written.err);
      // GGUF files store other numbers for the decays of delta nets.
      const digits =
        /^(qwen3(next|5)|granitemoehybrid|nemotronh|bailingmoev3)/.test(
            checkpoint,
          )
          ? 4
          : 20;
      t.strictSame(
        await greedy(t, out, { mesh: "ep=2", digits }),
        await greedy(t, from, { mesh: "ep=1", digits }),
      );
    },
  );
}

t.test("blocks across value heads are decoded", { skip }, async (t) => {
  const from = checkpointFolder("qwen35moe-16e");
  const out = join(temporaryFolder(t), "q8.gguf");
  const written = await switchyard([
    ...["quantize", from, "--to", "q8_0", "--out", out],
  ]);
  t.equal(written.code, 0, written.err);
  const options = { mesh: "ep=1", digits: 20 };
  const found = await greedy(t, out, options);
  t.strictSame(
    await greedy(t, out, { ...options, mesh: "tp=2,ep=2" }),
    found,
    "the same bits on a mesh",
  );
  const wanted = await greedy(t, from, options);
  // Heads in the wrong order would change all tokens.
  t.strictSame(found[0]!.tokens.slice(0, 4), wanted[0]!.tokens.slice(0, 4));
});

/** Greedy tokens of a model, with log-probabilities rounded to decimals. */
async function greedy(
  t: Test,
  model: string,
  { mesh, digits }: { readonly mesh: string; readonly digits: number },
): Promise<readonly { readonly tokens: readonly number[] }[]> {
  const { out, code, err } = await switchyard([
    ...["generate", model, "--tokens", "5,60,7,3", "-n", "6", "--json"],
    ...["--adapter", "cpu", "--mesh", mesh, "--logprobs", "3"],
  ]);
  t.equal(code, 0, err);
  const rounded = (key: string, value: unknown) =>
    key === "logprob" ? (value as number).toFixed(digits) : value;
  return (JSON.parse(out, rounded) as {
    sequences: readonly { readonly tokens: readonly number[] }[];
  }).sequences;
}
