/**
 * Classes `tokenizer` and `template`: an untrusted tokenizer or chat template stays within its time and memory limits.
 */

import { readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { openChatTemplate } from "../../engine/checkpoint/chat.ts";
import type { FileSystem } from "../../engine/files.ts";
import { createTokenizer } from "../../engine/untrusted/tokenizer.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import type { FuzzClass } from "./fuzz.ts";
import { type JsonChange, jsonChanges, mutateJson } from "./json_mutant.ts";
import { acceptedOrRefused } from "./refusal.ts";

const TEXT = "Once upon a time, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";

/** Mutants of a tokenizer.json. */
export function tokenizerClass(): FuzzClass<readonly JsonChange[]> {
  const file = path.join(checkpointFolder("demo-lm"), "tokenizer.json");
  const text = readFileSync(file, "utf8");
  const tokenizer = JSON.parse(text) as { model: { vocab: object } };
  // With a small vocabulary, more changes are elsewhere.
  const vocab = Object.entries(tokenizer.model.vocab).slice(0, 64);
  tokenizer.model.vocab = Object.fromEntries(vocab);
  Object.assign(tokenizer.model, { merges: [] });
  return {
    name: "tokenizer",
    count: 200,
    cases: jsonChanges,
    judge: async (changes) =>
      await acceptedOrRefused("A tokenizer", async () => {
        const opened = await createTokenizer({
          tokenizer: mutateJson(tokenizer, changes),
          config: {},
        }, { folder: "folder", size: text.length });
        try {
          await opened.decode(await opened.encode(TEXT));
        } finally {
          opened.close();
        }
      }),
    close: () => Promise.resolve(),
  };
}

const PIECES = [
  ...[
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "for a in ",
    "endfor",
    "if ",
    "else",
    "endif",
  ],
  ...["range(", "1000000000", "30000", ")", "messages", "a", "b", "'x'", "[0]"],
  ...[".content", "|length", "|join", " + ", " * ", "set b = ", "macro f(a)"],
  ...[
    "endmacro",
    "f(",
    "namespace(",
    "b.a",
    "~",
    "{#",
    "#}",
    "raise_exception(",
  ],
];

/** Random chat templates. */
export function templateClass(): FuzzClass<readonly string[]> {
  const files = (source: string): FileSystem =>
    ({
      list: () => Promise.resolve(["chat_template.jinja"]),
      readText: () => Promise.resolve(source),
      join: (folder: string, name: string) => `${folder}/${name}`,
    }) as unknown as FileSystem;
  return {
    name: "template",
    count: 200,
    cases: fc.array(fc.constantFrom(...PIECES), {
      minLength: 1,
      maxLength: 30,
    }),
    judge: async (pieces) =>
      await acceptedOrRefused("A template", async () => {
        const template = await openChatTemplate(
          "folder",
          files(`{% for a in messages %}${pieces.join("")}{% endfor %}`),
        );
        try {
          await template.render([{ role: "user", content: "Hello" }]);
        } finally {
          template.close();
        }
      }),
    close: () => Promise.resolve(),
  };
}
