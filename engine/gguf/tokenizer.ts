/** The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { type GgufHeader, type GgufKeys, numberOf } from "./header.ts";
import { LIKE_LLAMA3, SPLITS } from "./pre_tokenizers.ts";
import { TOKEN_TYPES } from "./token_types.ts";

/** Maximum characters of a SentencePiece token: its merges are found from all of its splits. */
const MAX_CHARACTERS = 256;

interface Token {
  readonly content: string;
  readonly type: number;
  readonly id: number;
}

function listOf(keys: GgufKeys, key: string): readonly unknown[] | undefined {
  const value = keys[key];
  return Array.isArray(value) ? value : undefined;
}

/** The tokenizer files. Undefined if a file has no vocabulary. */
export function tokenizerOf(
  path: string,
  { keys }: GgufHeader,
):
  | { readonly tokenizer: object; readonly config: object }
  | undefined {
  const texts = listOf(keys, "tokenizer.ggml.tokens");
  if (texts === undefined) return undefined;
  const types = listOf(keys, "tokenizer.ggml.token_type");
  const tokens = texts.map((content, id): Token => ({
    content: String(content),
    type: Number(types?.[id] ?? TOKEN_TYPES.normal),
    id,
  }));
  const model = keys["tokenizer.ggml.model"];
  const make = Object.hasOwn(MODELS, String(model))
    ? MODELS[String(model)]
    : undefined;
  if (make === undefined) {
    throw new DataError(
      `Cannot read the tokenizer of '${path}': its model is '${
        shown(String(model))
      }', and known ones are ${Object.keys(MODELS).join(", ")}. Use '--tokens'`,
    );
  }
  const nameOf = (key: string) => {
    const id = numberOf(keys, `tokenizer.ggml.${key}_token_id`);
    return id === undefined ? null : tokens[id]?.content ?? null;
  };
  const bos = nameOf("bos");
  const first = keys["tokenizer.ggml.add_bos_token"] ??
    (model !== "gpt2" || LIKE_LLAMA3.has(String(keys["tokenizer.ggml.pre"])));
  const template = keys["tokenizer.chat_template"];
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: tokens
        .filter(({ type }) =>
          type === TOKEN_TYPES.control || type === TOKEN_TYPES.user ||
          type === TOKEN_TYPES.unknown
        )
        .map(({ id, content, type }) => ({
          id,
          content,
          single_word: false,
          lstrip: false,
          rstrip: false,
          normalized: false,
          special: type !== TOKEN_TYPES.user,
        })),
      ...make(path, keys, tokens),
      post_processor: first === true && bos !== null
        ? afterFirst(bos, tokens.findIndex(({ content }) => content === bos))
        : null,
    },
    config: {
      tokenizer_class: "PreTrainedTokenizerFast",
      bos_token: bos,
      eos_token: nameOf("eos"),
      unk_token: nameOf("unknown"),
      pad_token: nameOf("padding"),
      clean_up_tokenization_spaces: false,
      ...typeof template === "string" ? { chat_template: template } : {},
    },
  };
}

/** Adds a first token to every text. */
function afterFirst(bos: string, id: number): object {
  const special = { SpecialToken: { id: bos, type_id: 0 } };
  const sequence = (which: string) => ({ Sequence: { id: which, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [special, sequence("A")],
    pair: [special, sequence("A"), sequence("B")],
    special_tokens: { [bos]: { id: bos, ids: [id], tokens: [bos] } },
  };
}

function vocabularyOf(tokens: readonly Token[]): { [token: string]: number } {
  return Object.fromEntries(tokens.map(({ content, id }) => [content, id]));
}

/** Byte-level BPE. */
function byteLevel(
  path: string,
  keys: GgufKeys,
  tokens: readonly Token[],
): object {
  const name = String(keys["tokenizer.ggml.pre"] ?? "default");
  const splits = Object.hasOwn(SPLITS, name) ? SPLITS[name] : undefined;
  if (splits === undefined) {
    throw new DataError(
      `Cannot read the tokenizer of '${path}': its pre-tokenizer is '${
        shown(name)
      }', and known ones are ${Object.keys(SPLITS).join(", ")}. Use '--tokens'`,
    );
  }
  return {
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        ...splits.map((Regex) => ({
          type: "Split",
          pattern: { Regex },
          behavior: "Isolated",
          invert: false,
        })),
        {
          type: "ByteLevel",
          add_prefix_space: false,
          trim_offsets: true,
          use_regex: false,
        },
      ],
    },
    decoder: {
      type: "ByteLevel",
      add_prefix_space: true,
      trim_offsets: true,
      use_regex: true,
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: LIKE_LLAMA3.has(name),
      vocab: vocabularyOf(tokens),
      merges: (listOf(keys, "tokenizer.ggml.merges") ?? []).map(String),
    },
  };
}

type Make = (
  path: string,
  keys: GgufKeys,
  tokens: readonly Token[],
) => object;

/** Tokenizers by `tokenizer.ggml.model`. */
const MODELS: { readonly [model: string]: Make } = {
  gpt2: byteLevel,
  llama: (path, keys, tokens) =>
    sentencePiece(keys, tokens, mergesByScore(path, keys, tokens)),
  // Merges are listed, and no space precedes a text.
  gemma4: (_, keys, tokens) =>
    sentencePiece(
      { ...keys, "tokenizer.ggml.add_space_prefix": false },
      tokens,
      (listOf(keys, "tokenizer.ggml.merges") ?? []).map(String),
    ),
};

/** Merges of SentencePiece BPE follow from the scores of tokens, best first. */
function mergesByScore(
  path: string,
  keys: GgufKeys,
  tokens: readonly Token[],
): [string, string][] {
  const ids = new Map(tokens.map(({ content, id }) => [content, id]));
  const scores = listOf(keys, "tokenizer.ggml.scores") ?? [];
  const scored = tokens.filter(({ type, content }) =>
    (type === TOKEN_TYPES.normal || type === TOKEN_TYPES.user) &&
    [...content].length > 1
  ).map((token) => ({ ...token, score: Number(scores[token.id] ?? 0) }));
  scored.sort((a, b) => b.score - a.score || a.id - b.id);
  return scored.flatMap(({ content }) => {
    const characters = [...content];
    if (characters.length > MAX_CHARACTERS) {
      throw new DataError(
        `Cannot read the tokenizer of '${path}': a token has ${characters.length} characters, and the limit is ${MAX_CHARACTERS}. Use '--tokens'`,
      );
    }
    const pairs: [string, string][] = [];
    for (let i = 1; i < characters.length; i++) {
      const left = characters.slice(0, i).join("");
      const right = characters.slice(i).join("");
      if (ids.has(left) && ids.has(right)) pairs.push([left, right]);
    }
    pairs.sort((a, b) =>
      ids.get(a[0])! - ids.get(b[0])! || ids.get(a[1])! - ids.get(b[1])!
    );
    return pairs;
  });
}

/** SentencePiece BPE. */
function sentencePiece(
  keys: GgufKeys,
  tokens: readonly Token[],
  merges: readonly (string | readonly [string, string])[],
): object {
  const prefixed = keys["tokenizer.ggml.add_space_prefix"] !== false;
  const unknown = tokens.find(({ type }) => type === TOKEN_TYPES.unknown);
  return {
    normalizer: {
      type: "Sequence",
      normalizers: [
        ...prefixed ? [{ type: "Prepend", prepend: "\u2581" }] : [],
        { type: "Replace", pattern: { String: " " }, content: "\u2581" },
      ],
    },
    pre_tokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "\u2581" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...prefixed ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [],
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unknown?.content ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: vocabularyOf(tokens),
      merges,
    },
  };
}
