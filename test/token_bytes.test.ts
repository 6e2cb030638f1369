/** Bytes of single tokens of byte-level vocabularies and of those with bytes as tokens. */

import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { openTokenizer } from "../engine/mod.ts";
import { tokenBytes, vocabularyKind } from "../engine/text/token_bytes.ts";

t.test("bytes of the tokens of a text are its UTF-8", async (t) => {
  const tokenizer = await openTokenizer("examples/demo-lm", nodeFiles());
  t.teardown(() => tokenizer!.close());
  for (
    const text of ["Once upon a time", "é ☃ 日本 😀", "\u00ad\u00a0\t\x7f"]
  ) {
    const bytes: number[] = [];
    for (const token of await tokenizer!.encodeBare(text)) {
      bytes.push(...await tokenizer!.bytes(token));
    }
    t.strictSame(bytes, [...new TextEncoder().encode(text)], text);
  }
});

t.test("tokens of one byte", (t) => {
  const texts = ["<0xE6>", "\u2581a", "<0x41>"];
  const vocabulary = {
    get_vocab: () => new Map(texts.map((text, id) => [text, id])),
    // The text of an added token states itself.
    get_added_tokens_decoder: () => new Map([[2, { content: "<0x41>" }]]),
    decode: ([id]: number[]) => texts[id!]!.replace("\u2581", " "),
  };
  const bytesOf = tokenBytes(vocabulary, {
    decoder: { decoders: [{ type: "ByteFallback" }] },
  });
  t.strictSame(bytesOf(0), [0xe6]);
  t.strictSame(bytesOf(1), [0x20, 0x61]);
  t.strictSame(bytesOf(2), [..."<0x41>"].map((c) => c.charCodeAt(0)));
  t.equal(vocabularyKind({}), "raw");
  t.end();
});
