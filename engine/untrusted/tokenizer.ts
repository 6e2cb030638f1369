/** Tokenizers of untrusted files, executed in a sandbox. */

import { withKnownTexts } from "../text/known_texts.ts";
import type { CompletedText, HeldText, Tokenizer } from "../text/tokenizer.ts";
import { createMerger } from "./merger.ts";
import { type Call, OpenSandbox } from "./open_sandbox.ts";
import { callUntrusted, SECONDS } from "./sandbox.ts";

/** Memory limit of a tokenizer in MiB. Large ones have some hundred thousand entries. */
const MEMORY = 1024;

/** Characters per additional second of encoding. */
const CHARACTERS_A_SECOND = 100_000;

/** Tokens per additional second of decoding. */
const TOKENS_A_SECOND = 10_000;

/** Characters of tokenizer.json per additional second of opening. */
export const OPENED_A_SECOND = 500_000;

/**
 * Creates a tokenizer from the untrusted texts of `tokenizer.json` and `tokenizer_config.json`, in a sandbox. Throws
 * DataError if it fails or exceeds limits of time or memory, here and on each use; later uses start another process.
 *
 * @param folder their folder, for messages
 */
export async function createTokenizer(
  files: {
    readonly tokenizer: object;
    readonly config: { readonly [key: string]: unknown };
  },
  { folder, size }: {
    readonly folder: string;
    /** Characters of tokenizer.json. */
    readonly size: number;
  },
): Promise<Tokenizer> {
  // Only conversations need the chat template, which may be too long.
  const { chat_template: _, ...config } = files.config;
  const sandbox = new OpenSandbox({
    memory: MEMORY,
    open: ["openTokenizer", files.tokenizer, config],
    seconds: SECONDS + Math.ceil(size / OPENED_A_SECOND),
  });
  const failure = (op: string) => ({
    purpose: `${op} the tokenizer of '${folder}'`,
    remedy: "Check tokenizer.json",
  });
  const use = (call: Call, extra: number) =>
    callUntrusted(
      () => sandbox.call(call, SECONDS + Math.ceil(extra)),
      failure("use"),
    );
  const encode = async (text: string, special: boolean) =>
    await use(
      ["encode", text, special],
      text.length / CHARACTERS_A_SECOND,
    ) as number[];
  const decode = async (
    tokens: readonly number[],
    skip: boolean,
    shown: readonly string[] = [],
  ) =>
    await use(
      ["decode", [...tokens], skip, shown],
      tokens.length / TOKENS_A_SECOND,
    ) as string;
  const completed = createMerger(async (texts: readonly TextCall[]) => {
    const added = texts.reduce((n, [, { length }]) => n + length, 0);
    return await use(
      ["complete", texts],
      added / TOKENS_A_SECOND,
    ) as CompletedText[];
  });
  await callUntrusted(() => sandbox.open(), failure("read"));
  return {
    encode: (text) => encode(text, true),
    encodeBare: (text) => encode(text, false),
    decode: (tokens, shown) => decode(tokens, true, shown),
    decodeAll: (tokens) => decode(tokens, false),
    bytes: async (token) => await use(["tokenBytes", token], 0) as number[],
    complete: withKnownTexts((held, added, shown = []) =>
      completed([held, added, shown])
    ),
    close: () => sandbox.close(),
  };
}

type TextCall = readonly [
  held: HeldText,
  added: readonly number[],
  shown: readonly string[],
];
