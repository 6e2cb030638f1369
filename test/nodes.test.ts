// Each command under every supported major version of Node.js and Deno, most commands of a runtime in one process.
// By SEED, one of the runtimes runs all commands, and another those whose files are compared.
// needs: cpu, gpu, mpi
// rotates with: bin/, scripts/bundle.mjs
import { type ChildProcess, spawn } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import { text } from "node:stream/consumers";
import t, { type Test } from "tap";
import { floats, temporaryFolder, writeRaw } from "./helpers/cli.ts";
import { clonePath, COMMAND } from "./helpers/compiled.ts";
import { readPage, writeShownFiles } from "./helpers/guide.ts";
import { skipWithoutMpi } from "./helpers/mpi.ts";
import { skipWithoutGpu } from "./helpers/needs.ts";
import { serveHub } from "./helpers/hub_server.ts";
import { type Runtime, RUNTIMES } from "./helpers/nodes.ts";
import { addressIn, serverAt } from "./helpers/serve.ts";
import { inTurn, isInTurn } from "./helpers/seed.ts";

/** A command, with the reason for skipping it, or false. `isCompared`: runtimes must write the same files. */
interface Case {
  readonly argv: readonly string[];
  readonly skip?: false | string;
  readonly isCompared?: true;
}

/** A process: a program of this clone with its arguments. */
interface Program {
  readonly argv: readonly string[];
  /** Default: the command. */
  readonly program?: string;
  readonly input?: string;
  readonly env?: { readonly [name: string]: string };
}

const DEMO = "node_modules/switchyard-moe/examples/demo-lm";

/** Commands that start processes. */
const STARTED: readonly Case[] = [
  { argv: ["devices"] },
  {
    argv: [
      ...["launch", "-n", "2", "--", "run", "layer.ts", "--random"],
      ...["--mesh", "ep=2", "--adapter", "cpu", "--outputs", "launched"],
    ],
    skip: skipWithoutMpi,
    isCompared: true,
  },
];

/** Input of `chat`. */
const INPUT = "Hello\n";

/** Commands without a test of their own. Their files come from a guide or from earlier cases. */
const CASES: readonly Case[] = [
  {
    argv: [
      ...["run", "layer.ts", "--random", "--mesh", "ep=4"],
      ...["--adapter", "cpu", "--outputs", "y"],
    ],
    isCompared: true,
  },
  {
    argv: [
      ...["train", "twins.ts", "--tokenizer", "tokenizer"],
      ...["--data", "text.txt"],
      ...["--steps", "1", "--batch", "1", "--length", "16"],
      ...["--adapter", "cpu", "--out", "twins"],
    ],
    isCompared: true,
  },
  {
    argv: ["plan", "layer.ts", "--mesh", "ep=2", "--out", "plan.json"],
    isCompared: true,
  },
  { argv: ["verify", "plan.json"] },
  { argv: ["view", "layer.ts", "--mesh", "ep=2"] },
  { argv: ["routers", "--logits", "logits"] },
  { argv: ["run", "plan.json", "--random", "--adapter", "native"] },
  {
    argv: ["run", "layer.ts", "--random", "--adapter", "0"],
    skip: skipWithoutGpu,
  },
  {
    argv: [
      ...["generate", DEMO, "-p", "One", "-n", "2", "--adapter", "native"],
      ...["--speculate", "2", "--receipt", "receipt.json"],
    ],
  },
  { argv: ["replay", "receipt.json", "--adapter", "native"] },
  {
    argv: [
      ...["perplexity", DEMO, "text.txt", "--max-context", "64"],
      ...["--adapter", "cpu"],
    ],
  },
  {
    argv: ["quantize", DEMO, "--to", "q8_0", "--out", "demo.gguf"],
    isCompared: true,
  },
  {
    argv: [
      ...["train", DEMO, "--data", "text.txt", "--out", "adapters"],
      ...["--steps", "1", "--batch", "1", "--length", "16"],
      ...["--lora", "rank=2,targets=q_proj", "--adapter", "cpu"],
    ],
  },
  { argv: ["merge", DEMO, "--lora", "adapters", "--out", "merged"] },
  {
    argv: [
      ...["chat", "twins", "--family", "./twins.ts", "-n", "2"],
      ...["--adapter", "cpu"],
    ],
  },
  { argv: ["search", `${DEMO}/config.json`, "--target", "8xh100"] },
];

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

function start(
  runtime: Runtime,
  folder: string,
  { argv, program = COMMAND, env = {} }: Program,
) {
  return spawn(runtime.program, [...runtime.argv, program, ...argv], {
    cwd: folder,
    // Ranks of a job run this program too.
    env: {
      ...process.env,
      PATH: `${path.dirname(runtime.program)}:${process.env["PATH"]}`,
      ...env,
    },
  });
}

async function run(
  runtime: Runtime,
  folder: string,
  program: Program,
): Promise<Ended> {
  const child = start(runtime, folder, program);
  child.stdin.end(program.input ?? "");
  const ended = new Promise<number | null>((resolve) =>
    child.on("close", resolve)
  );
  const [out, err] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
  ]);
  return { code: await ended, out, err };
}

/** Reads the next line that a process prints. */
async function nextLine(child: ChildProcess): Promise<string> {
  let line = "";
  for await (const part of child.stdout!.iterator({ destroyOnReturn: false })) {
    line += part;
    if (line.endsWith("\n")) break;
  }
  return line;
}

/** Files written by the first runtime, by name; other runtimes must write the same bytes. */
const firstFiles = new Map<string, Buffer>();

function compare(t: Test, folder: string, name: string): void {
  const bytes = readFileSync(path.join(folder, name));
  const first = firstFiles.get(name);
  if (first) t.ok(first.equals(bytes), `the same bytes in ${name}`);
  else firstFiles.set(name, bytes);
}

const installed = RUNTIMES.filter(({ skip }) => !skip);
/**
 * One of the installed runtimes, by SEED, which runs all commands, and another one, so that their files are compared.
 */
const COMPLETE = inTurn(installed, installed.length);
const OTHER = installed.filter((_, i) => isInTurn(i + 1, installed.length));

t.jobs = 2;
for (const runtime of RUNTIMES) {
  const isComplete = COMPLETE.includes(runtime);
  if (!runtime.skip && !isComplete && !OTHER.includes(runtime)) continue;
  const selected = (cases: readonly Case[]) =>
    cases.filter(({ isCompared }) => isComplete || isCompared);
  const { name, skip } = runtime;
  t.test(name, { skip, buffered: true }, async (t) => {
    const folder = temporaryFolder(t);
    mkdirSync(path.join(folder, "node_modules"));
    symlinkSync(
      clonePath("."),
      path.join(folder, "node_modules/switchyard-moe"),
      "junction",
    );
    writeShownFiles(readPage("own_model.md"), folder);
    const started = new Set<string>();

    mkdirSync(path.join(folder, "tokenizer"));
    for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
      copyFileSync(
        clonePath(`examples/demo-lm/${file}`),
        path.join(folder, "tokenizer", file),
      );
    }
    writeFileSync(
      path.join(folder, "tokenizer/chat_template.jinja"),
      "{% for message in messages %}{{ message.content }}{% endfor %}",
    );
    writeFileSync(
      path.join(folder, "text.txt"),
      "Once upon a time. ".repeat(9),
    );
    await writeRaw(path.join(folder, "logits"), {
      logits: floats([4, 8], 1),
    });
    const cases = selected(CASES);
    const asked = cases.filter(({ skip }) => !skip);
    const file = path.join(folder, "commands.json");
    writeFileSync(file, JSON.stringify(asked.map(({ argv }) => argv)));
    const all = await run(runtime, folder, {
      program: clonePath("test/helpers/commands.mjs"),
      argv: [file],
      input: INPUT,
    });
    t.notMatch(all.err, /^Warning/m);
    t.equal(all.code, 0, all.err);
    const ended = JSON.parse(
      readFileSync(`${file}.ended`, "utf8"),
    ) as Pick<Ended, "code" | "err">[];
    t.equal(ended.length, asked.length, "every command ended");
    for (const each of [...selected(STARTED), ...cases]) {
      const { argv, skip = false } = each;
      started.add(argv[0]!);
      await t.test(argv.join(" "), { skip }, async (t) => {
        const { code, err } = STARTED.includes(each)
          ? await run(runtime, folder, each)
          : ended[asked.indexOf(each)] ?? all;
        t.equal(code, 0, err);
        t.notMatch(err, /^Warning/m);
      });
    }
    const weights = readdirSync(path.join(folder, "twins"))
      .filter((name) => /^model-.*safetensors$/.test(name));
    t.ok(weights.length > 0);
    for (const name of weights) compare(t, folder, `twins/${name}`);
    compare(t, folder, "y");
    compare(t, folder, "plan.json");
    compare(t, folder, "demo.gguf");
    if (!skipWithoutMpi) compare(t, folder, "launched");
    if (!isComplete) return;

    started.add("pull");
    await t.test("pull", async (t) => {
      const files = ["config.json", "model.safetensors"].map((name) =>
        [name, readFileSync(clonePath(`examples/demo-lm/${name}`))] as const
      );
      const hub = await serveHub({ "lab/demo": Object.fromEntries(files) });
      t.teardown(() => hub.close());
      const { code, out, err } = await run(runtime, folder, {
        argv: ["pull", "lab/demo"],
        env: { HF_ENDPOINT: hub.endpoint, HF_HOME: path.join(folder, "hub") },
      });
      t.equal(code, 0, err);
      const pulled = out.trim().split("\n").at(-1)!;
      for (const [name, bytes] of files) {
        t.ok(readFileSync(path.join(pulled, name)).equals(bytes), name);
      }
    });

    started.add("serve");
    await t.test("serve", async (t) => {
      const child = start(runtime, folder, {
        argv: ["serve", DEMO, "--port", "0", "--adapter", "cpu"],
      });
      t.teardown(() => child.kill("SIGKILL"));
      const ended = new Promise((resolve) => child.on("close", resolve));
      let printed = "";
      while (addressIn(printed) === undefined && child.exitCode === null) {
        printed += await nextLine(child);
      }
      const { post } = serverAt(addressIn(printed)!);
      const body = { model: "demo-lm", prompt: "One", max_tokens: 2 };
      const answer = await post("/v1/completions", body);
      t.equal(answer.status, 200, await answer.text());
      const grammar = 'root ::= "a"{3,3}';
      const forced = await post("/v1/completions", { ...body, grammar });
      t.match(await forced.text(), /"text":"aa"/);
      child.kill("SIGTERM");
      t.equal(await ended, 0);
    });

    started.add("check");
    await t.test("check --watch", async (t) => {
      const file = path.join(folder, "layer.ts");
      const good = readFileSync(file, "utf8");
      const child = start(runtime, folder, {
        argv: ["check", "layer.ts", "--watch", "--json"],
      });
      t.teardown(() => child.kill("SIGKILL"));
      const first = await nextLine(child);
      // A file of which only a part is written would be checked, too.
      writeFileSync(`${file}.new`, good.replace("topK: 2", "topK: 99"));
      renameSync(`${file}.new`, file);
      const second = await nextLine(child);
      t.match(first, /"errors":\[\]/);
      t.match(second, /Cannot choose 99/);
    });

    const { out } = await run(runtime, folder, { argv: ["--help"] });
    const commands = [...out.matchAll(/^ {2}(\w+) .*(?:\[options\]|<)/gm)]
      .map(([, name]) => name!);
    t.ok(commands.length > 10);
    t.strictSame(
      commands.filter((name) => !started.has(name)),
      ["tune"],
      "all commands except slow ones",
    );
  });
}
