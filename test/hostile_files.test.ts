// Untrusted files: special files are not waited for; long and unprintable names are shortened and escaped.
// needs: cpu
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { finishLine } from "../cli/flags/values.ts";
import { openSafetensors, writeSafetensors } from "../runtime/mod.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { printable, shown } from "../spec/mod.ts";
import { parseJson } from "../spec/parse_json.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import {
  CACHE,
  copyCheckpoint,
  floats,
  integers,
  type RawTensor,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { slowCompiler } from "./helpers/slow_compiler.ts";
import { readOnDisk, TEXT, tinyModel } from "./helpers/tiny_training.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const LAYER = fileURLToPath(new URL("../examples/layer.ts", import.meta.url));

/** Reason for skipping tests with named pipes, or false. */
const SKIP_PIPES = process.platform === "win32" &&
  "Windows has no pipes in its file system";

t.test(
  "a pipe is rejected without waiting",
  { skip: SKIP_PIPES },
  async (t) => {
    const scratch = temporaryFolder(t);
    const pipe = path.join(scratch, "pipe");
    t.equal(spawnSync("mkfifo", [pipe]).status, 0);
    const inputs = path.join(scratch, "in.safetensors");
    await writeRaw(inputs, { input_ids: integers([1, 3], [5, 6, 7]) });
    const out = path.join(scratch, "out.safetensors");
    const folder = await copyCheckpoint("mixtral-6e", scratch);
    const inside = (name: string) => {
      rmSync(path.join(folder, name), { force: true });
      t.equal(spawnSync("mkfifo", [path.join(folder, name)]).status, 0);
    };
    const refused = async (title: string, argv: string[], at = pipe) => {
      const { code, err } = await switchyard(argv);
      t.equal(code, 1, title);
      t.equal(err, `Cannot read '${at}': it is a pipe. Give a file\n`, title);
    };
    const run = ["run", MIXTRAL, "--inputs", inputs, "--outputs", out];
    await refused("inputs", run.with(3, pipe));
    await refused("a plan", ["verify", pipe]);
    await refused("a plan to run", ["run", pipe, ...run.slice(2)]);
    await refused("a model", ["check", pipe]);
    await refused("a trace", [...run, "--replay", pipe]);
    await refused("weights", [
      ...["run", LAYER, "--weights", pipe, "--adapter", "cpu"],
      ...run.slice(2),
    ]);
    await refused("hosts", ["launch", "-n", "1", "--hosts", pipe, "--", "run"]);
    await refused("texts", [
      ...["train", await tinyModel(t), "--out", path.join(scratch, "out")],
      ...["--steps", "1", "--data", pipe],
    ]);
    for (const name of ["model.safetensors", "config.json"]) {
      inside(name);
      const argv = ["run", folder, ...run.slice(2)];
      await refused(name, argv, path.join(folder, name));
    }
    const sharded = await copyCheckpoint("mixtral-6e", path.join(scratch, "s"));
    const shard = path.join(sharded, "part.safetensors");
    rmSync(path.join(sharded, "model.safetensors"));
    t.equal(spawnSync("mkfifo", [shard]).status, 0);
    writeFileSync(
      path.join(sharded, "model.safetensors.index.json"),
      JSON.stringify({ weight_map: { a: "part.safetensors" } }),
    );
    await refused("a shard", ["run", sharded, ...run.slice(2)], shard);
  },
);

t.test("devices and folders are not read as files", async (t) => {
  const folder = temporaryFolder(t);
  await t.rejects(files.readText("/dev/zero"), {
    name: "DataError",
    message: "Cannot read '/dev/zero': it is a device. Give a file",
  });
  const message = `Cannot read '${folder}': it is a folder. Give a file`;
  await t.rejects(files.readText(folder), { name: "DataError", message });
  await t.rejects(files.open(folder), { name: "DataError", message });
});

t.test("an unreadable tuner cache is ignored", async (t) => {
  const folder = path.join(CACHE, "switchyard");
  const file = path.join(folder, "tunings.json");
  const remove = () => rmSync(CACHE, { recursive: true, force: true });
  t.teardown(remove);
  const scratch = temporaryFolder(t);
  const inputs = path.join(scratch, "in.safetensors");
  await writeRaw(inputs, { input_ids: integers([1, 3], [5, 6, 7]) });
  const run = async (title: string, state: string, make: () => unknown) => {
    remove();
    mkdirSync(CACHE);
    make();
    const { code, err } = await switchyard([
      ...["run", MIXTRAL, "--adapter", "cpu", "--inputs", inputs],
      ...["--outputs", path.join(scratch, "out.safetensors")],
    ]);
    t.equal(err, `${state}. This run does without tunings\n`, title);
    t.equal(code, 0, title);
  };
  const wrong =
    `Cannot read tunings from '${file}': it is not JSON. Remove the file, or run 'switchyard tune' again`;
  for (const text of ["{", ""]) {
    await run(`'${text}'`, wrong, () => {
      mkdirSync(folder);
      writeFileSync(file, text);
    });
  }
  await run(
    "a file where the folder should be",
    `Cannot read '${file}': a part of the path is not a folder. Check the path`,
    () => writeFileSync(folder, ""),
  );
  await run(
    "a folder",
    `Cannot read '${file}': it is a folder. Give a file`,
    () => mkdirSync(file, { recursive: true }),
  );
  if (SKIP_PIPES) return t.comment(`A pipe is not tested: ${SKIP_PIPES}`);
  await run(
    "a pipe",
    `Cannot read '${file}': it is a pipe. Give a file`,
    () => {
      mkdirSync(folder);
      spawnSync("mkfifo", [file]);
    },
  );
});

/** A safetensors file with the given header. */
function withHeader(text: string, data = 0): Uint8Array {
  const head = new TextEncoder().encode(text);
  const bytes = new Uint8Array(8 + head.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(head.length), true);
  bytes.set(head, 8);
  return bytes;
}

async function open(bytes: Uint8Array) {
  return await openSafetensors([{
    name: "f",
    size: bytes.length,
    read: (from, n) => Promise.resolve(bytes.subarray(from, from + n)),
  }]);
}

t.test("long headers are read, and duplicate names rejected", async (t) => {
  const x = '"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}';
  for (const piece of ["a", "\\n", '\\"', "{", "[", "é"]) {
    const note = piece.repeat(20e6 / new TextEncoder().encode(piece).length);
    const header = `{"__metadata__":{"note":"${note}"},${x}}`;
    t.strictSame([...(await open(withHeader(header))).keys()], ["x"], piece);
  }
  await t.rejects(open(withHeader(`{${x}${" ".repeat(1e6)},${x}}`)), {
    message: "Cannot open 'f': its header names 'x' twice. Get the file again",
  });
  const spaced = x.replace(":", `${" ".repeat(1000)}:`);
  await t.rejects(open(withHeader(`{${x},${spaced}}`)), /names 'x' twice/);
});

t.test("tensor names are shortened and printable", async (t) => {
  const entry = (name: string, dtype = "F32") =>
    `${
      JSON.stringify(name)
    }:{"dtype":"${dtype}","shape":[1],"data_offsets":[0,4]}`;
  const long = "x".repeat(100_000);
  const half = "x".repeat(100);
  await t.rejects(open(withHeader(`{${entry(long, "F99")}}`, 4)), {
    message:
      `Cannot open 'f': its tensor '${half}…(99800 more)…${half}' has the unknown dtype "F99". Get the file again`,
  });
  const scratch = temporaryFolder(t);
  const folder = await copyCheckpoint("mixtral-6e", scratch);
  const name = "\u001b[2J\n\u202egnp.exe";
  writeFileSync(
    path.join(folder, "more.safetensors"),
    withHeader(`{${entry(name)}}`, 4),
  );
  copyFileSync(
    path.join(folder, "model.safetensors"),
    path.join(folder, "main.safetensors"),
  );
  rmSync(path.join(folder, "model.safetensors"));
  rmSync(path.join(folder, "reference.safetensors"));
  const { code, err } = await switchyard(["check", folder]);
  t.equal(
    err,
    `Cannot load '${folder}': tensor '\\u{1b}[2J\\u{a}\\u{202e}gnp.exe' is not part of the model. Remove it, or check that the model is the right one\n`,
  );
  t.equal(code, 1);
  t.equal(shown("ok 1, ñ, 漢"), "ok 1, ñ, 漢");
  t.equal(printable("a\n\tb\u0007"), "a\n\tb\\u{7}");
});

t.test("inputs that are NaN or oddly named are rejected by name", async (t) => {
  const scratch = temporaryFolder(t);
  const file = path.join(scratch, "in.safetensors");
  const model = path.join(scratch, "m.ts");
  writeFileSync(
    model,
    `import { add, model } from "switchyard-moe";
export const m = model({ a: 2, b: 3 }, (m) => ({ y: add(m.input("x", "a b"), 1) }));
`,
  );
  const out = path.join(scratch, "out.safetensors");
  const run = async (inputs: { readonly [name: string]: RawTensor }) => {
    await writeRaw(file, inputs);
    return await switchyard([
      ...["run", model, "--inputs", file, "--outputs", out],
      ...["--adapter", "cpu"],
    ]);
  };
  const x = floats([2, 3], 1);
  t.equal((await run({ x })).code, 0);
  const values = new Float32Array([0, 1, Infinity, 3, NaN, 5]);
  const bad = { ...x, data: new Uint8Array(values.buffer) };
  t.strictSame(await run({ x: bad }), {
    code: 1,
    out: "",
    err:
      "Cannot run program 'main': the input 'x' is NaN at [1, 1]. Give it numbers\n",
  });
  values[4] = -Infinity;
  t.equal(
    (await run({ x: bad })).code,
    0,
    "infinities are accepted, as masks use them",
  );
  for (const name of ["__proto__", "constructor", "toString"]) {
    t.strictSame(await run(Object.fromEntries([["x", x], [name, x]])), {
      code: 1,
      out: "",
      err:
        `Cannot run program 'main': it has no input '${name}'. Its inputs are 'x'\n`,
    });
    const written = writeSafetensors(Object.fromEntries([[name, {
      dtype: "f32" as const,
      shape: [1],
      data: new Float32Array(1),
    }]]));
    t.strictSame([...(await open(written)).keys()], [name]);
  }
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  t.test(`${signal} ends a training after a saved step`, {
    skip: process.platform === "win32" && "Windows has no signals",
  }, async (t) => {
    const out = path.join(temporaryFolder(t), "out");
    const child = spawn(process.execPath, [
      fileURLToPath(new URL("../bin/switchyard.mjs", import.meta.url)),
      ...["train", await tinyModel(t), "--data", TEXT, "--out", out, "--json"],
      ...["--steps", "1000000", "--batch", "2", "--length", "8"],
      ...["--adapter", "cpu"],
    ], { stdio: ["ignore", "pipe", "pipe"] });
    let err = "";
    child.stderr.setEncoding("utf8").on("data", (text) => err += text);
    await once(child.stdout, "data");
    child.stdout.resume();
    child.kill(signal);
    const [code, by] = await once(child, "close");
    t.strictSame({ code, by, err }, {
      code: 128 + constants.signals[signal],
      by: null,
      err: "Stopping after this step; interrupt again to stop immediately\n",
    });
    const { step } = await readOnDisk(out);
    const lines = readFileSync(path.join(out, "metrics.jsonl"), "utf8").trim();
    t.equal(step, JSON.parse(lines.split("\n").at(-1)!).step, "the last step");
  });
}

t.test("a rank asked to stop in its last step has finished", async (t) => {
  const job = temporaryFolder(t);
  writeFileSync(path.join(job, "stop"), "");
  const model = await tinyModel(t);
  for (const [steps, left] of [["1", false], ["2", true]] as const) {
    const { code, out } = await switchyard([
      ...["train", model, "--data", TEXT, "--steps", steps, "--batch", "2"],
      ...["--length", "8", "--adapter", "cpu", "--job", job],
      ...["--out", path.join(job, `out${steps}`)],
    ]);
    t.equal(code, 0);
    t.equal(out.trimEnd().split("\n").at(-1), finishLine(job, { left }));
  }
});

t.test("Ctrl-C ends a training during kernel compilation, without a message", {
  skip: await whyNotNative() ?? false,
}, async (t) => {
  const scratch = temporaryFolder(t);
  const model = await tinyModel(t);
  const compiler = slowCompiler(scratch);
  const child = spawn(process.execPath, [
    fileURLToPath(new URL("../bin/switchyard.mjs", import.meta.url)),
    ...["train", model, "--data", TEXT, "--steps", "9", "--adapter", "native"],
    ...["--out", path.join(scratch, "out"), "--batch", "2", "--length", "8"],
  ], {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...compiler.env },
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => said += text);
  }
  const ended = once(child, "close");
  await compiler.started(() => child.exitCode !== null);
  // A terminal sends it to all processes of a group, including the C compiler.
  process.kill(-child.pid!, "SIGINT");
  const [code, by] = await ended;
  t.strictSame({ code, by, said }, { code: null, by: "SIGINT", said: "" });
});

t.test("JSON is at most 500 levels deep in any file", async (t) => {
  const deep = (levels: number) => "[".repeat(levels) + "]".repeat(levels);
  t.same(parseJson(deep(500)), JSON.parse(deep(500)));
  const scratch = temporaryFolder(t);
  const text = deep(100_000);
  const file = path.join(scratch, "deep.json");
  writeFileSync(file, text);
  const header = path.join(scratch, "deep.safetensors");
  writeFileSync(header, withHeader(`{"x":${text}}`));
  const folders = await copyCheckpoint("demo-lm", scratch);
  const inFolder = (name: string) => {
    const folder = path.join(scratch, name);
    cpSync(folders, folder, { recursive: true });
    const at = path.join(folder, name);
    const before = existsSync(at) ? readFileSync(at, "utf8") : "{}";
    writeFileSync(
      at,
      before.replace("{", `{"deep":${text},`).replace(",}", "}"),
    );
    return folder;
  };
  const INDEX = "model.safetensors.index.json";
  const says: { readonly [title: string]: readonly [string[], string] } = {
    "a plan": [
      ["verify", path.join(scratch, "plan.json")],
      `Cannot read '${path.join(scratch, "plan.json")}': '/deep/0/`,
    ],
    "a machine": [
      ["plan", LAYER, "--target", file],
      `Cannot read the machine file '${file}': it is`,
    ],
    "logits": [
      ["routers", "--logits", file],
      `Cannot read '${file}': it is`,
    ],
    "a trace": [
      ["view", LAYER, "--trace", file, "--out", path.join(scratch, "out")],
      `Cannot show trace '${file}': it is`,
    ],
    "inputs": [
      [
        "run",
        LAYER,
        "--inputs",
        header,
        "--outputs",
        path.join(scratch, "out"),
      ],
      `Cannot open '${header}': its header is`,
    ],
    ...Object.fromEntries(
      [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        INDEX,
      ]
        .map((name) => {
          const folder = inFolder(name);
          const argv = [
            "generate",
            folder,
            "--prompt",
            "Once",
            "--adapter",
            "cpu",
          ];
          return [
            name,
            [
              [...argv, "--max-new-tokens", "1"],
              `Cannot read '${path.join(folder, name)}': it is`,
            ] as const,
          ];
        }),
    ),
  };
  writeFileSync(
    path.join(scratch, "plan.json"),
    `{"version":2,"deep":${text}}`,
  );
  for (const [title, [argv, begin]] of Object.entries(says)) {
    const { code, err } = await switchyard(argv);
    t.equal(code, 1, title);
    t.ok(
      err.startsWith(begin) &&
        /is nested deeper than 500( levels)?\. /.test(err),
      `${title}: ${err.slice(0, 300)}`,
    );
  }
});
