/** Writes the keys of a tokenizer in a GGUF file, from tokenizer.json and tokenizer_config.json. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { GPT2, LIKE_LLAMA3, SPLITS } from "./pre_tokenizers.ts";
import { END_KEYS } from "./end_tokens.ts";
import { TOKEN_TYPES } from "./token_types.ts";
import type { GgufValue, GgufValues } from "./write.ts";

type Json = { readonly [key: string]: unknown };

/** The files of a tokenizer, and token settings from other files. */
export interface TokenizerFiles {
  readonly tokenizer: Json;
  readonly config: Json;
  /** The chat template, if there is one. */
  readonly template: string | undefined;
  /** Tokens in config.json. */
  readonly ids: { readonly [name: string]: number | undefined };
  /** Rows of the embeddings. The vocabulary is padded to this size. */
  readonly vocabulary: number;
}

interface Added {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

/** Returns the keys. Throws DataError for a tokenizer that a GGUF file cannot represent. */
export function tokenizerKeys(files: TokenizerFiles): GgufValues {
  const { tokenizer, config, template, ids, vocabulary } = files;
  const model = tokenizer["model"] as Json;
  if (model["type"] !== "BPE") {
    throw refused(`its model is '${shown(String(model["type"]))}', not BPE`);
  }
  const words = model["vocab"] as { readonly [token: string]: number };
  const added = (tokenizer["added_tokens"] ?? []) as readonly Added[];
  const unknown = model["unk_token"];
  const sentencePiece = model["byte_fallback"] === true;
  const texts = Array.from({ length: vocabulary }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocabulary).fill(TOKEN_TYPES.unused);
  const put = (id: number, content: string, type: number) => {
    if (id >= vocabulary) {
      throw refused(
        `token ${id} is beyond the ${vocabulary} rows of the embeddings`,
      );
    }
    texts[id] = content;
    types[id] = type;
  };
  for (const [content, id] of Object.entries(words)) {
    const byte = sentencePiece && /^<0x[0-9A-F]{2}>$/.test(content);
    put(id, content, byte ? TOKEN_TYPES.byte : TOKEN_TYPES.normal);
  }
  for (const { id, content, special } of added) {
    put(id, content, special ? TOKEN_TYPES.control : TOKEN_TYPES.user);
  }
  if (typeof unknown === "string" && unknown in words) {
    put(words[unknown]!, unknown, TOKEN_TYPES.unknown);
  }
  const named = (name: string): number | undefined => {
    const token = config[`${name}_token`];
    const content = typeof token === "object" && token !== null
      ? (token as Json)["content"]
      : token;
    const id = typeof content === "string" ? texts.indexOf(content) : -1;
    return id < 0 ? undefined : id;
  };
  const keys: { [key: string]: GgufValue } = {
    "tokenizer.ggml.model": { text: sentencePiece ? "llama" : "gpt2" },
    "tokenizer.ggml.tokens": { texts },
    "tokenizer.ggml.token_type": { i32s: types },
    "tokenizer.ggml.add_bos_token": { bool: addsFirst(tokenizer) },
  };
  const merges = mergesOf(model);
  if (sentencePiece) {
    keys["tokenizer.ggml.scores"] = { f32s: scoresOf(texts, merges) };
    keys["tokenizer.ggml.add_space_prefix"] = {
      bool: /"Prepend"|"prepend_scheme":"(first|always)"/.test(
        JSON.stringify(tokenizer),
      ),
    };
  } else {
    keys["tokenizer.ggml.pre"] = { text: splitName(tokenizer) };
    keys["tokenizer.ggml.merges"] = {
      texts: merges.map((pair) => pair.join(" ")),
    };
  }
  for (
    const [name, key] of Object.entries({
      bos: "bos",
      ...Object.fromEntries(END_KEYS.map((name) => [name, name])),
      unk: "unknown",
      pad: "padding",
    })
  ) {
    const id = ids[name] ?? named(name);
    if (id !== undefined) {
      keys[`tokenizer.ggml.${key}_token_id`] = { u32: id };
    }
  }
  if (template !== undefined) {
    keys["tokenizer.chat_template"] = { text: template };
  }
  return keys;
}

function refused(state: string): DataError {
  return new DataError(
    `Cannot write the tokenizer to a GGUF file: ${state}. Give a folder for --out`,
  );
}

/** Reads merges in both file forms: texts with a space, and pairs. */
function mergesOf(model: Json): (readonly [string, string])[] {
  return (model["merges"] as readonly (string | readonly [string, string])[])
    .map((merge) =>
      typeof merge === "string"
        ? [
          merge.slice(0, merge.indexOf(" ", 1)),
          merge.slice(
            merge.indexOf(" ", 1) + 1,
          ),
        ] as const
        : merge
    );
}

/** Returns the scores of tokens: minus the number of the first merge that produces them. */
function scoresOf(
  texts: readonly string[],
  merges: readonly (readonly [string, string])[],
): number[] {
  const scores = new Map<string, number>();
  merges.forEach(([left, right], i) => {
    const made = left + right;
    if (!scores.has(made)) scores.set(made, -i);
  });
  return texts.map((text) => scores.get(text) ?? 0);
}

/** Returns whether a first token is added to every text. */
function addsFirst(tokenizer: Json): boolean {
  const processors = partsOf(tokenizer["post_processor"], "processors");
  return processors.some(({ type, single }) =>
    type === "TemplateProcessing" && Array.isArray(single) &&
    "SpecialToken" in (single[0] as object)
  );
}

/** A step of a pipeline, or the steps of a sequence. */
function partsOf(step: unknown, of: string): Json[] {
  if (typeof step !== "object" || step === null) return [];
  const { type, [of]: parts } = step as Json;
  return type === "Sequence"
    ? (parts as unknown[]).flatMap((part) => partsOf(part, of))
    : [step as Json];
}

/** Returns the name of the rule that splits texts before merges. */
function splitName(tokenizer: Json): string {
  const patterns = partsOf(tokenizer["pre_tokenizer"], "pretokenizers")
    .flatMap((step): string[] => {
      if (step["type"] === "ByteLevel") {
        return step["use_regex"] === false ? [] : [GPT2];
      }
      if (step["type"] === "Digits") {
        return [step["individual_digits"] ? "\\p{N}" : "\\p{N}+"];
      }
      const { Regex, String: text } = (step["pattern"] ?? {}) as Json;
      return [String(Regex ?? text)];
    });
  const names = Object.entries(SPLITS).flatMap(([name, splits]) =>
    name !== "default" && splits.join("\n") === patterns.join("\n")
      ? [name]
      : []
  );
  const { ignore_merges = false } = tokenizer["model"] as Json;
  const found = names.find((name) => LIKE_LLAMA3.has(name) === ignore_merges) ??
    names[0];
  if (found !== undefined) return found;
  throw refused("llama.cpp has no name for how it splits texts");
}
