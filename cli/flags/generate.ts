/** Flags of `generate`. */

import type { Command } from "commander";
import type { DeviceFlags, PlanFlags, Prompt } from "./flags.ts";
import {
  checkSampling,
  type SamplingFlags,
  samplingFlags,
} from "./generation.ts";
import { deviceFlags, loraFlag, planFlags, watchOption } from "./options.ts";
import {
  checkSpeculation,
  type SpeculationFlags,
  speculationFlags,
} from "./speculation.ts";
import { integer, parseTokens, UsageError } from "./values.ts";

/** The flags of `generate`. */
export interface GenerateFlags
  extends PlanFlags, DeviceFlags, SamplingFlags, SpeculationFlags {
  readonly prompts: readonly Prompt[];
  readonly chat?: boolean;
  readonly system?: string;
  readonly logprobs?: number;
  readonly json?: boolean;
  readonly jsonl?: boolean;
  readonly watch?: boolean;
  readonly receipt?: string;
  /** A file with a JSON Schema, which the new texts follow. */
  readonly jsonSchema?: string;
}

/** Adds the flags to the command. `prompts` takes every prompt that is given, in order. */
export function generateFlags(command: Command, prompts: Prompt[]): Command {
  return speculationFlags(
    loraFlag(samplingFlags(deviceFlags(planFlags(command)))),
  )
    .option(
      "-p, --prompt <text>",
      "Prompt, or '-' for standard input. Repeatable.",
      (text) => {
        prompts.push({ text });
      },
    )
    .option(
      "--prompt-file <file>",
      "File with one prompt, or '-' for standard input. Repeatable.",
      (file) => {
        prompts.push(file === "-" ? { text: file } : { file });
      },
    )
    .option(
      "--prompts <file>",
      "File with one prompt per line. Blank lines are skipped; prompts beyond capacity are queued. Repeatable.",
      (lines) => {
        prompts.push({ lines });
      },
    )
    .option("--tokens <ids>", "Prompt as token ids. Repeatable.", (text) => {
      prompts.push({ tokens: parseTokens(text) });
    })
    .option(
      "--chat",
      "Apply the checkpoint's chat template to each prompt.",
    )
    .option("--system <text>", "With --chat, the system message.")
    .option(
      "--logprobs <n>",
      "With --json or --jsonl, log-probabilities of each token and of the n most likely ones.",
      integer("--logprobs", 0, 128),
    )
    .option("--json", "Print JSON.")
    .addOption(watchOption())
    .option(
      "--jsonl",
      "Print one line of JSON per token as it is generated.",
    )
    .option(
      "--json-schema <file>",
      "Generate JSON of a JSON Schema in a file.",
    )
    .option(
      "--receipt <file>",
      "Write a receipt: hashes of plan, weights, tokenizer and logits, for 'switchyard replay'. Reads all weights.",
    );
}

/** Throws UsageError for flags that contradict each other or have no effect. */
export function checkGenerate(flags: GenerateFlags): void {
  if (flags.prompts.length === 0) {
    throw new UsageError(
      "Cannot generate: there is no prompt. Give --prompt TEXT (- for standard input), --prompt-file FILE or --tokens IDS",
    );
  }
  const has = (kind: string) => flags.prompts.some((prompt) => kind in prompt);
  if (has("lines") && has("file")) {
    throw new UsageError(
      "Cannot use --prompts with --prompt-file: one has a prompt on each line, the other is a prompt. Give one of them",
    );
  }
  if (flags.chat && has("tokens")) {
    throw new UsageError(
      "Cannot use --tokens with --chat: messages are texts. Give --prompt TEXT",
    );
  }
  if (flags.system !== undefined && !flags.chat) {
    throw new UsageError(
      "Cannot use --system without --chat: there is no conversation. Give --chat",
    );
  }
  if (flags.json && flags.jsonl) {
    throw new UsageError(
      "Cannot use --json with --jsonl: each is the complete output. Give one of them",
    );
  }
  if (flags.logprobs !== undefined && !flags.json && !flags.jsonl) {
    throw new UsageError(
      "Cannot use --logprobs without --json or --jsonl: text output does not include them. Give one of them",
    );
  }
  const standard = flags.prompts.some((prompt) =>
    "text" in prompt && prompt.text === "-"
  );
  if (flags.devices === "mpi" && standard) {
    throw new UsageError(
      "Cannot read '-' with ranks in separate processes: only one of them has standard input. Give --prompt-file FILE",
    );
  }
  if (flags.jsonSchema !== undefined && flags.devices === "mpi") {
    throw new UsageError(
      "Cannot use --json-schema with ranks in separate processes: each would restrict tokens for itself. Leave --devices out, or use 'switchyard serve'",
    );
  }
  if (flags.jsonSchema !== undefined && flags.receipt !== undefined) {
    throw new UsageError(
      "Cannot use --json-schema with --receipt: a replay does not restrict tokens to a grammar. Leave out one of them",
    );
  }
  if (flags.receipt !== undefined && flags.numerics === "fast") {
    throw new UsageError(
      "Cannot use --receipt with --numerics fast: bits then depend on the mesh. Leave out one of them",
    );
  }
  checkSampling(flags);
  checkSpeculation(flags);
}
