/**
 * How texts are split before merges, by `tokenizer.ggml.pre`. Patterns are those of the published tokenizer.json of the
 * models.
 */

/** Pre-tokenization pattern of GPT-2. */
export const GPT2 =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/** Pattern of Llama 3, with `numbers` digits at a time. `letters` may include marks. */
function llama3(numbers: string, letters = "\\p{L}"): string {
  const word = letters === "\\p{L}" ? letters : `[${letters}]`;
  return `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?${word}+|${numbers}| ?[^\\s${letters}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
}

const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";

/** Pattern of GPT-4o: words end where capitals follow small letters. `after`: what may follow punctuation. */
function gpt4o(upper: string, lower: string, after: string): string {
  const start = "[^\\r\\n\\p{L}\\p{N}]?";
  return `${start}${upper}*${lower}+${CONTRACTIONS}?|${start}${upper}+${lower}*${CONTRACTIONS}?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+${after}*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
}

/** A class without Chinese characters. */
function withoutHan(letters: string): string {
  return `(?:(?!\\p{Script=Han})${letters})`;
}

const DIGITS = "\\p{N}{1,3}";
const GPT4O = gpt4o(UPPER, LOWER, "[\\r\\n/]");

/** Patterns, applied one after another. */
export const SPLITS: { readonly [name: string]: readonly string[] } = {
  default: [GPT2],
  "gpt-2": [GPT2],
  olmo: [GPT2],
  dbrx: [llama3(DIGITS)],
  "llama-bpe": [llama3(DIGITS)],
  lfm2: [llama3(DIGITS)],
  "chatglm-bpe": [llama3(DIGITS)],
  glm4: [llama3(DIGITS)],
  qwen2: [llama3("\\p{N}")],
  hunyuan: [llama3("\\p{N}")],
  qwen35: [llama3("\\p{N}", "\\p{L}\\p{M}")],
  "gpt-4o": [GPT4O],
  "minimax-m2": [GPT4O],
  "kimi-k2": [
    `[\\p{Script=Han}]+|${
      gpt4o(withoutHan(UPPER), withoutHan(LOWER), "[\\r\\n]")
    }`,
  ],
  "deepseek-v3": [
    DIGITS,
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ],
  refact: ["\\p{N}", GPT2],
  starcoder: ["\\p{N}", GPT2],
  "granite-docling": ["\\p{N}", GPT2],
};

/** Tokens of the vocabulary are used whole, even if no merges lead to them. */
export const IGNORES_MERGES: ReadonlySet<string> = new Set([
  "llama-bpe",
  "lfm2",
]);
