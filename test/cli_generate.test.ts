/** `generate` and `chat`: sources of prompts, ends of sequences, and other output. */
// needs: cpu

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { StopText } from "../engine/mod.ts";
import { nodeFiles } from "../cli/files.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { copyCheckpoint, switchyard, temporaryFolder } from "./helpers/cli.ts";

const DEMO = checkpointFolder("demo-lm");
const PROMPT = "Once upon a time";
const folder = temporaryFolder(t);

/** Returns the standard output of `generate`. */
async function generated(args: readonly string[], input = ""): Promise<string> {
  const { code, out, err } = await switchyard(
    ["generate", DEMO, "--adapter", "cpu", ...args],
    nodeFiles(),
    input,
  );
  t.equal(code, 0, err);
  return out;
}

interface Document {
  readonly sequences: readonly {
    readonly tokens: readonly number[];
    readonly text: string;
    readonly ending?: string;
    readonly logprobs?: readonly {
      readonly token: number;
      readonly logprob: number;
      readonly top: readonly { token: number; text: string; logprob: number }[];
    }[];
  }[];
  readonly stats?: { readonly [name: string]: number };
}

async function document(...args: string[]): Promise<Document> {
  return JSON.parse(await generated([...args, "--json"])) as Document;
}

const plain = await generated(["--prompt", PROMPT, "--max-new-tokens", "24"]);

t.test("a context beyond the positions of the model is reported", async (t) => {
  const argv = ["generate", DEMO, "--adapter", "cpu", "-p", PROMPT, "-n", "1"];
  const reported = async (context: string) =>
    (await switchyard([...argv, "--max-context", context])).err;
  t.equal(await reported("512"), "");
  t.match(
    await reported("513"),
    /^--max-context 513 exceeds the 512 positions of the model: /,
  );
});

t.test("-p, -n, --prompt-file and - give the same text", async (t) => {
  const file = path.join(folder, "prompt.txt");
  writeFileSync(file, `${PROMPT}\n`);
  t.equal(await generated(["-p", PROMPT, "-n", "24"]), plain);
  t.equal(await generated(["--prompt-file", file, "-n", "24"]), plain);
  t.equal(await generated(["-p", "-", "-n", "24"], `${PROMPT}\n`), plain);
  t.equal(
    await generated(["--prompt-file", "-", "-n", "24"], `${PROMPT}\n`),
    plain,
  );
  const { code, err } = await switchyard([
    "generate",
    DEMO,
    "-p",
    "-",
    "-p",
    "-",
  ]);
  t.strictSame([code, err], [
    2,
    "Cannot use '-' for two prompts: standard input is one. Give --prompt-file FILE for the others\n",
  ]);
});

t.test("prompts that are not UTF-8 are rejected", async (t) => {
  const bytes = new Uint8Array([0x4f, 0xff, 0xfe]);
  const file = path.join(folder, "latin.txt");
  writeFileSync(file, bytes);
  for (const flag of ["--prompt-file", "--prompts"]) {
    const { code, err } = await switchyard(["generate", DEMO, flag, file]);
    t.equal(code, 1, flag);
    t.match(err, /^Cannot read '.*latin\.txt': it is no text in UTF-8/);
  }
  const argv = ["generate", DEMO, "--prompt", "-"];
  const { code, err } = await switchyard(argv, nodeFiles(), bytes);
  t.strictSame([code, err], [
    1,
    "Cannot read standard input: it is no text in UTF-8. Convert it\n",
  ]);
});

t.test("--stop ends before a text, independent of token boundaries", async (t) => {
  const end = plain.slice(20, 26);
  const until = plain.slice(0, plain.indexOf(end));
  t.equal(
    await generated([
      "-p",
      PROMPT,
      "-n",
      "24",
      "--stop",
      "none",
      "--stop",
      end,
    ]),
    `${until}\n`,
  );
  const [one] =
    (await document("-p", PROMPT, "-n", "24", "--stop", end)).sequences;
  t.strictSame([one!.text, one!.ending], [until, "stop text"]);
  const stops = new StopText(["abc", "bd"]);
  t.strictSame(
    [..."xaab", "d"].map((piece) => stops.push(piece)),
    ["x", "", "a", "", "a"],
  );
  t.ok(stops.stopped);
  const never = new StopText(["abc"]);
  t.equal(never.push("zab") + never.end(), "zab");
  t.end();
});

t.test("--logprobs cover the vocabulary; --min-p and --repeat-penalty change the drawn tokens", async (t) => {
  const argv = ["-p", PROMPT, "-n", "8"];
  const [greedy] = (await document(...argv, "--logprobs", "3")).sequences;
  t.equal(greedy!.logprobs!.length, 8);
  for (const [i, { token, logprob, top }] of greedy!.logprobs!.entries()) {
    t.equal(token, greedy!.tokens[i]);
    t.equal(top.length, 3);
    t.strictSame([top[0]!.token, top[0]!.logprob], [token, logprob]);
    t.ok(logprob < 0 && top[1]!.logprob <= logprob, "in order");
    t.ok(top.reduce((p, { logprob }) => p + Math.exp(logprob), 0) <= 1);
  }
  const hot = [...argv, "--temperature", "3", "--seed", "5"];
  const drawn = (await document(...hot)).sequences[0]!.tokens;
  t.not(String(drawn), String(greedy!.tokens));
  const likely = (await document(...hot, "--min-p", "1")).sequences[0]!.tokens;
  t.strictSame(likely, greedy!.tokens, "only the most probable token remains");
  const [fresh] =
    (await document(...argv, "--repeat-penalty", "1e6")).sequences;
  t.equal(new Set(fresh!.tokens).size, 8, "no token is repeated");
});

t.test("--jsonl prints a line per token, and --stats the speed", async (t) => {
  const out = await generated([
    ...["-p", PROMPT, "-n", "24", "--jsonl", "--stats", "--logprobs", "1"],
  ]);
  const lines = out.trim().split("\n").map((line) => JSON.parse(line)) as {
    token?: number;
    text?: string;
    top?: object[];
    ending?: string;
    stats?: { newTokens: number; ttftMs: number };
  }[];
  t.equal(lines.length, 24 + 2);
  t.equal(lines.map(({ text = "" }) => text).join(""), plain.trimEnd());
  t.ok(
    lines.slice(0, 24).every(({ token, top }) => token !== undefined && top),
  );
  t.match(lines[24], { ending: "length" });
  t.match(lines[25], { stats: { newTokens: 24, promptTokens: Number } });
  const { err } = await switchyard([
    ...[
      "generate",
      DEMO,
      "--adapter",
      "cpu",
      "-p",
      PROMPT,
      "-n",
      "4",
      "--stats",
      "--preload",
    ],
  ]);
  t.match(
    err,
    /^load: \d+ ms, 0 bytes read from disk, 0 bytes afterwards\nprefill: \d+ tokens in [\d.]+ ms, [\d.]+ tokens\/s, first token after [\d.]+ ms \(TTFT\), \d+ ms with loading\ndecode: 4 tokens in [\d.]+ ms, [\d.]+ tokens\/s\n$/,
  );
});

t.test("prompts beyond capacity are queued and give the same tokens", async (t) => {
  const prompts = ["The fox", "A crow and", PROMPT, "In a wood", "She said"];
  const draw = ["-n", "9", "--temperature", "1", "--top-k", "20"];
  const all = await document(
    ...prompts.flatMap((text) => ["-p", text]),
    ...draw,
  );
  // A file with a prompt per line, with both line endings.
  const lines = path.join(folder, "prompts.txt");
  for (const [room, end] of [["1", "\n"], ["2", "\r\n"]] as const) {
    const [first, ...rest] = prompts;
    writeFileSync(lines, [first, "", "  ", ...rest, "", ""].join(end));
    const flags = ["--prompts", lines, "--max-sequences", room];
    const few = await document(...flags, ...draw);
    t.strictSame(few.sequences, all.sequences, `${room} at a time`);
  }
});

t.test("chat continues a conversation with the same text as generate --chat", async (t) => {
  const checkpoint = await copyCheckpoint("demo-lm", folder);
  const config = path.join(checkpoint, "tokenizer_config.json");
  writeFileSync(
    config,
    JSON.stringify({
      ...JSON.parse(readFileSync(config, "utf8")) as object,
      chat_template:
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>",
    }),
  );
  const flags = ["--adapter", "cpu", "-n", "12", "--stop", "\n"];
  const chat = async (...lines: string[]) => {
    const { code, out, err } = await switchyard(
      ["chat", checkpoint, ...flags],
      nodeFiles(),
      lines.map((line) => `${line}\n`).join(""),
    );
    t.strictSame([code, err], [0, ""]);
    return out.split("\n").slice(0, -1);
  };
  const [first, second] = await chat("Tell me of the fox.", "", "And then?");
  const alone = async (prompt: string) =>
    (await switchyard(["generate", checkpoint, ...flags, "-p", prompt])).out;
  t.equal(`${first}\n`, await alone("<user>Tell me of the fox.\n<assistant>"));
  t.equal(
    `${second}\n`,
    await alone(
      `<user>Tell me of the fox.\n<assistant>${first}\n<user>And then?\n<assistant>`,
    ),
    "the prompt contains the earlier messages",
  );
  t.strictSame(
    await chat(
      "Tell me of the fox.",
      "/clear",
      "Tell me of the fox.",
      "/exit",
      "no",
    ),
    [first, first],
  );
});
