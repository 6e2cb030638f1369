// Arguments of the command line: exit code 2 for bad ones, and the output of each command.
// needs: cpu
import { spawn } from "node:child_process";
import { openSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { deviceOptions } from "../cli/commands/options.ts";
import { OTHER_NAMES } from "../cli/flags/other_names.ts";
import { processIo } from "../cli/io.ts";
import { createProgram } from "../cli/program.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  type Finished,
  switchyard,
  temporaryFolder,
  withOutput,
} from "./helpers/cli.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const LAYER = fileURLToPath(new URL("../examples/layer.ts", import.meta.url));
const BIN = fileURLToPath(new URL("../bin/switchyard.mjs", import.meta.url));

const USAGE: readonly (readonly [string, string])[] = [
  ["", "Cannot run 'switchyard': there is no command. See 'switchyard --help'"],
  [
    "fly",
    "Cannot run the command: unknown command 'fly'. See 'switchyard --help'",
  ],
  [
    "convert x",
    "Cannot run the command: unknown command 'convert'. Give quantize, or see 'switchyard --help'",
  ],
  [
    "quantize x y.gguf --to q8_0",
    "Cannot run the command: too many arguments for 'quantize'. Expected 1 argument but got 2. Give the output with --out, or see 'switchyard quantize --help'",
  ],
  [
    "plan",
    "Cannot run the command: missing required argument 'model'. See 'switchyard plan --help'",
  ],
  [
    "plan x.ts --fast",
    "Cannot run the command: unknown option '--fast'. See 'switchyard plan --help'",
  ],
  [
    "plan x.ts --mush ep=2",
    "Cannot run the command: unknown option '--mush'. Give --mesh, or see 'switchyard plan --help'",
  ],
  [
    "plan x.ts --mush ep=2 --fast --max_tokens=4 --mesh dp=2 --low -1",
    "Cannot run the command: unknown options '--mush', '--fast', '--max_tokens=4', '--low'. For '--mush', give --mesh; for '--max_tokens=4', give --max-tokens, or see 'switchyard plan --help'",
  ],
  [
    "generate x --temp 1 -ngl 3",
    "Cannot run the command: unknown options '--temp', '-ngl'. For '--temp', give --temperature; for '-ngl', give --adapter, or see 'switchyard generate --help'",
  ],
  [
    "plan x.ts --fast --faster",
    "Cannot run the command: unknown options '--fast', '--faster'. See 'switchyard plan --help'",
  ],
  [
    "plan x.ts --max_tokens 4",
    "Cannot run the command: unknown option '--max_tokens'. Give --max-tokens, or see 'switchyard plan --help'",
  ],
  [
    "plan x.ts --tensor-parallel-size=2",
    "Cannot run the command: unknown option '--tensor-parallel-size=2'. Give --mesh tp=N, or see 'switchyard plan --help'",
  ],
  [
    "generate x --temp 0.5",
    "Cannot run the command: unknown option '--temp'. Give --temperature, or see 'switchyard generate --help'",
  ],
  [
    "generate x --threads-batch 4",
    "Cannot run the command: unknown option '--threads-batch'. Give --threads, or see 'switchyard generate --help'",
  ],
  [
    "generate x -ngl 99",
    "Cannot run the command: unknown option '-ngl'. Give --adapter, or see 'switchyard generate --help'",
  ],
  [
    "generate x -t 0",
    "Cannot use --threads '0'. Give a whole number from 1 to 256",
  ],
  [
    "serve --model x",
    "Cannot run the command: unknown option '--model'. Give the checkpoint without an option, or see 'switchyard serve --help'",
  ],
  [
    "serve x --api-key one --api-key=",
    "Cannot use --api-key: the key is empty, or has white space or characters that are not ASCII. Give another key",
  ],
  [
    "serve x --cors page.example",
    "Cannot use --cors 'page.example'. Give an origin such as http://localhost:3000, or '*'",
  ],
  [
    "serve x --cors http://page.example/",
    "Cannot use --cors 'http://page.example/'. Give an origin such as http://localhost:3000, or '*'",
  ],
  [
    "generate -hf x",
    "Cannot run the command: unknown option '-hf'. Give the checkpoint without an option, or see 'switchyard generate --help'",
  ],
  [
    "generate x hello",
    "Cannot run the command: too many arguments for 'generate'. Expected 1 argument but got 2. Give a prompt with --prompt, or see 'switchyard generate --help'",
  ],
  [
    "generate x -tp 2",
    "Cannot run the command: unknown option '-tp'. Give --mesh tp=N, or see 'switchyard generate --help'",
  ],
  [
    "generate x --do-sample",
    "Cannot run the command: unknown option '--do-sample'. Give --temperature, or see 'switchyard generate --help'",
  ],
  [
    "generate x --max_length 20",
    "Cannot run the command: unknown option '--max_length'. Give --max-new-tokens, or see 'switchyard generate --help'",
  ],
  [
    "train x --out y --max_length 20",
    "Cannot run the command: unknown option '--max_length'. Give --length, or see 'switchyard train --help'",
  ],
  [
    "generate x --quantization awq",
    "Cannot run the command: unknown option '--quantization'. Leave it out: weights keep the encoding of their files, or see 'switchyard generate --help'",
  ],
  [
    "generate x -cnv",
    "Cannot run the command: unknown option '-cnv'. Use 'switchyard chat', or see 'switchyard generate --help'",
  ],
  // 'plan' has no --temperature.
  [
    "plan x.ts --temp 0.5",
    "Cannot run the command: unknown option '--temp'. See 'switchyard plan --help'",
  ],
  [
    "plan x.ts --mesh",
    "Cannot run the command: option '--mesh <axes>' argument missing. See 'switchyard plan --help'",
  ],
  [
    "plan x.ts y.ts",
    "Cannot plan 'y.ts' too: a plan is of one model. Give one, or compare two with --diff",
  ],
  [
    "run x.ts --outputs y",
    "Cannot run the model: --inputs is missing. Give a file, or --random for random inputs",
  ],
  [
    "run x.ts --inputs y",
    "Cannot run the model: --outputs is missing. Give a file, or --random to print a summary",
  ],
  [
    "plan x.ts --mesh ep",
    "Cannot use --mesh 'ep'. Give AXIS=SIZE, such as ep=4,dp=2",
  ],
  [
    "plan x.ts --mesh ep=4,",
    "Cannot use --mesh 'ep=4,'. Give AXIS=SIZE, such as ep=4,dp=2",
  ],
  [
    "plan x.ts --mesh ep=0",
    "Cannot use --mesh 'ep=0': the size of 'ep' is '0'. Give a whole number from 1 to 4096",
  ],
  [
    "plan x.ts --mesh ep=2,ep=2",
    "Cannot use --mesh 'ep=2,ep=2': 'ep' appears twice. Give it once",
  ],
  [
    "plan x.ts --place expert",
    "Cannot use --place 'expert'. Give TENSORAXIS=MESHAXIS, such as expert=ep,token=dp+ep",
  ],
  [
    "plan x.ts --place token=dp+",
    "Cannot use --place 'token=dp+'. Give TENSORAXIS=MESHAXIS, such as expert=ep,token=dp+ep",
  ],
  [
    "plan x.ts --max-tokens 1.5",
    "Cannot use --max-tokens '1.5'. Give a whole number from 1 to 16777216",
  ],
  // Limits of each dimension are in spec/limits.ts.
  [
    "plan x.ts --max-context 4000000000",
    "Cannot use --max-context '4000000000'. Give a whole number from 1 to 16777216",
  ],
  [
    "search x --target y --max-context 16777217",
    "Cannot use --max-context '16777217'. Give a whole number from 1 to 16777216",
  ],
  [
    "generate x --max-sequences 1e99",
    "Cannot use --max-sequences '1e99'. Give a whole number from 1 to 16777216",
  ],
  [
    "train x --data a --out b --steps 1 --batch 99999999999999999999",
    "Cannot use --batch '99999999999999999999'. Give a whole number from 1 to 16777216",
  ],
  [
    "train x --data a --out b --steps 1 --length 16777217",
    "Cannot use --length '16777217'. Give a whole number from 1 to 16777216",
  ],
  [
    "plan x.ts --chunks 1025",
    "Cannot use --chunks '1025'. Give a whole number from 1 to 1024",
  ],
  [
    "plan x.ts --mesh ep=4097",
    "Cannot use --mesh 'ep=4097': the size of 'ep' is '4097'. Give a whole number from 1 to 4096",
  ],
  [
    "search x --target y --ranks 4000000000",
    "Cannot use --ranks '4000000000'. Give a whole number from 1 to 4096",
  ],
  [
    "launch -n 4000000000 -- run x",
    "Cannot use -n '4000000000'. Give a whole number from 1 to 4096",
  ],
  [
    "plan x.ts --limits maxBufferSize=9007199254740992",
    "Cannot use --limits maxBufferSize '9007199254740992'. Give a whole number from 1 to 9007199254740991",
  ],
  [
    "run x.ts --inputs a --outputs b --devices many",
    "Cannot use --devices 'many'. Give shared, separate, mpi",
  ],
  [
    "train x --out y --steps 1 --accumulate 4000000000",
    "Cannot use --accumulate '4000000000'. Give a whole number from 1 to 4096",
  ],
  [
    "plan x.ts --pages 512",
    "Cannot use --pages '512'. Give pages and the positions of each, such as 512x16",
  ],
  [
    "plan x.ts --pages 16777217x16",
    "Cannot use --pages '16777217'. Give a whole number from 1 to 16777216",
  ],
  [
    "run x.ts --inputs a --outputs b --adapter fast",
    "Cannot use --adapter 'fast'. Give auto, cpu, native, or numbers from 'switchyard devices', such as 0,1",
  ],
  [
    "generate x",
    "Cannot generate: there is no prompt. Give --prompt TEXT (- for standard input), --prompt-file FILE or --tokens IDS",
  ],
  [
    "generate x --prompt a --system b",
    "Cannot use --system without --chat: there is no conversation. Give --chat",
  ],
  [
    "generate x --chat --tokens 1",
    "Cannot use --tokens with --chat: messages are texts. Give --prompt TEXT",
  ],
  [
    "generate x --prompts a --prompt-file b",
    "Cannot use --prompts with --prompt-file: one has a prompt on each line, the other is a prompt. Give one of them",
  ],
  [
    "generate x --tokens 1,b",
    "Cannot use --tokens '1,b'. Give token ids, such as 1,2,3",
  ],
  [
    "generate x --tokens 1 --max-new-tokens 0",
    "Cannot use --max-new-tokens '0'. Give a whole number from 1 to 4294967295",
  ],
  [
    "generate x --tokens 1 --temperature -1",
    "Cannot use --temperature '-1'. Give a number of at least 0",
  ],
  [
    "generate x --tokens 1 --temperature 1 --top-p 1.1",
    "Cannot use --top-p '1.1'. Give a number above 0, at most 1",
  ],
  [
    "generate x --tokens 1 --top-k 4",
    "Cannot use --top-k without --temperature: tokens are then chosen greedily. Give --temperature",
  ],
  [
    "chat x --seed 4",
    "Cannot use --seed without --temperature: tokens are then chosen greedily. Give --temperature",
  ],
  [
    "generate x --tokens 1 --seed -1",
    "Cannot use --seed '-1'. Give a whole number from 0 to 4294967295",
  ],
  [
    "plan x --mesh ep=1 --mesh ep=2",
    "Cannot use --mesh several times: there is one mesh. Give its axes in one, such as ep=4,dp=2",
  ],
  [
    "generate x --tokens 1 -n 1 -n 2 --mesh ep=2 --mesh dp=2",
    "Cannot use --mesh several times: there is one mesh. Give its axes in one, such as ep=4,dp=2",
  ],
  [
    `plan ${LAYER} --max-tokens 3`,
    "Cannot use --max-tokens with a model file: its bounds are in the file. Leave it out",
  ],
  [
    `view ${LAYER} --run --trace a`,
    "Cannot use --run with --trace: a run in the page replaces the recorded one. Leave one of them out",
  ],
  [
    `plan ${LAYER} ${LAYER} --diff --json`,
    "Cannot use --json with --diff: differences are printed as text. Leave it out",
  ],
  [
    `plan ${LAYER} --pipeline gpipe`,
    "Cannot use --pipeline without --train: it is a training setting. Leave it out, or give --train",
  ],
  [
    "generate x --tokens 1 --pipeline gpipe",
    "Cannot run the command: unknown option '--pipeline'. See 'switchyard generate --help'",
  ],
  [
    `run ${LAYER} --random --allow-kernels`,
    "Cannot use --allow-kernels with a model: its kernels are compiled from it. Leave it out",
  ],
  [
    "quantize x --to q8_0 --window 4",
    "Cannot use --window without --text or --importance: the model does not run. Leave it out, or give one of them",
  ],
  [
    "routers --logits a.json --tensor b",
    "Cannot use --tensor with a JSON file: it has one list of rows. Leave it out",
  ],
  [
    "devices --preload",
    "Cannot use --preload without --all: the list has every adapter. Add --all to measure",
  ],
  [
    `train ${MIXTRAL} --data a --out b --steps 1 --validate-every 1`,
    "Cannot use --validate-every without --validate or --validate-split: there is no validation data. Give one of them",
  ],
  [
    `train ${MIXTRAL} --data a --out b --steps 1 --validate c --validate-batches 1`,
    "Cannot use --validate-batches without --validate-every: the last validation uses all batches. Give --validate-every",
  ],
  [
    `train ${MIXTRAL} --reward a --prompts c --out b --steps 1 --validate-every 1`,
    "Cannot use --validate-every with --reward: samples are the data. Leave it out",
  ],
  [
    `run ${MIXTRAL} --inputs a --outputs b --adapter 0,1`,
    "Cannot use --adapter 0,1 with shared devices: all ranks are on one. Give one number, or --devices separate",
  ],
];

t.test("errors with --json are text on standard error", async (t) => {
  for (
    const [argv, exit, error] of [
      [["plan", "none.ts"], 1, /^Cannot read 'none\.ts': [^\n]*\n$/],
      [["generate", MIXTRAL], 2, /^Cannot generate: [^\n]*\n$/],
    ] as const
  ) {
    const { code, out, err } = await switchyard([...argv, "--json"]);
    t.strictSame([code, out], [exit, ""]);
    t.match(err, error);
  }
});

t.test("an invalid command line has exit code 2", async (t) => {
  for (const [line, message] of USAGE) {
    const { code, out, err } = await switchyard(
      line.split(" ").filter(Boolean),
    );
    t.strictSame({ code, out, err }, { code: 2, out: "", err: `${message}\n` });
  }
});

t.test("replacements of other programs' options are options of a command", (t) => {
  const { commands } = createProgram(processIo(), {
    finish() {},
    print() {},
  });
  const options = new Set(
    commands.flatMap((command) => command.options.map(({ long }) => long)),
  );
  for (const [name, others] of Object.entries(OTHER_NAMES)) {
    for (const other of [others].flat()) {
      const [option] = other.split(" ");
      t.ok(option === "" || options.has(option), `${name}: ${other}`);
    }
  }
  t.end();
});

t.test("--threads sets the number of threads", async (t) => {
  await withOutput((io) => {
    const flags = { devices: "shared", adapter: "cpu" } as const;
    t.equal(deviceOptions(io, flags).threads, io.threads);
    t.equal(deviceOptions(io, { ...flags, threads: 5 }).threads, 5);
    return Promise.resolve(0);
  });
  const [one, five] = await Promise.all(["1", "5"].map((threads) =>
    switchyard([
      ...["generate", checkpointFolder("demo-lm"), "--adapter", "cpu"],
      ...["-p", "The fox", "-n", "4", "-t", threads],
    ])
  ));
  t.equal(one!.code, 0, one!.err);
  t.strictSame(five, one, "the same text");
});

t.test("help and version have exit code 0 and print on standard output", async (t) => {
  for (const line of ["--help", "plan --help", "help run", "--version"]) {
    const { code, out, err } = await switchyard(line.split(" "));
    t.strictSame({ code, err }, { code: 0, err: "" }, line);
    t.match(out, /Usage: switchyard|^\d+\.\d+\.\d+\n$/, line);
  }
  const { out } = await switchyard(["train", "--help"]);
  t.match(out, /--clip <norm> +Gradient clipping by global norm/);
});

t.test("check reports no mistakes in examples", async (t) => {
  const plain = await switchyard(["check", MIXTRAL]);
  t.strictSame(plain, {
    code: 0,
    out: `${MIXTRAL} has no mistakes\n`,
    err: "",
  });
  const json = await switchyard(["check", MIXTRAL, "--json"]);
  t.strictSame(JSON.parse(json.out), { ok: true, errors: [] });
});

t.test("plan prints text and writes a document that verify reads", async (t) => {
  const file = path.join(temporaryFolder(t), "plan.json");
  const text = await switchyard(
    ["plan", MIXTRAL, "--mesh", "ep=4", "--full", "--out", file],
  );
  t.equal(text.code, 0);
  t.match(text.out, /dispatch .* over ep/);
  const json = await switchyard(
    ["plan", MIXTRAL, "--mesh", "ep=4", "--json", "--full"],
  );
  t.equal(json.out, readFileSync(file, "utf8"), "the same document");
  const again = await switchyard(["plan", file, "--full"]);
  t.equal(again.out, text.out, "a saved plan prints the same");
  t.strictSame(await switchyard(["verify", file]), {
    code: 0,
    out: `${file} is legal\n`,
    err: "",
  });
  const verified = await switchyard(["verify", file, "--json"]);
  t.strictSame(JSON.parse(verified.out), { ok: true, errors: [] });
  const mesh = await switchyard(["plan", file, "--mesh", "ep=2"]);
  t.strictSame([mesh.code, mesh.err], [
    2,
    "Cannot use --mesh with a plan: a plan has its mesh and its bounds. Leave it out, or compile the model again\n",
  ]);
});

t.test("devices names the adapter that commands use", async (t) => {
  const { code, out } = await switchyard(["devices", "--json"]);
  t.equal(code, 0);
  const { adapters, chosen } = JSON.parse(out) as {
    adapters: { number: number; limits: object; features: string[] }[];
    chosen: { adapter: number | "cpu"; why: string };
  };
  t.strictSame(adapters.map(({ number }) => number), [...adapters.keys()]);
  t.match(chosen, { why: /./ });
  const plain = await switchyard(["devices"]);
  t.match(plain.out, /^auto uses (cpu|native|adapter \d+): /m);
});

/** Runs the program in a process with the given standard output. */
function spawned(
  argv: readonly string[],
  stdout: "pipe" | number,
  use?: (child: ReturnType<typeof spawn>) => void,
): Promise<Finished> {
  const child = spawn(process.execPath, [BIN, ...argv], {
    stdio: ["ignore", stdout, "pipe"],
  });
  let err = "";
  child.stderr?.on("data", (data) => err += String(data));
  use?.(child);
  return new Promise((resolve) =>
    child.on("close", (code) => resolve({ code: code ?? -1, out: "", err }))
  );
}

t.test("a closed output pipe has exit code 0", async (t) => {
  const finished = await spawned(
    ["plan", MIXTRAL, "--json", "--full"],
    "pipe",
    (child) => child.stdout?.destroy(),
  );
  t.strictSame(finished, { code: 0, out: "", err: "" });
});

t.test("standard output on a full disk has exit code 3", {
  skip: process.platform === "linux" ? false : "there is no /dev/full",
}, async (t) => {
  const finished = await spawned(
    ["plan", MIXTRAL, "--json", "--full"],
    openSync("/dev/full", "w"),
  );
  t.strictSame(finished, {
    code: 3,
    out: "",
    err: "Cannot write 'standard output': the disk is full. Free some space\n",
  });
});
