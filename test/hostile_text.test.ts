// Untrusted chat templates and tokenizers: time and memory limits, with a message.
// needs: cpu
// rotates with: engine/untrusted/, engine/checkpoint/chat.ts
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { createTokenizer } from "../engine/untrusted/tokenizer.ts";
import { copyCheckpoint, switchyard, temporaryFolder } from "./helpers/cli.ts";

const checkpoint = await copyCheckpoint("demo-lm", temporaryFolder(t));
const file = (name: string) => path.join(checkpoint, name);
const TOKENIZER = JSON.parse(readFileSync(file("tokenizer.json"), "utf8"));

async function generate(...args: string[]) {
  const { code, out, err } = await switchyard([
    ...["generate", checkpoint, "--adapter", "cpu"],
    ...["--max-new-tokens", "1", ...args],
  ]);
  return { code, out, err: err.replaceAll(checkpoint, "FOLDER") };
}

const SLOW = "it takes more than 2 s",
  LARGE = "it takes more than 256 MiB of memory";
const BARE =
  "Leave out --system if it takes none, or give the complete text without --chat";

const TEMPLATES: readonly (readonly [string, string, string, string])[] = [
  ["a long list", "{{ range(1000000000) }}", LARGE, BARE],
  [
    "nested loops",
    "{% for a in range(30000) %}{% for b in range(30000) %}{% endfor %}{% endfor %}",
    SLOW,
    BARE,
  ],
  [
    "two million characters",
    "{{ a }}".repeat(300_000),
    "it has 2100000 characters, and at most 262144 are read",
    "Check the template",
  ],
  [
    "nested parentheses",
    `{{ ${"(".repeat(100_000)} }}`,
    "Maximum call stack size exceeded",
    "Check the template",
  ],
  [
    "a text that doubles",
    `{% set ns = namespace(a="xxxxxxxxxxxxxxxx") %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}`,
    "Invalid string length",
    BARE,
  ],
];

for (const [title, template, state, remedy] of TEMPLATES) {
  t.test(`a chat template: ${title}`, async (t) => {
    writeFileSync(file("chat_template.jinja"), template);
    t.strictSame(await generate("--chat", "--prompt", "Hello"), {
      code: 1,
      out: "",
      err: `Cannot apply the chat template of 'FOLDER': ${state}. ${remedy}\n`,
    });
  });
}

function withTokenizer(change: object): void {
  writeFileSync(
    file("tokenizer.json"),
    JSON.stringify({ ...TOKENIZER, ...change }),
  );
}

const split = (pattern: string) => ({
  pre_tokenizer: {
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  },
});

t.test("a pattern that takes exponential time", async (t) => {
  withTokenizer(split("(a+)+$"));
  t.strictSame(await generate("--prompt", `${"a".repeat(40)}!`), {
    code: 1,
    out: "",
    err:
      "Cannot use the tokenizer of 'FOLDER': it takes more than 3 s. Check tokenizer.json\n",
  });
});

t.test("an invalid pattern", async (t) => {
  withTokenizer(split("("));
  t.match(await generate("--prompt", "Hello"), {
    code: 1,
    err:
      /^Cannot read the tokenizer of 'FOLDER': Invalid regular expression: .*\. Check tokenizer\.json\n$/,
  });
});

t.test("a tokenizer of an unknown type", async (t) => {
  withTokenizer({ model: { type: "\u001b[2J" } });
  const { code, err } = await generate("--prompt", "Hello");
  t.equal(code, 1);
  t.match(
    err,
    /^Cannot read the tokenizer of 'FOLDER': .*\\u\{1b\}\[2J', .* Check tokenizer\.json\n$/,
  );
  t.notMatch(
    err.trimEnd(),
    /\p{Cc}/u,
    "a message has escapes instead of control characters",
  );
  withTokenizer({ model: { ...TOKENIZER.model, type: "Superword" } });
  t.equal(
    (await generate("--prompt", "Hello")).err,
    "Cannot read the tokenizer of 'FOLDER': its model has the type 'Superword', and only BPE, Unigram, WordPiece and WordLevel are known. Check tokenizer.json\n",
  );
});

t.test("a chat template that is too long does not affect the tokenizer", async (t) => {
  withTokenizer({});
  rmSync(file("chat_template.jinja"), { force: true });
  const config = readFileSync(file("tokenizer_config.json"), "utf8");
  const chat_template = "{{ a }}".repeat(50_000);
  writeFileSync(
    file("tokenizer_config.json"),
    JSON.stringify({ ...JSON.parse(config), chat_template }),
  );
  t.match(await generate("--prompt", "Hello"), { code: 0, err: "" });
  t.strictSame(await generate("--chat", "--prompt", "Hello"), {
    code: 1,
    out: "",
    err:
      `Cannot apply the chat template of 'FOLDER': it has ${chat_template.length} characters, and at most 262144 are read. Check the template\n`,
  });
  writeFileSync(file("tokenizer_config.json"), config);
  // Templates are not sent to the worker: a huge one would use the tokenizer's time and memory.
  const unsent = { chat_template: () => {} };
  const tokenizer = await createTokenizer(
    { tokenizer: TOKENIZER, config: unsent },
    { folder: checkpoint, size: 0 },
  );
  tokenizer.close();
});
