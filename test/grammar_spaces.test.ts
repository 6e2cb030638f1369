// Spaces that grammars of JSON allow.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { createGrammars } from "../engine/untrusted/grammars.ts";
import { range } from "../spec/range.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";

const text = readFileSync(
  join(checkpointFolder("demo-lm"), "tokenizer.json"),
  "utf8",
);
const tokenizer = JSON.parse(text) as {
  readonly model: { readonly vocab: { readonly [text: string]: number } };
};
const { vocab } = tokenizer.model;
const SPACE = vocab["Ġ"]!;

const grammars = createGrammars({
  tokenizer,
  config: {},
  size: text.length,
  vocabulary: Object.keys(vocab).length,
  stop: new Set([0]),
});
t.teardown(() => grammars.close());

t.test("JSON of any kind has at most 16 spaces in a row", async (t) => {
  const anything = { type: "object", properties: { a: {} }, required: ["a"] };
  for (
    const [source, prefixes] of [
      [{ kind: "object" }, ["{", '{"a":{', '{"a":[', '{"a":1', '{"a":[1']],
      [{ kind: "schema", schema: anything }, ['{"a":{', '{"a":[', '{"a":[1']],
    ] as const
  ) {
    for (const prefix of prefixes) {
      const grammar = await grammars.start(source, (error) => t.error(error));
      const isAllowed = async () =>
        (await grammar.allowed())![SPACE >> 5]! >> (SPACE & 31) & 1;
      await isAllowed();
      for (const char of prefix) grammar.accept(vocab[char]!);
      for (const n of range(16)) {
        t.equal(await isAllowed(), 1, `space ${n + 1} after ${prefix}`);
        grammar.accept(SPACE);
      }
      t.equal(await isAllowed(), 0, `space 17 after ${prefix}`);
      grammar.close();
    }
  }
});
