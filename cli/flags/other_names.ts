/** Commands and options by their names in other programs: llama.cpp, vLLM, transformers, PEFT and Megatron-LM. */

/** The model of a command, an argument here. */
const MODEL = "";

const OTHER_NAMES: { readonly [option: string]: string } = {
  "--alias": "--name",
  "--batch-size": "--batch",
  "--cache-type-k": "--kv-cache-dtype",
  "--cache-type-v": "--kv-cache-dtype",
  "--context-parallel-size": "--mesh cp=N",
  "--cpu-moe": "--expert-memory",
  "--cpu-offload-gb": "--expert-memory",
  "--ctx-size": "--max-context",
  "--data-parallel-size": "--mesh dp=N",
  "--device": "--adapter",
  "--draft-max": "--speculate",
  "--enable-expert-parallel": "--mesh ep=N",
  "--expert-model-parallel-size": "--mesh ep=N",
  "--expert-parallel-size": "--mesh ep=N",
  "--file": "--prompt-file",
  "--gpu-layers": "--adapter",
  "--gradient-accumulation-steps": "--accumulate",
  "--gradient-checkpointing": "--recompute",
  "--hf-repo": MODEL,
  "--json-schema-file": "--json-schema",
  "--learning-rate": "--lr",
  "--load": MODEL,
  "--lora-modules": "--lora",
  "--max-grad-norm": "--clip",
  "--max-model-len": "--max-context",
  "--max-num-batched-tokens": "--max-tokens",
  "--max-num-seqs": "--max-sequences",
  "--max-seq-length": "--length",
  "--max-steps": "--steps",
  "--model": MODEL,
  "--model-draft": "--draft",
  "--model-name-or-path": MODEL,
  "--model-path": MODEL,
  "--n-cpu-moe": "--expert-memory",
  "--n-gpu-layers": "--adapter",
  "--n-predict": "--max-new-tokens",
  "--no-mmap": "--preload",
  "--num-train-epochs": "--epochs",
  "--output-dir": "--out",
  "--parallel": "--max-sequences",
  "--per-device-train-batch-size": "--batch",
  "--pipeline-model-parallel-size": "--mesh pp=N",
  "--pipeline-parallel-size": "--mesh pp=N",
  "--predict": "--max-new-tokens",
  "--repetition-penalty": "--repeat-penalty",
  "--served-model-name": "--name",
  "--speculative-config": "--speculate",
  "--system-prompt": "--system",
  "--temp": "--temperature",
  "--tensor-model-parallel-size": "--mesh tp=N",
  "--tensor-parallel-size": "--mesh tp=N",
  "--threads-batch": "--threads",
  "--warmup-steps": "--warmup",
  "-c": "--max-context",
  "-f": "--prompt-file",
  "-hf": MODEL,
  "-m": MODEL,
  "-ngl": "--adapter",
  "-np": "--max-sequences",
  "-tb": "--threads",
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
  return /^-\w{2,}$/.test(argument) && Object.hasOwn(OTHER_NAMES, argument);
}

/** Returns the replacement of an unknown option of a command, for a message. Undefined: none is known. */
export function replacementFor(
  unknown: string,
  { options, argument }: {
    readonly options: readonly string[];
    /** The first argument of the command. */
    readonly argument: string | undefined;
  },
): string | undefined {
  const name = unknown.replace(/=.*/s, "").replaceAll("_", "-");
  const other = Object.hasOwn(OTHER_NAMES, name) ? OTHER_NAMES[name]! : name;
  if (other === MODEL) return argument && `the ${argument} without an option`;
  return options.includes(other.split(" ")[0]!) ? other : undefined;
}
