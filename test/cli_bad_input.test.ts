// Bad input: exact messages and exit codes; outputs are unchanged.
// needs: cpu, gpu
import {
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import t from "tap";
import { fileError, nodeFiles } from "../cli/files.ts";
import { ARCHITECTURES } from "../models/published.ts";
import { MAX_AXIS } from "../spec/limits.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  copyCheckpoint,
  integers,
  type RawTensor,
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { skipWithoutGpu } from "./helpers/needs.ts";

const KNOWN = ARCHITECTURES.map((name) => `'${name}'`).join(", ");
const MIXTRAL = checkpointFolder("mixtral-6e");
const W1 = "model.layers.1.block_sparse_moe.experts.3.w1.weight";

/** A damaged copy of a checkpoint, and the error of `run`. FOLDER stands for the copy. */
interface BadCheckpoint {
  readonly title: string;
  readonly damage: (folder: string) => void | Promise<void>;
  readonly message: string;
}

function file(name: string, change: (path: string) => void) {
  return (folder: string): void => change(path.join(folder, name));
}

function rewrite(path: string, from: string, to: string): void {
  writeFileSync(path, readFileSync(path, "utf8").replace(from, to));
}

function tensors(change: (tensors: { [name: string]: RawTensor }) => void) {
  return async (folder: string): Promise<void> => {
    const weights = path.join(folder, "model.safetensors");
    const read = await readRaw(weights);
    change(read);
    await writeRaw(weights, read);
  };
}

function header(change: (text: string) => string) {
  return file("model.safetensors", (weights) => {
    const bytes = readFileSync(weights);
    const length = Number(bytes.readBigUInt64LE(0));
    const text = change(bytes.toString("latin1", 8, 8 + length));
    bytes.write(text.padEnd(length).slice(0, length), 8, "latin1");
    writeFileSync(weights, bytes);
  });
}

/** What a clone has in place of a large file. */
const POINTER =
  "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";

const CHECKPOINTS: readonly BadCheckpoint[] = [
  {
    title: "weights that are a Git LFS pointer",
    damage: file("model.safetensors", (f) => writeFileSync(f, POINTER)),
    message:
      "Cannot open 'FOLDER/model.safetensors': it is a Git LFS pointer, which 'git lfs pull' replaces by the file. Get the file again",
  },
  {
    title: "a configuration that is a Git LFS pointer",
    damage: file("config.json", (f) => writeFileSync(f, POINTER)),
    message:
      "Cannot read 'FOLDER/config.json': it is a Git LFS pointer, which 'git lfs pull' replaces by the file. Copy it again",
  },
  {
    title: "a file of three bytes",
    damage: file("model.safetensors", (f) => writeFileSync(f, "abc")),
    message:
      "Cannot open 'FOLDER/model.safetensors': it has 3 bytes and a safetensors file begins with 8 bytes of header length. Get the file again",
  },
  {
    title: "a truncated header",
    damage: file("model.safetensors", (f) => truncateSync(f, 5000)),
    message:
      "Cannot open 'FOLDER/model.safetensors': its header claims 5952 bytes and the file has 5000. Get the file again",
  },
  {
    title: "truncated data",
    damage: file("model.safetensors", (f) => truncateSync(f, 100000)),
    message:
      "Cannot open 'FOLDER/model.safetensors': its tensor 'model.layers.0.block_sparse_moe.experts.0.w3.weight' ends at byte 107520 of the data and the file has 94040. Get the file again",
  },
  {
    title: "a header that is not JSON",
    damage: header((text) => `{${text}`),
    message:
      "Cannot open 'FOLDER/model.safetensors': its header is not JSON. Get the file again",
  },
  {
    title: "a missing tensor",
    damage: tensors((read) => delete read[W1]),
    message:
      `Cannot load 'FOLDER': tensor '${W1}' is missing. Copy the file again, or check that the model is the right one`,
  },
  {
    title: "an extra tensor",
    damage: tensors((read) => read["more"] = integers([1], [1])),
    message:
      "Cannot load 'FOLDER': tensor 'more' is not part of the model. Remove it, or check that the model is the right one",
  },
  {
    title: "a wrong shape",
    damage: tensors((read) => {
      const norm = read["model.norm.weight"]!;
      read["model.norm.weight"] = { ...norm, shape: [24, 2] };
    }),
    message:
      "Cannot load 'FOLDER': tensor 'model.norm.weight' has shape [24, 2], and the model expects [48] (embed). Check that the model is the right one",
  },
  {
    title: "a wrong dtype",
    damage: tensors((read) => {
      const norm = read["model.norm.weight"]!;
      read["model.norm.weight"] = { ...norm, dtype: "I32" };
    }),
    message:
      "Cannot load 'FOLDER': tensor 'model.norm.weight' is I32, and the plan expects F32. Convert it, or compile the model again for these weights",
  },
  {
    title: "a weight that is NaN",
    damage: tensors((read) => {
      const data = new Uint8Array(read[W1]!.data);
      new DataView(data.buffer).setFloat32(4 * 77, NaN, true);
      read[W1] = { ...read[W1]!, data };
    }),
    message:
      `Cannot load weight '${W1}': element [1, 29] in 'FOLDER/model.safetensors' is not a finite number. Get the file again`,
  },
  {
    title: "no configuration",
    damage: file("config.json", (f) => rmSync(f)),
    message:
      "Cannot read 'FOLDER': it has no config.json. Give a checkpoint folder, a model file or a plan",
  },
  {
    title: "adapters instead of a model",
    damage: (folder) =>
      renameSync(
        path.join(folder, "config.json"),
        path.join(folder, "adapter_config.json"),
      ),
    message:
      "Cannot read 'FOLDER': it has low-rank adapters and no model. Give their checkpoint, and this folder with --lora",
  },
  {
    title: "a configuration that is not JSON",
    damage: file("config.json", (f) => writeFileSync(f, "{")),
    message: "Cannot read 'FOLDER/config.json': it is not JSON. Copy it again",
  },
  {
    title: "an unknown architecture",
    damage: file(
      "config.json",
      (f) => writeFileSync(f, `{"architectures": ["GPT2LMHeadModel"]}`),
    ),
    message:
      `Cannot build architecture 'GPT2LMHeadModel': it is not built in. Its 53 tensors have 165,936 parameters. Give the file that defines its family with --family FILE.ts, or use one of ${KNOWN}`,
  },
  {
    title: "a size that is too large",
    damage: file(
      "config.json",
      (f) => rewrite(f, '"hidden_size": 48', '"hidden_size": 1e9'),
    ),
    message:
      "Cannot read config.json: 'hidden_size' is 1000000000. It must be an integer from 1 to 1048576",
  },
  {
    title: "a field under another family's name",
    damage: file(
      "config.json",
      (f) => rewrite(f, '"num_local_experts"', '"num_experts"'),
    ),
    message:
      "Cannot read config.json: it has 'num_experts', and its architecture calls that 'num_local_experts'. Rename it",
  },
  {
    title: "no weights",
    damage: (folder) => {
      for (const name of ["model.safetensors", "reference.safetensors"]) {
        rmSync(path.join(folder, name));
      }
    },
    message:
      "Cannot read 'FOLDER': it has no safetensors file. Copy model.safetensors there",
  },
  {
    title: "an index that names a missing shard",
    damage: (folder) => {
      rmSync(path.join(folder, "model.safetensors"));
      writeFileSync(
        path.join(folder, "model.safetensors.index.json"),
        `{"weight_map": {"a": "part-1.safetensors"}}`,
      );
    },
    message:
      "Cannot read 'FOLDER': 'part-1.safetensors', which model.safetensors.index.json names, is missing. Copy it there",
  },
  {
    title: "an index that names a file outside of the folder",
    damage: file(
      "model.safetensors.index.json",
      (f) => writeFileSync(f, `{"weight_map": {"a": "../a.safetensors"}}`),
    ),
    message:
      "Cannot read 'FOLDER/model.safetensors.index.json': it names '../a.safetensors', which is not in its folder. Copy it again",
  },
];

t.test("a damaged checkpoint exits with 1", async (t) => {
  for (const { title, damage, message } of CHECKPOINTS) {
    await t.test(title, async (t) => {
      const scratch = temporaryFolder(t);
      const inputs = path.join(scratch, "in.safetensors");
      await writeRaw(inputs, { input_ids: integers([1, 3], [5, 6, 7]) });
      const outputs = path.join(scratch, "out.safetensors");
      writeFileSync(outputs, "old contents");
      const folder = await copyCheckpoint("mixtral-6e", scratch);
      await damage(folder);
      const run = await switchyard(
        ["run", folder, "--inputs", inputs, "--outputs", outputs],
      );
      t.equal(run.err.replaceAll(folder, "FOLDER"), `${message}\n`);
      t.equal(run.code, 1);
      t.equal(readFileSync(outputs, "utf8"), "old contents");
    });
  }
});

/** A bad command line, the inputs file if it is not the good one, and the error. IN, OUT and SCRATCH are replaced. */
interface BadCommand {
  readonly line: string;
  readonly inputs?: { readonly [name: string]: RawTensor };
  readonly code: number;
  readonly message: string;
}

const RUN = `run ${MIXTRAL} --inputs IN --outputs OUT`;

function source(name: string): string {
  return path.join(import.meta.dirname, "fixtures", "source", name);
}

const SYNTAX = [
  "Cannot load 'bad_syntax.ts': ',' expected. Correct the syntax",
  "  --> bad_syntax.ts:3:32",
  "  |",
  '3 |   return { y: m.input("x", "n" };',
  "  |                                ^",
].join("\n");

const TRACE = [
  "Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at bad_trace.ts:6:19",
  "  --> bad_trace.ts:7:16",
  "  |",
  "7 |   const sent = dispatch(x, routing);",
  "  |                ^^^^^^^^",
].join("\n");

const AXIS = [
  "Cannot softmax 'token embed' over 'ffn': expected 'token' or 'embed'",
  "  --> bad_axis.ts:5:26",
  "  |",
  '5 |   return { y: softmax(x, "ffn") };',
  "  |                          ^^^^^",
].join("\n");

const COMMANDS: readonly BadCommand[] = [
  ...["check FILE", "plan FILE", "run FILE --inputs IN --outputs OUT"].flatMap(
    (line) => [
      {
        line: line.replace("FILE", source("bad_syntax.ts")),
        code: 1,
        message: SYNTAX,
      },
      {
        line: line.replace("FILE", source("bad_trace.ts")),
        code: 1,
        message: TRACE,
      },
      {
        line: line.replace("FILE", source("bad_axis.ts")),
        code: 1,
        message: AXIS,
      },
    ],
  ),
  ...["verify FILE", "plan FILE"].map((line) => ({
    line: line.replace("FILE", "SCRATCH/text.json"),
    code: 1,
    message:
      "Cannot read 'SCRATCH/text.json': it is not JSON. Give a document that 'switchyard plan --out' wrote",
  })),
  {
    line: "check SCRATCH/none.ts",
    code: 1,
    message:
      "Cannot read 'SCRATCH/none.ts': there is no such file or folder. Check the path",
  },
  {
    line: "plan SCRATCH/none",
    code: 1,
    message:
      "Cannot read 'SCRATCH/none': there is no such file or folder. Check the path",
  },
  {
    line: "plan SCRATCH",
    code: 1,
    message:
      "Cannot read 'SCRATCH': it has no config.json. Give a checkpoint folder, a model file or a plan",
  },
  {
    line: "verify SCRATCH/none.json",
    code: 1,
    message:
      "Cannot read 'SCRATCH/none.json': there is no such file or folder. Check the path",
  },
  {
    line: `verify ${MIXTRAL}/config.json`,
    code: 1,
    message:
      `Cannot read '${MIXTRAL}/config.json': it has no version. Give a document that 'switchyard plan --out' wrote`,
  },
  {
    line: `generate ${MIXTRAL}/config.json -p a`,
    code: 1,
    message:
      `Cannot use '${MIXTRAL}/config.json': it is a configuration, without weights. Give the folder of its checkpoint`,
  },
  {
    line: `generate ${MIXTRAL}/model.safetensors -p a`,
    code: 1,
    message:
      `Cannot use '${MIXTRAL}/model.safetensors': it is a file of weights. Give the folder with its config.json`,
  },
  {
    line: `plan ${MIXTRAL} --place foo=ep`,
    code: 1,
    message:
      "Cannot place axis 'foo': the model has no such axis. Its axes are 'token', 'sequence', 'context', 'vocab', 'embed', 'head', 'expert', 'choice', 'kvHead', 'headDim', 'query', 'keyValue', 'ffn'",
  },
  {
    line: `plan ${MIXTRAL} --place expert=tp`,
    code: 1,
    message:
      "Cannot place axis 'expert' over 'tp': the mesh has no such axis. Its axes are 'ep'",
  },
  {
    line: `plan ${MIXTRAL} --mesh tp=3`,
    code: 1,
    message:
      "Cannot shard axis 'head' over 'tp': its size, 4, is no multiple of 3. Use tp=1, tp=2, or change its placement",
  },
  {
    line: `plan ${MIXTRAL} --mesh ep=2,dp=2 --place expert=ep,token=ep`,
    code: 1,
    message:
      "Cannot use mesh axis 'dp': no axis of the model is placed over it. Place one, or remove it from the mesh",
  },
  {
    line: `plan ${MIXTRAL} --mesh ep=50,dp=100`,
    code: 1,
    message:
      "Cannot use a mesh of 5000 ranks: a plan has at most 4096. Make the mesh smaller",
  },
  {
    line:
      `plan ${MIXTRAL} --json --max-context 9000000 --limits maxBufferSize=268435456`,
    code: 3,
    message:
      "Cannot fit the plan: buffer 'model.layers.0.self_attn.keys' (and 4 more) needs maxBufferSize = 3456000000, and 268435456 is allowed. The fix: --max-context 699050",
  },
  {
    // No machine is named, and no kernel can index so many bytes.
    line:
      `plan ${MIXTRAL} --json --max-context ${MAX_AXIS} --max-sequences ${MAX_AXIS}`,
    code: 3,
    message:
      "Cannot fit the plan: buffer 'model.layers.0.self_attn.keys' (and 3 more) has 13510798882111488 bytes, and kernels index at most 17179868160. The fix: --max-context 21",
  },
  {
    line: `plan ${MIXTRAL} --out /dev/full`,
    code: 3,
    message: "Cannot write '/dev/full': the disk is full. Free some space",
  },
  {
    line: `run ${MIXTRAL} --inputs SCRATCH/none --outputs OUT`,
    code: 1,
    message:
      "Cannot read 'SCRATCH/none': there is no such file or folder. Check the path",
  },
  {
    line: RUN,
    inputs: { ids: integers([1], [1]) },
    code: 1,
    message:
      "Cannot use input 'ids': a checkpoint takes 'input_ids' and 'attention_mask'. Remove it",
  },
  {
    line: RUN,
    inputs: { input_ids: integers([3], [1, 2, 3]) },
    code: 1,
    message:
      "Cannot use 'input_ids': it is I32 [3]. Give it as I32 or I64 [batch, seq]",
  },
  {
    line: RUN,
    inputs: {
      input_ids: integers([1, 2], [1, 2]),
      attention_mask: integers([2, 1], [1, 1]),
    },
    code: 1,
    message:
      "Cannot use 'attention_mask': its shape is [2, 1], and that of 'input_ids' [1, 2]. Make them the same",
  },
  {
    line: RUN,
    inputs: { input_ids: integers([1, 2], [1, 160]) },
    code: 1,
    message:
      "Cannot use token 160 (row 0, column 1): the vocabulary has ids 0 to 159. Use the tokenizer of this checkpoint",
  },
  {
    line: `${RUN} --max-context 2`,
    code: 1,
    message:
      "Cannot run 3 tokens of a sequence: the plan allows at most 2. Raise --max-context",
  },
  {
    line: `${RUN} --adapter 99 --devices separate`,
    code: 3,
    message: "",
  },
  {
    line: `run ${MIXTRAL} --inputs IN --outputs /dev/full`,
    code: 3,
    message: "Cannot write '/dev/full': the disk is full. Free some space",
  },
  {
    line: `run ${MIXTRAL} --inputs IN --outputs SCRATCH`,
    code: 1,
    message: "Cannot write 'SCRATCH': it is a folder. Give a file",
  },
  {
    line: `run ${MIXTRAL} --inputs IN --outputs SCRATCH/no/such/folder`,
    code: 1,
    message:
      "Cannot write 'SCRATCH/no/such/folder': there is no such file or folder. Check the path",
  },
  {
    line: `generate ${MIXTRAL} --tokens 1,160`,
    code: 1,
    message:
      "Cannot use token 160 (prompt 1, token 2): the vocabulary has ids 0 to 159. Use the tokenizer of this checkpoint",
  },
  {
    line: `generate ${MIXTRAL} --prompt hello`,
    code: 1,
    message:
      "Cannot read a prompt: the checkpoint has no tokenizer.json. Give token ids with --tokens",
  },
  {
    line: `serve ${MIXTRAL}`,
    code: 1,
    message:
      `Cannot serve '${MIXTRAL}': it has no tokenizer.json. Copy one there`,
  },
  {
    line: `generate ${MIXTRAL} --tokens 1,2,3 --max-context 2`,
    code: 1,
    message:
      "Cannot generate from prompt 1: it has 3 tokens, and the context has 2. Shorten it or raise --max-context",
  },
];

t.test("bad commands print their messages and exit codes", async (t) => {
  const scratch = temporaryFolder(t);
  writeFileSync(path.join(scratch, "text.json"), "what is this");
  const good = { input_ids: integers([1, 3], [5, 6, 7]) };
  for (const { line, inputs = good, code, message } of COMMANDS) {
    await t.test(line.replaceAll(MIXTRAL, "MIXTRAL"), async (t) => {
      const file = path.join(scratch, "in.safetensors");
      const outputs = path.join(scratch, "out.safetensors");
      await writeRaw(file, inputs);
      writeFileSync(outputs, "old contents");
      const argv = line.split(" ").map((word) =>
        word.replace(/^IN$/, file).replace(/^OUT$/, outputs)
          .replace("SCRATCH", scratch)
      );
      const found = await switchyard(argv);
      t.equal(found.code, code);
      const error = found.err.replaceAll(scratch, "SCRATCH");
      if (message !== "") t.equal(error, `${message}\n`);
      else t.match(error, /^Cannot use adapter 99: this machine has /);
      t.equal(readFileSync(outputs, "utf8"), "old contents");
    });
  }
});

t.test("ranks on separate devices do not share an adapter", {
  skip: skipWithoutGpu,
}, async (t) => {
  const scratch = temporaryFolder(t);
  const inputs = path.join(scratch, "in.safetensors");
  const outputs = path.join(scratch, "out.safetensors");
  await writeRaw(inputs, { input_ids: integers([1, 1], [5]) });
  const run = `run ${MIXTRAL} --inputs ${inputs} --outputs ${outputs}`;
  const { code, err } = await switchyard(
    `${run} --adapter 0,0 --devices separate --mesh ep=2`.split(" "),
  );
  t.equal(code, 3);
  t.equal(
    err,
    "Cannot give 2 ranks an adapter each: the list names only 1 different. Name 2 different adapters, or fewer to share them\n",
  );
  const shared = await switchyard(
    `${run} --adapter 0 --devices separate --mesh ep=2`.split(" "),
  );
  t.equal(shared.code, 0);
  t.match(shared.err, /^2 ranks share 1 adapter: /);
});

t.test(
  "an edited plan is rejected with the name of the step",
  async (t) => {
    const scratch = temporaryFolder(t);
    const file = path.join(scratch, "plan.json");
    await switchyard(["plan", MIXTRAL, "--mesh", "ep=2", "--out", file]);
    const plan = JSON.parse(readFileSync(file, "utf8")) as {
      programs: { steps: { op: string }[] }[];
    };
    const steps = plan.programs[0]!.steps;
    const at = steps.findIndex(({ op }) => op === "allToAll");
    steps.splice(at, 1);
    writeFileSync(file, JSON.stringify(plan));
    const verified = await switchyard(["verify", file, "--json"]);
    t.equal(verified.code, 1);
    const { ok, errors } = JSON.parse(verified.out) as {
      ok: boolean;
      errors: { step: string | null; rule: string; message: string }[];
    };
    t.equal(ok, false);
    t.ok(errors.length > 0 && errors.every(({ message }) => message !== ""));
    const inputs = path.join(scratch, "in.safetensors");
    await writeRaw(inputs, { input_ids: integers([1, 1], [5]) });
    const outputs = path.join(scratch, "out.safetensors");
    const run = await switchyard(
      ["run", file, "--inputs", inputs, "--outputs", outputs],
    );
    t.equal(run.code, 1);
    const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
    const broken = errors.find(({ step }) => step !== null)!;
    t.equal(run.err, `${broken.message}${more}\n`);
  },
);

t.test("an unreadable folder has exit code 1", async (t) => {
  const denied = Object.assign(new Error("EACCES"), { code: "EACCES" });
  const files = {
    ...nodeFiles(),
    list: (folder: string) => Promise.reject(fileError(denied, "read", folder)),
  };
  t.strictSame(await switchyard(["plan", MIXTRAL], files), {
    code: 1,
    out: "",
    err:
      `Cannot read '${MIXTRAL}': permission denied. Change its permissions\n`,
  });
});

t.test("a failed write leaves only the old file", async (t) => {
  const scratch = temporaryFolder(t);
  const file = path.join(scratch, "out");
  writeFileSync(file, "old");
  const files = nodeFiles();
  function* parts(): Generator<Uint8Array> {
    yield new Uint8Array(10);
    throw Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });
  }
  await t.rejects(files.write(file, parts()), {
    name: "MachineError",
    message: `Cannot write '${file}': the disk is full. Free some space`,
  });
  t.equal(readFileSync(file, "utf8"), "old");
  t.strictSame(await files.list(scratch), ["out"]);
  await files.write(file, [new TextEncoder().encode("new")]);
  t.equal(readFileSync(file, "utf8"), "new");
});
