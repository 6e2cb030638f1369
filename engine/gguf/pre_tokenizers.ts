/**
 * How texts are split before merges, by `tokenizer.ggml.pre`. Patterns are those of the published tokenizer.json of the
 * models, for `afmoe`, `deepseek-llm` and `exaone-moe` as llama.cpp quotes them.
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

/** Digits in threes, counted from the last one. */
const THOUSANDS = `${DIGITS}(?=(?:\\p{N}{3})*(?!\\p{N}))`;

/** Pattern of DeepSeek-V3, after digits and East Asian characters are split. */
const DEEPSEEK =
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const DEEPSEEK_V3 = [
  DIGITS,
  "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
  DEEPSEEK,
];

/** Letters of DeepSeek-V2, of an older Unicode version. */
const LETTERS = [
  "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷ",
  "ᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿ",
  "ⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃",
].join("");

/** Patterns of DeepSeek-V2. */
const DEEPSEEK_V2 = [
  "[\r\n]",
  `\\s?[${LETTERS}]+`,
  "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
  "\\s+$",
  "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
  "\\p{N}+",
];

/** Pattern of Ling: as that of Llama 3, with one digit and one line break at a time. */
const LING = llama3("\\p{N}").replace("[\\r\\n]+", "[\\r\\n]");
const GPT4O = gpt4o(UPPER, LOWER, "[\\r\\n/]");

/** Pattern of Mistral: that of GPT-4o with one digit at a time and without contractions. */
const TEKKEN = GPT4O.replaceAll(`${CONTRACTIONS}?`, "")
  .replace(DIGITS, "\\p{N}");

/** Patterns, applied one after another. */
export const SPLITS: { readonly [name: string]: readonly string[] } = {
  default: [GPT2],
  "gpt-2": [GPT2],
  olmo: [GPT2],
  gigachat: [GPT2],
  mellum: [GPT2],
  dbrx: [llama3(DIGITS)],
  "llama-bpe": [llama3(DIGITS)],
  llama3: [llama3(DIGITS)],
  "llama-v3": [llama3(DIGITS)],
  lfm2: [llama3(DIGITS)],
  "chatglm-bpe": [llama3(DIGITS)],
  glm4: [llama3(DIGITS)],
  qwen2: [llama3("\\p{N}")],
  hunyuan: [llama3("\\p{N}")],
  qwen35: [llama3("\\p{N}", "\\p{L}\\p{M}")],
  "gpt-4o": [GPT4O],
  "minimax-m2": [GPT4O],
  llama4: [GPT4O],
  kanana2: [GPT4O],
  cohere2moe: ["\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O],
  tekken: [TEKKEN],
  "kimi-k2": [
    `[\\p{Script=Han}]+|${
      gpt4o(withoutHan(UPPER), withoutHan(LOWER), "[\\r\\n]")
    }`,
  ],
  "deepseek-v3": DEEPSEEK_V3,
  "hunyuan-dense": DEEPSEEK_V3,
  "joyai-llm": DEEPSEEK_V3,
  "deepseek-llm": DEEPSEEK_V2,
  "solar-open": [llama3("\\p{N}")],
  laguna: ["[^\\n]+|[\\n]+", llama3("\\p{N}")],
  bailingmoe: [LING],
  bailingmoe2: [LING],
  "exaone-moe": [
    `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+`,
  ],
  afmoe: [
    THOUSANDS,
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
    DEEPSEEK,
  ],
  refact: ["\\p{N}", GPT2],
  starcoder: ["\\p{N}", GPT2],
  "granite-docling": ["\\p{N}", GPT2],
};

/**
 * Tokens of the vocabulary are used whole, even if no merges lead to them. Texts begin with a first token in files that
 * do not say so.
 */
export const LIKE_LLAMA3: ReadonlySet<string> = new Set([
  "llama-bpe",
  "llama3",
  "llama-v3",
  "lfm2",
  "tekken",
]);
