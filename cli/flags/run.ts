/** Flags of `run`, `generate` and `tune`. */

import type { Command } from "commander";
import type { Prompt } from "./flags.ts";
import { samplingFlags } from "./generation.ts";
import { deviceFlags, loraFlag, planFlags, watchOption } from "./options.ts";
import { speculationFlags } from "./speculation.ts";
import { integer, parseTokens, positive } from "./values.ts";

/** Adds the flags of `run` to the command. */
export function runFlags(command: Command): Command {
  return loraFlag(deviceFlags(planFlags(command)))
    .option("--inputs <file>", "Inputs, a safetensors file.")
    .option("--weights <file>", "Weights, a safetensors file or a folder.")
    .option("--outputs <file>", "Outputs, a safetensors file to write.")
    .option(
      "--random [seed]",
      "Draw missing inputs and weights at random. Default seed: 0.",
    )
    .option(
      "--save-weights <file>",
      "With --random, write the drawn weights to a safetensors file.",
    )
    .option(
      "--replay <file>",
      "Route as in a recorded run: a file of its outputs.",
    )
    .option("--trace <file>", "Write a Chrome/Perfetto trace.")
    .addOption(watchOption())
    .option("--check", "Check that every row returns to its token.")
    .option(
      "--allow-kernels",
      "Run a plan that differs from what its model compiles to.",
    )
    .option("--json", "Print JSON.");
}

/** Adds the flags of `generate` to the command. `prompts` takes every prompt that is given, in order. */
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

/** Adds the flags of `tune` to the command. */
export function tuneFlags(command: Command): Command {
  return deviceFlags(planFlags(command))
    .option("--weights <file>", "Weights, a safetensors file or a folder.")
    .option(
      "--budget <seconds>",
      "Time budget. Default: 60.",
      positive("--budget", 1e6),
    )
    .option("--json", "Print JSON.");
}
