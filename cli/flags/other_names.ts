/** Commands and options by their names in other programs: llama.cpp, vLLM, transformers, PEFT and Megatron-LM. */

/** The model of a command, an argument here. */
const MODEL = "";

/** Replacements of options of other programs; of several, the first that the command has. */
export const OTHER_NAMES: {
  readonly [option: string]: string | readonly string[];
} = {
  "--alias": "--name",
  "--batch-size": ["--batch", "--max-tokens"],
  "--block-size": ["--pages", "--length"],
  "--cache-type-k": "--kv-cache-dtype",
  "--cache-type-v": "--kv-cache-dtype",
  "--context-length": ["--max-context", "--length"],
  "--context-parallel-size": "--mesh cp=N",
  "--context-size": ["--max-context", "--length"],
  "--cpu-moe": "--expert-memory",
  "--cpu-offload-gb": "--expert-memory",
  "--ctx-size": ["--max-context", "--window"],
  "--data-parallel-size": "--mesh dp=N",
  "--dataset-name": "--data",
  "--decode-context-parallel-size": "--mesh cp=N",
  "--device": "--adapter",
  "--device-map": "--adapter",
  "--do-sample": "--temperature",
  "--draft-max": "--speculate",
  "--draft-n": "--speculate",
  "--enable-expert-parallel": "--mesh ep=N",
  "--expert-model-parallel-size": "--mesh ep=N",
  "--expert-parallel-size": "--mesh ep=N",
  "--file": ["--prompt-file", "--text"],
  "--global-batch-size": "--batch",
  "--gpu-layers": "--adapter",
  "--gradient-accumulation-steps": "--accumulate",
  "--gradient-checkpointing": "--recompute",
  "--hf-file": MODEL,
  "--hf-repo": MODEL,
  "--imatrix": "--importance",
  "--input-file": ["--prompt-file", "--text"],
  "--json-schema-file": "--json-schema",
  "--learning-rate": "--lr",
  "--load": [MODEL, "--resume"],
  "--lora-alpha": "--lora",
  "--lora-modules": "--lora",
  "--lora-r": "--lora",
  "--lora-target-modules": "--lora",
  "--main-gpu": "--adapter",
  "--max-grad-norm": "--clip",
  "--max-length": ["--length", "--max-new-tokens", "--window"],
  "--max-model-len": "--max-context",
  "--max-num-batched-tokens": "--max-tokens",
  "--max-num-seqs": "--max-sequences",
  "--max-seq-len": ["--max-context", "--length"],
  "--max-seq-length": ["--length", "--max-context"],
  "--max-steps": "--steps",
  "--mlock": "--preload",
  "--model": MODEL,
  "--model-draft": "--draft",
  "--model-name-or-path": MODEL,
  "--model-path": MODEL,
  "--n-cpu-moe": "--expert-memory",
  "--n-gpu-layers": "--adapter",
  "--n-predict": "--max-new-tokens",
  "--no-mmap": "--preload",
  "--num-gpu-blocks-override": "--pages",
  "--num-speculative-tokens": "--speculate",
  "--num-train-epochs": "--epochs",
  "--optim": "--optimizer",
  "--output": ["--out", "--outputs"],
  "--output-dir": "--out",
  "--override-tensor": "--expert-memory",
  "--parallel": "--max-sequences",
  "--per-device-train-batch-size": "--batch",
  "--pipeline-model-parallel-size": "--mesh pp=N",
  "--pipeline-parallel-size": "--mesh pp=N",
  "--predict": "--max-new-tokens",
  "--repetition-penalty": "--repeat-penalty",
  "--resume-from-checkpoint": "--resume",
  "--reverse-prompt": "--stop",
  "--save-steps": "--save-every",
  "--served-model-name": "--name",
  "--speculative-config": "--speculate",
  "--speculative-model": "--draft",
  "--split-mode": "--mesh ep=N",
  "--stop-string": "--stop",
  "--stop-strings": "--stop",
  "--swap-space": "--expert-memory",
  "--system-prompt": "--system",
  "--temp": "--temperature",
  "--tensor-model-parallel-size": "--mesh tp=N",
  "--tensor-parallel-size": "--mesh tp=N",
  "--tensor-split": "--mesh tp=N",
  "--threads-batch": "--threads",
  "--tokenizer-name": "--tokenizer",
  "--torch-dtype": "--dtype",
  "--train-file": "--data",
  "--train-iters": "--steps",
  "--trust-remote-code": "--family",
  "--ubatch-size": "--max-tokens",
  "--validation-file": "--validate",
  "--warmup-steps": "--warmup",
  "-b": ["--batch", "--max-tokens"],
  "-c": ["--max-context", "--window"],
  "-ctk": "--kv-cache-dtype",
  "-ctv": "--kv-cache-dtype",
  "-dev": "--adapter",
  "-dp": "--mesh dp=N",
  "-f": ["--prompt-file", "--text"],
  "-hf": MODEL,
  "-hff": MODEL,
  "-hfr": MODEL,
  "-m": MODEL,
  "-md": "--draft",
  "-mg": "--adapter",
  "-ncmoe": "--expert-memory",
  "-ngl": "--adapter",
  "-np": "--max-sequences",
  "-o": ["--out", "--outputs"],
  "-ot": "--expert-memory",
  "-pp": "--mesh pp=N",
  "-r": "--stop",
  "-s": "--seed",
  "-sm": "--mesh ep=N",
  "-sys": "--system",
  "-tb": "--threads",
  "-tp": "--mesh tp=N",
  "-ts": "--mesh tp=N",
  "-ub": "--max-tokens",
};

const ATTENTION = "Leave it out: attention stores no matrix of scores";
const CHAT = "Use 'switchyard chat'";
const COMPILED = "Leave it out: every plan is compiled";
const CONTINUED = "Leave it out: a prompt is continued without --chat";
const FORMAT = "Leave it out: the chat template determines the format";
const QUANTIZE = "Use 'switchyard quantize'";
const STORED = "Leave it out: weights keep the encoding of their files";

/** Remedies for options of other programs that no option replaces. */
const REMEDIES: { readonly [option: string]: string } = {
  "--attn-implementation": ATTENTION,
  "--bf16": STORED,
  "--conversation": CHAT,
  "--dtype": STORED,
  "--enable-auto-tool-choice": FORMAT,
  "--enable-chunked-prefill":
    "Leave it out: a prompt longer than --max-tokens takes several steps",
  "--enable-prefix-caching": "Leave it out: prefixes are shared",
  "--enforce-eager": COMPILED,
  "--flash-attn": ATTENTION,
  "--fp16": STORED,
  "--gpu-memory-utilization":
    "Leave it out: --pages sets the memory of the KV cache",
  "--interactive": CHAT,
  "--jinja": FORMAT,
  "--load-in-4bit": QUANTIZE,
  "--load-in-8bit": QUANTIZE,
  "--no-conversation": CONTINUED,
  "--quantization": STORED,
  "--tool-call-parser": FORMAT,
  "--torch-compile": COMPILED,
  "--torch-dtype": STORED,
  "-cnv": CHAT,
  "-fa": ATTENTION,
  "-i": CHAT,
  "-no-cnv": CONTINUED,
  "-q": STORED,
};

/** Our commands by their names in other programs. */
const OTHER_COMMANDS: ReadonlyMap<string, string> = new Map([
  ["completion", "generate"],
  ["convert", "quantize"],
  ["download", "pull"],
  ["export", "quantize"],
  ["finetune", "train"],
]);

/** Replacements of a second argument, which commands of other programs have, by an option of the command. */
const SECOND_ARGUMENTS = [
  ["--prompt", "a prompt with --prompt"],
  ["--to", "the output with --out"],
] as const;

/** Returns the command for an unknown one, for a message. Undefined: none is known. */
export function commandFor(unknown: string): string | undefined {
  return OTHER_COMMANDS.get(unknown);
}

/** Returns what replaces a second argument of a command with these options, for a message. Undefined: none is known. */
export function secondArgumentFor(
  options: readonly string[],
): string | undefined {
  return SECOND_ARGUMENTS.find(([option]) => options.includes(option))?.[1];
}

/** Returns whether the parser would split an option of another program, such as `-ngl` into `-n gl`. */
export function isSplit(argument: string): boolean {
  return /^-\w{2,}$/.test(argument) &&
    [OTHER_NAMES, REMEDIES].some((table) => Object.hasOwn(table, argument));
}

/** Returns the remedy for an unknown option of a command. Undefined: none is known. */
export function remedyFor(
  unknown: string,
  { options, argument }: {
    readonly options: readonly string[];
    /** The first argument of the command. */
    readonly argument: string | undefined;
  },
): string | undefined {
  const name = unknown.replace(/=.*/s, "").replaceAll("_", "-");
  const others = Object.hasOwn(OTHER_NAMES, name) ? OTHER_NAMES[name]! : name;
  for (const other of [others].flat()) {
    if (options.includes(other.split(" ")[0]!)) return `Give ${other}`;
    if (other === MODEL && argument) {
      return `Give the ${argument} without an option`;
    }
  }
  return Object.hasOwn(REMEDIES, name) ? REMEDIES[name] : undefined;
}
