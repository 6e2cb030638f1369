/** Flags of `perplexity` and `quantize`. */

import type { Command } from "commander";
import {
  QUANTIZE_TARGETS,
  type Rule,
} from "../../spec/weights/quantize_targets.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import { deviceFlags, planFlags } from "./options.ts";
import { integer, oneOf, UsageError } from "./values.ts";

/** Adds the flags of `perplexity` to the command. */
export function perplexityFlags(command: Command): Command {
  return windowFlags(deviceFlags(planFlags(command)))
    .option(
      "--stride <n>",
      "Tokens from one window to the next. Default: half a window.",
      integer("--stride", 1, MAX_AXIS),
    )
    .option(
      "--against <checkpoint>",
      "Reference checkpoint or hub name: print KL divergence and agreement of routing.",
    )
    .option("--json", "Print JSON.");
}

function windowFlags(command: Command): Command {
  return command
    .option(
      "--window <n>",
      "Tokens per window. Default: the model's positions, at most 2048.",
      integer("--window", 2, MAX_AXIS),
    )
    .option(
      "--limit <n>",
      "Tokens of each text, from its start. Default: all.",
      integer("--limit", 2),
    );
}

/** Adds the flags of `quantize` to the command. `rules` takes every rule that is given. */
export function quantizeFlags(command: Command, rules: Rule[]): Command {
  return windowFlags(deviceFlags(planFlags(command)))
    .requiredOption(
      "--to <format>",
      `Format: ${Object.keys(QUANTIZE_TARGETS).join(", ")}.`,
      (text) =>
        oneOf("--to", Object.keys(QUANTIZE_TARGETS))(text.toLowerCase()),
    )
    .option(
      "--out <path>",
      "FILE.gguf, or a folder for fp8 and mxfp4. Default: the name of the checkpoint with that of the format.",
    )
    .option(
      "--rule <pattern=type>",
      "GGUF type of tensors by name, for example '*.down_proj.weight=q6_k', or keep. Repeatable; the first that matches. Routers and norms are never quantized.",
      (text) => {
        rules.push(parseRule(text));
        return rules;
      },
    )
    .option(
      "--importance <files...>",
      "Texts, plain or compressed: columns whose activations are large there get smaller errors.",
    )
    .option(
      "--text <files...>",
      "Texts, plain or compressed: print perplexity, KL divergence from the original and agreement of routing.",
    )
    .option("--json", "Print JSON.");
}

function parseRule(text: string): Rule {
  const [, pattern, type] = /^(.+)=(\w+)$/.exec(text) ?? [];
  if (pattern === undefined || type === undefined) {
    throw new UsageError(
      `Cannot use --rule '${text}'. Give PATTERN=TYPE, such as *.down_proj.weight=q6_k`,
    );
  }
  return { pattern, type };
}
