/** Checkpoints of NVIDIA ModelOpt have the bits of the same elements and scales as compressed-tensors, and decoded. */
// needs: cpu
// rotates with: engine/checkpoint/quantization_config.ts, engine/encodings/

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import {
  checkTarget,
  generate,
  loadTarget,
  readTensors,
  summarizeTarget,
} from "../engine/mod.ts";
import { readQuantization } from "../engine/checkpoint/quantization_config.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { checkpointFolder, files, loadFolder } from "./helpers/checkpoints.ts";
import {
  fp8In,
  type MatrixSize,
  nvfp4,
  type Quantized,
} from "./helpers/modelopt_checkpoint.ts";
import {
  type FileTensor,
  outputsOf,
  quantizedOf,
  writeCheckpoint,
} from "./helpers/quantized_checkpoint.ts";

const MODEL = checkpointFolder("qwen3moe-16e");

type Config = { readonly [key: string]: unknown };

/** The form of a module. Undefined: not quantized. */
type FormOf = (
  module: string,
) =>
  | ((x: Float32Array, size: MatrixSize) => Quantized)
  | undefined;

const NVFP4: FormOf = (module) =>
  /experts|o_proj/.test(module) ? nvfp4 : undefined;

const FORMS = {
  q_proj: "FP8",
  k_proj: "FP8_PER_CHANNEL_PER_TOKEN",
  v_proj: "FP8_PB_WO",
  o_proj: "MXFP8",
} as const;

/** FP8 attention, one form per projection, and NVFP4 experts. */
const MIXED: FormOf = (module) => {
  if (module.includes("experts")) return nvfp4;
  const name = module.split(".").at(-1)! as keyof typeof FORMS;
  const form = FORMS[name];
  return form && ((x, size) => fp8In(form, x, size));
};

/** The matrices of a tensor as quantized checkpoints have them: those of experts are separate. */
function* matricesOf(
  name: string,
  [first = 1, ...rest]: readonly number[],
  values: Float32Array<ArrayBuffer>,
): Generator<{
  readonly module: string;
  readonly size: MatrixSize;
  readonly values: Float32Array;
}> {
  const [, experts, last] = /^(.*\.experts)\.(gate_up_proj|down_proj)$/
    .exec(name) ?? [];
  if (experts === undefined) {
    const size = [first, rest[0] ?? 1] as const;
    yield { module: name.replace(/\.weight$/, ""), size, values };
    return;
  }
  const names = last === "down_proj" ? ["down_proj"] : ["gate_proj", "up_proj"];
  const [rows, columns] = [rest[0]! / names.length, rest[1]!] as const;
  for (let at = 0; at < first * names.length; at++) {
    const expert = Math.floor(at / names.length);
    yield {
      module: `${experts}.${expert}.${names[at % names.length]}`,
      size: [rows, columns] as const,
      values: values.subarray(at * rows * columns, (at + 1) * rows * columns),
    };
  }
}

/** Writes a recorded checkpoint as ModelOpt, as compressed-tensors, and with decoded values. */
async function writeAll(
  root: string,
  form: FormOf,
  quantization: Config,
  model = MODEL,
): Promise<void> {
  const tensors = await readTensors(join(model, "model.safetensors"), files);
  const written: {
    readonly [name in "modelopt" | "compressed" | "plain"]: {
      [name: string]: FileTensor;
    };
  } = { modelopt: {}, compressed: {}, plain: {} };
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const decoded = Float32Array.from(data);
    const plain = { dtype: "F32", shape, data: decoded } as const;
    written.plain[name] = plain;
    for (const { module, size, values } of matricesOf(name, shape, decoded)) {
      const quantized = form(module)?.(values, size);
      if (!quantized) {
        written.modelopt[name] = written.compressed[name] = plain;
        continue;
      }
      values.set(quantized.values);
      for (const spelling of ["modelopt", "compressed"] as const) {
        for (const [suffix, tensor] of Object.entries(quantized[spelling])) {
          written[spelling][`${module}.${suffix}`] = tensor;
        }
      }
    }
  }
  // Scales of an FP8 KV cache.
  for (const name of ["k_proj.k_scale", "v_proj.v_scale"]) {
    written.modelopt[`model.layers.0.self_attn.${name}`] = {
      dtype: "F32",
      shape: [],
      data: Float32Array.of(1),
    };
  }
  const config = JSON.parse(
    await readFile(join(model, "config.json"), "utf8"),
  ) as object;
  const folder = (name: string) => join(root, name);
  await writeCheckpoint(folder("plain"), written.plain, config);
  await writeCheckpoint(folder("compressed"), written.compressed, {
    ...config,
    quantization_config: COMPRESSED,
  });
  await writeCheckpoint(folder("modelopt"), written.modelopt, {
    ...config,
    quantization_config: quantization,
  });
}

const COMPRESSED = {
  quant_method: "compressed-tensors",
  format: "nvfp4-pack-quantized",
  config_groups: {
    group_0: { weights: { num_bits: 4, type: "float", group_size: 16 } },
  },
  ignore: ["lm_head"],
};

const MODELOPT = {
  quant_method: "modelopt",
  quant_algo: "NVFP4",
  kv_cache_scheme: { dynamic: false, num_bits: 8, type: "float" },
  ignore: [
    "lm_head",
    "model.layers.*.mlp.gate",
    ..."qkv".split("").map((name) => `*.self_attn.${name}_proj*`),
  ],
};

t.test("NVFP4 in both spellings", async (t) => {
  const root = t.testdir({});
  const folder = (name: string) => join(root, name);
  await writeAll(root, NVFP4, MODELOPT);
  const wanted = await outputsOf(folder("plain"), "ep=1");
  const native = await whyNotNative() === undefined ? "native" : "cpu";
  for (
    const [spelling, mesh, adapter] of [
      ["modelopt", "ep=1", "cpu"],
      ["modelopt", "ep=4", native],
      ["modelopt", "tp=2", native],
      ["modelopt", "dp=2,tp=2,ep=2", "cpu"],
      ["compressed", "tp=2,ep=2", "cpu"],
    ] as const
  ) {
    t.equal(
      await outputsOf(folder(spelling), mesh, adapter),
      wanted,
      `${spelling} on ${mesh}`,
    );
  }
  t.strictSame(await checkTarget(folder("modelopt"), files), []);
  const [first, second] = await Promise.all(
    ["modelopt", "plain"].map((name) => tokensOf(folder(name))),
  );
  t.strictSame(first, second, "generated tokens");
});

t.test("separate experts of families that have them in one tensor", async (t) => {
  const root = t.testdir({});
  const quantization = { quant_method: "modelopt", quant_algo: "NVFP4" };
  // Rows of Gemma's down projection are no multiple of 16.
  const form: FormOf = (module) =>
    !/\.experts\./.test(module)
      ? undefined
      : (x, size) =>
        size[1] % 16 === 0
          ? nvfp4(x, size)
          : fp8In("FP8_PER_CHANNEL_PER_TOKEN", x, size);
  for (
    const [model, ...runs] of [
      [
        "qwen35moe-8e-wrapped",
        ["modelopt", "ep=1"],
        ["modelopt", "tp=2,ep=2"],
        ["compressed", "ep=4"],
      ],
      ["gemma4moe-12e", ["modelopt", "tp=2,ep=2"], ["compressed", "ep=1"]],
    ] as const
  ) {
    const folder = (name: string) => join(root, model, name);
    await writeAll(
      join(root, model),
      form,
      quantization,
      checkpointFolder(model),
    );
    const wanted = await outputsOf(folder("plain"), "ep=1");
    for (const [spelling, mesh] of runs) {
      const digest = await outputsOf(folder(spelling), mesh);
      t.equal(digest, wanted, `${model}, ${spelling} on ${mesh}`);
    }
    t.strictSame(await checkTarget(folder("modelopt"), files), []);
  }
});

t.test("several algorithms", async (t) => {
  const root = t.testdir({});
  const layers = (layer: number) =>
    Object.fromEntries([
      ...Object.entries(FORMS).map(([name, quant_algo]) =>
        [`model.layers.${layer}.self_attn.${name}`, { quant_algo }] as const
      ),
      [`model.layers.${layer}.mlp.experts`, {
        quant_algo: "W4A16_NVFP4",
        group_size: 16,
      }] as const,
    ]);
  const quantization = {
    quant_method: "modelopt",
    quant_algo: "MIXED_PRECISION",
    quantized_layers: { ...layers(0), ...layers(1), ...layers(2) },
  };
  await writeAll(root, MIXED, quantization);
  const wanted = await outputsOf(join(root, "plain"), "ep=1");
  for (const mesh of ["ep=1", "tp=2,ep=2"]) {
    t.equal(await outputsOf(join(root, "modelopt"), mesh), wanted, mesh);
  }
  const quantized = await quantizedOf(join(root, "plain"));
  for (const spelling of ["modelopt", "compressed"]) {
    t.equal(await quantizedOf(join(root, spelling)), quantized, spelling);
  }
  // The same bytes are planned from config.json alone.
  const config = JSON.parse(
    await readFile(join(root, "modelopt/config.json"), "utf8"),
  );
  const { stored } = await planned(join(root, "config.json"), config);
  const experts = 3 * 16 * 3 * (64 * 32 * 9 / 16 + 4);
  t.equal(stored["nvfp4"], experts);
  t.equal(stored["mxfp8"], 3 * 64 * 128 * 33 / 32);
  // One scale for the matrix, and one for each of 64 rows.
  t.equal(stored["fp8"], 3 * (64 * (128 + 64) + 4 * (1 + 64)));
});

t.test("quantizations are read from both files of ModelOpt", async (t) => {
  const root = t.testdir({});
  const plain = JSON.parse(await readFile(join(MODEL, "config.json"), "utf8"));
  const fromConfig = await planned(join(root, "config.json"), {
    ...plain,
    quantization_config: MODELOPT,
  });
  await writeFile(join(root, "config.json"), JSON.stringify(plain));
  await writeFile(
    join(root, "hf_quant_config.json"),
    JSON.stringify({
      producer: { name: "modelopt", version: "0.29.0" },
      quantization: {
        quant_algo: "NVFP4",
        kv_cache_quant_algo: "FP8",
        group_size: 16,
        exclude_modules: MODELOPT.ignore,
      },
    }),
  );
  t.strictSame(await planned(root), fromConfig);
  t.strictSame(await planned(join(root, "config.json")), fromConfig, "a file");
  t.equal(
    fromConfig.stored["nvfp4"],
    3 * (16 * 3 * (64 * 32 * 9 / 16 + 4) + 64 * 128 * 9 / 16 + 4),
  );
});

t.test("modules are listed with and without their root", (t) => {
  const matrix = "layers.1.mlp.experts.0.up_proj";
  for (
    const root of ["", "model.", "language_model.", "language_model.model."]
  ) {
    const read = readQuantization({
      quant_method: "modelopt",
      quant_algo: "NVFP4",
      exclude_modules: [`${root}layers.0*`, `${root}layers.1.self_attn*`],
    });
    const mixed = readQuantization({
      quant_method: "modelopt",
      quant_algo: "MIXED_PRECISION",
      quantized_layers: {
        [`${root}layers.1.mlp.experts`]: { quant_algo: "FP8" },
      },
    });
    for (const actual of ["", "model.", "language_model.model."]) {
      t.strictSame(read(`${actual}${matrix}`), { name: "nvfp4" });
      t.equal(read(`${actual}layers.0.mlp.experts.0.up_proj`), undefined);
      t.equal(read(`${actual}layers.1.self_attn.q_proj`), undefined);
      t.strictSame(mixed(`${actual}${matrix}`), { name: "fp8" });
      t.equal(mixed(`${actual}layers.0.mlp.experts.0.up_proj`), undefined);
    }
  }
  t.end();
});

t.test("experts may have an algorithm of their own", (t) => {
  const read = readQuantization({
    quant_method: "fp8",
    weight_block_size: [128, 128],
    moe_quant_algo: "NVFP4",
    ignore: ["mtp.*"],
  }, "fp4");
  const fp8 = { name: "fp8", block: [128, 128] };
  t.strictSame(read("layers.3.ffn.experts.7.w1"), { name: "nvfp4" });
  t.strictSame(read("layers.3.ffn.shared_experts.w1"), fp8);
  t.strictSame(read("layers.3.attn.wq_a"), fp8);
  t.equal(read("layers.3.ffn.gate"), undefined);
  t.equal(read("mtp.0.ffn.experts.7.w1"), undefined);
  t.throws(
    () => readQuantization({ quant_method: "fp8", moe_quant_algo: "IQ3" }),
    { message: /'moe_quant_algo' is "IQ3"/ },
  );
  t.end();
});

t.test("other algorithms and tensors are rejected by name", async (t) => {
  for (
    const [config, name] of [
      [{ quant_algo: "W4A16_AWQ" }, "W4A16_AWQ"],
      [{ quantization: { quant_algo: "NVFP4_AWQ" } }, "NVFP4_AWQ"],
      [{
        quant_algo: "MIXED_PRECISION",
        quantized_layers: { "model.layers.0": { quant_algo: "W8A16" } },
      }, "W8A16"],
    ] as const
  ) {
    t.throws(() => readQuantization({ quant_method: "modelopt", ...config }), {
      name: "DataError",
      message:
        `Cannot read the quantization: 'quant_algo' is "${name}". Use a model in one of FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, MXFP8, NVFP4, W4A16_NVFP4, MIXED_PRECISION`,
    });
  }
  const root = t.testdir({});
  const smoothed: FormOf = (module) =>
    module.endsWith("0.self_attn.o_proj")
      ? (x, size) => {
        const { modelopt, ...rest } = nvfp4(x, size);
        const data = new Float32Array(size[1]);
        const scale = { dtype: "F32", shape: [size[1]], data } as const;
        return { ...rest, modelopt: { ...modelopt, pre_quant_scale: scale } };
      }
      : undefined;
  await writeAll(root, smoothed, MODELOPT);
  const folder = join(root, "modelopt");
  await t.rejects(quantizedOf(folder), {
    message:
      `Cannot quantize '${folder}': tensor 'model.layers.0.self_attn.o_proj.pre_quant_scale' changes activations. Use another quantization of the model`,
  });
  t.strictSame(await checkTarget(folder, files), [{
    message:
      `Cannot load '${folder}': tensor 'model.layers.0.self_attn.o_proj.pre_quant_scale' is not part of the model. Remove it, or check that the model is the right one`,
  }]);
});

/** Generated tokens of a prompt. */
async function tokensOf(folder: string): Promise<readonly number[]> {
  const { decoder, close } = await loadFolder(folder, { mesh: "ep=2" });
  try {
    const { sequences } = await generate(decoder, [[5, 100, 7, 3]], {
      maxNewTokens: 8,
      stop: new Set(),
    });
    return sequences[0]!.tokens;
  } finally {
    await close();
  }
}

/** Plans a path, after writing a config.json there. */
async function planned(path: string, config?: Config) {
  if (config) await writeFile(path, JSON.stringify(config));
  const target = await loadTarget(path, files, { withoutWeights: true });
  return (await summarizeTarget(target, files)).summary.model;
}
