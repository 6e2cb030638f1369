/** Tokens of a GGUF file that end a text. */

import { type GgufKeys, numberOf } from "./header.ts";
import { TOKEN_TYPES } from "./token_types.ts";

/** Keys of their ids: the end of a text, of a turn, and of a message. */
export const END_KEYS = ["eos", "eot", "eom"] as const;

/** Texts of control tokens that end a text although many files have no key for them, as in llama.cpp. */
const TEXTS: ReadonlySet<string> = new Set([
  "<|eot_id|>",
  "<|eom_id|>",
  "<|im_end|>",
  "<|end|>",
  "<|return|>",
  "<|call|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "[EOT]",
  "[EOS]",
  "<eos>",
  "<turn|>",
  "<|tool_response>",
]);

/** gpt-oss: ends a message, and the next one continues the answer. */
const CONTINUED = "<|end|>", HARMONY = ["<|return|>", "<|call|>"];

/** Returns their ids: those of keys first. A number if there is one, as in config.json. Undefined if there is none. */
export function endTokens(keys: GgufKeys): number | number[] | undefined {
  const found = new Set(
    END_KEYS.flatMap((key) =>
      numberOf(keys, `tokenizer.ggml.${key}_token_id`) ?? []
    ),
  );
  const list = (key: string) => {
    const value = keys[`tokenizer.ggml.${key}`];
    return Array.isArray(value) ? value as readonly unknown[] : [];
  };
  const types = list("token_type");
  const named = new Map(
    list("tokens").flatMap((text, id): [string, number][] =>
      TEXTS.has(String(text)) && Number(types[id]) === TOKEN_TYPES.control
        ? [[String(text), id]]
        : []
    ),
  );
  if (HARMONY.every((text) => named.has(text))) named.delete(CONTINUED);
  for (const id of named.values()) found.add(id);
  const [first, ...others] = found;
  return first === undefined || others.length === 0 ? first : [...found];
}
