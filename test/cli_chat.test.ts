// `generate --chat`: prompts as messages in the chat template of the checkpoint, from the command line to token ids.
// needs: cpu
// rotates with: engine/checkpoint/chat.ts, engine/untrusted/, cli/prompts.ts
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { copyCheckpoint, switchyard, temporaryFolder } from "./helpers/cli.ts";

/** A typical published template: roles, special tokens, a mistake that it rejects. */
const TEMPLATE = `{{ bos_token }}{% for message in messages %}
  {%- if message['role'] == 'system' and not loop.first %}
    {{- raise_exception('System messages come first.') }}
  {%- endif %}
<|{{ message.role }}|>
{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}`;

const folder = temporaryFolder(t);
const checkpoint = await copyCheckpoint("demo-lm", folder);
const file = (name: string) => path.join(checkpoint, name);
const readJson = (name: string) => JSON.parse(readFileSync(file(name), "utf8"));
const writeJson = (name: string, value: unknown) =>
  writeFileSync(file(name), JSON.stringify(value));
const config = {
  ...readJson("tokenizer_config.json"),
  // A token as text and as an object, as in published files.
  bos_token: "<|endoftext|>",
  eos_token: { content: "<|endoftext|>", lstrip: false },
};
const tokenizer = readJson("tokenizer.json");

interface Document {
  readonly sequences: readonly { readonly promptTokens: number[] }[];
}

/** Returns the token ids of the prompts as the command reports them. */
async function promptTokens(...args: string[]): Promise<number[][]> {
  const { code, out, err } = await switchyard([
    ...["generate", checkpoint, "--adapter", "cpu", "--json"],
    ...["--max-new-tokens", "1", ...args],
  ]);
  t.equal(code, 0, err);
  const { sequences } = JSON.parse(out) as Document;
  return sequences.map(({ promptTokens }) => promptTokens);
}

async function refused(...args: string[]): Promise<string> {
  const { code, out, err } = await switchyard([
    ...["generate", checkpoint, "--adapter", "cpu", ...args],
  ]);
  t.equal(code, args.includes("--tokens") ? 2 : 1, err);
  t.equal(out, "");
  return err.replaceAll(checkpoint, "FOLDER").trimEnd();
}

t.test("each prompt is the first message of its own conversation", async (t) => {
  writeJson("tokenizer_config.json", { ...config, chat_template: TEMPLATE });
  const user = (text: string) => `<|user|>\n${text}<|endoftext|>\n`;
  const written = [
    `<|endoftext|>${user("Tell me of the fox.")}<|assistant|>\n`,
    `<|endoftext|>${user("And of the crow.")}<|assistant|>\n`,
  ];
  t.strictSame(
    await promptTokens(
      ...["--chat", "--prompt", " Tell me of the fox.\n"],
      ...["--prompt", "And of the crow."],
    ),
    await promptTokens(...written.flatMap((text) => ["--prompt", text])),
  );
  const system = "<|system|>\nBe brief.<|endoftext|>\n";
  t.strictSame(
    await promptTokens(
      ...["--chat", "--prompt", "Hello", "--system", "Be brief."],
    ),
    await promptTokens(
      ...["--prompt", `<|endoftext|>${system}${user("Hello")}<|assistant|>\n`],
    ),
  );
});

t.test("a BOS token of both template and tokenizer is used once", async (t) => {
  const special = { id: "<|endoftext|>", type_id: 0 };
  writeJson("tokenizer.json", {
    ...tokenizer,
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: special }, {
        Sequence: { id: "A", type_id: 0 },
      }],
      pair: [],
      special_tokens: {
        "<|endoftext|>": {
          id: "<|endoftext|>",
          ids: [0],
          tokens: ["<|endoftext|>"],
        },
      },
    },
  });
  t.teardown(() => writeJson("tokenizer.json", tokenizer));
  writeJson("tokenizer_config.json", {
    ...config,
    chat_template: "{{ bos_token }}{{ messages[0].content }}",
  });
  const [plain] = await promptTokens("--prompt", "Hello");
  const [chat] = await promptTokens("--prompt", "Hello", "--chat");
  t.strictSame(chat, plain);
  t.equal(plain!.filter((id) => id === 0).length, 1);
});

t.test("the template is chat_template.jinja, or the default of a list", async (t) => {
  const named = (name: string) => ({
    name,
    template: `${name} {{ messages[0].content }}`,
  });
  const list = [named("tool_use"), named("default")];
  writeJson("tokenizer_config.json", { ...config, chat_template: list });
  t.strictSame(
    await promptTokens("--chat", "--prompt", "fox"),
    await promptTokens("--prompt", "default fox"),
  );
  writeFileSync(file("chat_template.jinja"), "file {{ messages[0].content }}");
  t.teardown(() => rmSync(file("chat_template.jinja")));
  t.strictSame(
    await promptTokens("--chat", "--prompt", "fox"),
    await promptTokens("--prompt", "file fox"),
  );
});

t.test("templates have the text of Python's Jinja", async (t) => {
  const expected: readonly (readonly [template: string, text: string])[] = [
    ['{{ "\\n  a \\n".strip("\\n") }}', "  a "],
    ['{{ "xa y".lstrip("x") }}{{ "a.-".rstrip("-.") }}', "a ya"],
    ['{{ "{} {{1}} {0} {n}".format("a", n=true) }}', "a {1} a True"],
    [
      "{% for i in range(9) %}{{ i }}{% if i == 1 %}c{% continue %}{% elif i == 2 %}b{% break %}{% endif %};{% endfor %}",
      "0;1c2b",
    ],
    [
      "{% for i in [1, 2] %}{% for j in [3, 4] %}{{ j }}{% break %}{% endfor %}{{ i }}{% endfor %}",
      "3132",
    ],
    ["{% set all = [] %}{% set _ = all.append(7) %}{{ all | length }}", "1"],
    [
      `{{ [true, none, "it's", {"k": 1.0}] }}`,
      `[True, None, "it's", {'k': 1.0}]`,
    ],
    ['{{ false | string }}{{ ["null"] | upper }}', "False['NULL']"],
  ];
  writeJson("tokenizer_config.json", {
    ...config,
    chat_template: expected.map(([template]) => template).join("|"),
  });
  t.strictSame(
    await promptTokens("--chat", "--prompt", "fox"),
    await promptTokens(
      "--prompt",
      expected.map(([, text]) => text).join("|"),
    ),
  );
  writeJson("tokenizer_config.json", {
    ...config,
    chat_template: '{{ "{a}".format(1) }}',
  });
  t.match(
    await refused("--chat", "--prompt", "fox"),
    /: Cannot format '{a}': no such argument\./,
  );
});

t.test("rejected conversations", async (t) => {
  const chat = ["--chat", "--prompt", "fox"];
  writeJson("tokenizer_config.json", config);
  t.equal(
    await refused(...chat),
    "Cannot chat with 'FOLDER': it has no chat template, neither chat_template.jinja nor 'chat_template' in tokenizer_config.json. Give the complete text without --chat",
  );
  const { err } = await switchyard(["chat", checkpoint]);
  t.match(err, / Give the complete text to 'switchyard generate'\n$/);
  const list = [{ name: "rag", template: "" }, { name: "tool_use" }];
  writeJson("tokenizer_config.json", { ...config, chat_template: list });
  t.equal(
    await refused(...chat),
    "Cannot read the chat templates of 'FOLDER': 'chat_template' is neither a text nor a list with one named 'default' (names: 'rag', 'tool_use'). Check tokenizer_config.json",
  );
  writeJson("tokenizer_config.json", {
    ...config,
    chat_template: "{{ raise_exception('No system messages.') }}",
  });
  t.equal(
    await refused(...chat, "--system", "x"),
    "Cannot apply the chat template of 'FOLDER': No system messages. Leave out --system if it takes none, or give the complete text without --chat",
  );
  writeJson("tokenizer_config.json", {
    ...config,
    chat_template: "{% if messages %}",
  });
  t.match(
    await refused(...chat),
    /^Cannot apply the chat template of 'FOLDER': .*\. Check the template$/,
  );
  t.equal(
    await refused("--chat", "--tokens", "1"),
    "Cannot use --tokens with --chat: messages are texts. Give --prompt TEXT",
  );
  rmSync(file("tokenizer.json"));
  writeJson("tokenizer_config.json", { ...config, chat_template: TEMPLATE });
  t.equal(
    await refused(...chat),
    "Cannot read a prompt: the checkpoint has no tokenizer.json. Give token ids with --tokens",
  );
});
