/** Flags of `train`. */

import type { Command } from "commander";
import { MAX_AXIS, MAX_MICRO_BATCHES } from "../../spec/limits.ts";
import {
  deviceFlags,
  meshFlags,
  stageFlags,
  strategyOption,
  watchOption,
  zeroOption,
} from "./options.ts";
import {
  integer,
  notNegative,
  oneOf,
  parseLora,
  parseMesh,
  positive,
} from "./values.ts";

/** Adds the flags to the command. */
export function trainFlags(command: Command): Command {
  const trained = deviceFlags(stageFlags(meshFlags(command)))
    .addOption(strategyOption("numerics"));
  const given = stepFlags(rewardFlags(dataFlags(trained)));
  return savingFlags(routingFlags(optimizerFlags(given)));
}

/** Texts and conversations. */
function dataFlags(command: Command): Command {
  return command
    .option(
      "--data <files...>",
      'Training texts, plain or compressed; .jsonl: conversations, {"messages": […]} per line.',
    )
    .option(
      "--train-on <tokens>",
      "With conversations: trained tokens, 'assistant' or 'all'. Default: assistant.",
      oneOf("--train-on", ["assistant", "all"]),
    )
    .option(
      "--no-packing",
      "With conversations: --batch conversations per micro-batch. Default: as many as fit.",
    )
    .option(
      "--validate <files...>",
      "Validation texts, or conversations.",
    )
    .option(
      "--validate-split <share>",
      "With conversations: fraction of --data used for validation. Default: 0.",
      positive("--validate-split", 0.5),
    )
    .option(
      "--validate-every <n>",
      "Steps between validations. Default: only at the end.",
      integer("--validate-every", 1),
    )
    .option(
      "--validate-batches <n>",
      "Batches per validation before the last. Default: all.",
      integer("--validate-batches", 1),
    );
}

/** Policy gradients. */
function rewardFlags(command: Command): Command {
  return command
    .option(
      "--reward <file.ts>",
      "Policy gradients (GRPO): exports (prompt, text) => number, also async.",
    )
    .option(
      "--prompts <file>",
      "With --reward: prompts, one per line.",
    )
    .option(
      "--chat",
      "With --reward: apply the checkpoint's chat template to each prompt.",
    )
    .option(
      "--samples <n>",
      "With --reward: samples per prompt, compared with each other. Default: 8.",
      integer("--samples", 2),
    )
    .option(
      "--max-new-tokens <n>",
      "With --reward: maximum tokens per sample. Default: 64.",
      integer("--max-new-tokens", 1),
    )
    .option(
      "--updates <n>",
      "With --reward: optimizer steps per set of samples. Default: 1.",
      integer("--updates", 1),
    )
    .option(
      "--clip-ratio <e>",
      "With --reward: clipping of probability ratios to 1 ± e. Default: 0.2.",
      positive("--clip-ratio", 1),
    )
    .option(
      "--clip-ratio-high <e>",
      "With --reward: upper clipping, 1 + e. Default: --clip-ratio.",
      positive("--clip-ratio-high", 1e30),
    )
    .option(
      "--kl <weight>",
      "With --reward: weight of the KL divergence from the initial model. Default: not computed.",
      notNegative("--kl"),
    )
    .option(
      "--rollout-mesh <axes>",
      "With --reward: mesh of sampling. Default: --mesh.",
      parseMesh,
    )
    .option(
      "--kv-cache-dtype <dtype>",
      "With --reward: KV cache dtype of sampling. Other than f32, samples are not exactly on-policy. Default: f32.",
      oneOf("--kv-cache-dtype", ["f32", "f16", "bf16"]),
    );
}

/** Number and sizes of steps. */
function stepFlags(command: Command): Command {
  return command
    .requiredOption("--out <folder>", "Folder for checkpoints.")
    .option(
      "--steps <n>",
      "Total number of steps.",
      integer("--steps", 1),
    )
    .option(
      "--epochs <n>",
      "With conversations: passes over the data, instead of --steps.",
      integer("--epochs", 1),
    )
    .option(
      "--batch <n>",
      "Sequences per micro-batch. Default: 8.",
      integer("--batch", 1, MAX_AXIS),
    )
    .option(
      "--accumulate <n>",
      "Micro-batches per step (gradient accumulation). Default: 1.",
      integer("--accumulate", 1, MAX_MICRO_BATCHES),
    )
    .option(
      "--length <n>",
      "Tokens per sequence; longer conversations are truncated. Default: 128.",
      integer("--length", 1, MAX_AXIS),
    );
}

/** The optimizer and its schedule. */
function optimizerFlags(command: Command): Command {
  return command
    .option(
      "--optimizer <name>",
      "Optimizer: adamw or sgd. Default: adamw.",
      oneOf("--optimizer", ["adamw", "sgd"]),
    )
    .option(
      "--lr <rate>",
      "Learning rate. Default: 0.001.",
      notNegative("--lr"),
    )
    .option(
      "--warmup <n>",
      "Steps of linear warmup. Default: 0.",
      integer("--warmup", 0),
    )
    .option(
      "--decay <n>",
      "Step at which cosine decay ends. Default: --steps.",
      integer("--decay", 0),
    )
    .option(
      "--floor <share>",
      "Final learning rate as a fraction of --lr. Default: 0.1.",
      notNegative("--floor"),
    )
    .option("--beta1 <b>", "AdamW beta1. Default: 0.9.", notNegative("--beta1"))
    .option(
      "--beta2 <b>",
      "AdamW beta2. Default: 0.95.",
      notNegative("--beta2"),
    )
    .option(
      "--momentum <m>",
      "SGD momentum. Default: 0.9.",
      notNegative("--momentum"),
    )
    .option(
      "--weight-decay <w>",
      "Weight decay. Default: the optimizer's.",
      notNegative("--weight-decay"),
    )
    .option(
      "--clip <norm>",
      "Gradient clipping by global norm. Default: 1.",
      positive("--clip", 1e30),
    );
}

/** Load balancing, and adapters. */
function routingFlags(command: Command): Command {
  return command
    .option(
      "--aux <weight>",
      "Weight of the load-balancing loss. Default: from config.json.",
      notNegative("--aux"),
    )
    .option(
      "--balance <what>",
      "Load-balancing loss per 'layer', or over all layers 'together' as in transformers. Default: together.",
      oneOf("--balance", ["layer", "together"]),
    )
    .option(
      "--bias-update <rate>",
      "Loss-free load balancing: change of the router's selection bias per step. Default: 0.",
      notNegative("--bias-update"),
    )
    .option(
      "--lora <settings>",
      "Train low-rank adapters: rank=16,alpha=32,targets=attention+experts. Targets are 'attention', 'experts', or names such as q_proj.",
      parseLora,
    );
}

/** Storage of weights and checkpoints, and output. */
function savingFlags(command: Command): Command {
  return command
    .option("--seed <s>", "Random seed. Default: 0.", integer("--seed", 0))
    .addOption(zeroOption())
    .option(
      "--dtype <dtype>",
      "Weight dtype: f32, or bf16 or f16 with f32 master weights. Default: the checkpoint's.",
      oneOf("--dtype", ["f32", "f16", "bf16"]),
    )
    .option(
      "--save-every <n>",
      "Steps between checkpoints. Default: only at the end; with --reward: 1.",
      integer("--save-every", 1),
    )
    .option(
      "--recompute",
      "Activation checkpointing: recompute blocks in the backward pass.",
    )
    .option("--resume", "Resume the training in --out.")
    .option(
      "--tokenizer <folder>",
      "Tokenizer folder. Default: the checkpoint's.",
    )
    .option(
      "--metrics <file>",
      "Metrics file, one line of JSON per step; plots are written beside it. Default: OUT/metrics.jsonl.",
    )
    .addOption(watchOption())
    .option("--json", "Print the lines of --metrics.");
}
