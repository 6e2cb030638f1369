/** Flags of the commands that inspect devices, models and plans. */

import type { Command } from "commander";
import { MAX_AXIS, MAX_MICRO_BATCHES, MAX_RANKS } from "../../spec/limits.ts";
import { STORED_NAMES } from "../../spec/weights/encoding.ts";
import { PICTURE_NAMES } from "../../view/pictures/names.ts";
import {
  cacheOption,
  deviceFlags,
  loraFlag,
  modelFlags,
  planFlags,
  strategyOption,
  zeroOption,
} from "./options.ts";
import {
  integer,
  oneOf,
  parseLimits,
  parseMemory,
  parseMesh,
  positive,
} from "./values.ts";

/** Description of `--experts`. */
const EXPERTS =
  "Expert load: even, zipf:S (weight 1/n^S for expert n), or the outputs of a run. Default: even.";

/** Adds the flags of `devices` to the command. */
export function devicesFlags(command: Command): Command {
  return deviceFlags(command)
    .option(
      "--all",
      "Measure the devices of a run and every link between its ranks.",
    )
    .option(
      "--ranks <n>",
      "Ranks in this process.",
      integer("--ranks", 1, MAX_RANKS),
    )
    .option(
      "--repetitions <n>",
      "Number of measurements; the median is reported. Default: 9.",
      integer("--repetitions", 1),
    )
    .option("--out <file>", "Write a machine file for --target.")
    .option("--json", "Print JSON.");
}

/** Adds the flags of `check` to the command. */
export function checkFlags(command: Command): Command {
  return modelFlags(command)
    .option(
      "--watch",
      "Check again when the file or one of its imports changes.",
    )
    .option(
      "--json",
      "Print JSON; with --watch, one line per check.",
    );
}

/** Adds the flags of `plan` to the command. */
export function planCommandFlags(command: Command): Command {
  return summaryFlags(command)
    .option("--full", "Print the whole plan.")
    .option("--layer <n>", "Show only this layer.", integer("--layer", 0))
    .option("--rank <n>", "Show only this rank.", integer("--rank", 0))
    .option(
      "--diff",
      "Compare with another model or plan. With --full, also line by line.",
    )
    .option("--out <file>", "Write the plan to a file.")
    .option("--check", "Send token ids with the rows, for 'run --check'.")
    .option("--json", "Print the summary as JSON; with --full, the plan.");
}

/** Adds the flags of `view` to the command. */
export function viewFlags(command: Command): Command {
  return summaryFlags(command)
    .option(
      "--svg <picture>",
      `Write one picture as SVG: ${PICTURE_NAMES.join(", ")}.`,
      oneOf("--svg", PICTURE_NAMES),
    )
    .option("--dark", "With --svg, use a dark background.")
    .option("--trace <file>", "Show a trace recorded by 'run --trace'.")
    .option(
      "--choices <file>",
      "Show the chosen experts from the outputs of a run.",
    )
    .option("--against <plan>", "Show differences to another model or plan.")
    .option(
      "--out <file>",
      "Output file. Default: plan.html; with --svg, standard output.",
    )
    .option("--open", "Open the page in the browser.")
    .option(
      "--run",
      "Serve a page that runs the checkpoint's plan in the browser.",
    );
}

/** Adds the flags of `routers` to the command. */
export function routersFlags(command: Command): Command {
  return command
    .requiredOption(
      "--logits <file>",
      "Logits: a JSON list of rows, or a safetensors file.",
    )
    .option(
      "--tensor <name>",
      "Tensor name in a safetensors file. Default: logits.",
    )
    .option(
      "--top-k <k>",
      "Experts per token. Default: 2.",
      integer("--top-k", 1),
    )
    .option(
      "--capacity-factor <f>",
      "Capacity factor. Default: the preset's.",
      positive("--capacity-factor", 1e6),
    )
    .option(
      "--drop <which>",
      "Order of dropping: by position or by score.",
      oneOf("--drop", ["position", "score"]),
    )
    .option("--preset <name>", "Show only this preset. Repeatable.", (
      name: string,
      before: readonly string[] = [],
    ) => [...before, name])
    .option("--json", "Print JSON.");
}

/** Adds the flags of `search` to the command. */
export function searchFlags(command: Command): Command {
  return modelFlags(command)
    .requiredOption(
      "--target <machine>",
      "Machine: a name from machines/, or a machine file.",
    )
    .option(
      "--phase <phase>",
      "Phase to optimize: prefill, decode or train. Default: decode.",
      oneOf("--phase", ["prefill", "decode", "train"]),
    )
    .option(
      "--objective <what>",
      "Objective: throughput, latency or memory. Default: throughput.",
      oneOf("--objective", ["throughput", "latency", "memory"]),
    )
    .option(
      "--max-step <ms>",
      "Goal: maximum time of a step in ms, to the first token in prefill and between tokens in decode. Default: none.",
      positive("--max-step", 1e9),
    )
    .option(
      "--ranks <n>",
      "Number of ranks. Default: all.",
      integer("--ranks", 1, MAX_RANKS),
    )
    .option(
      "--max-context <n>",
      "Context length. Default: 4096.",
      integer("--max-context", 1, MAX_AXIS),
    )
    .option("--experts <load>", EXPERTS)
    .option(
      "--dtype <dtype>",
      "Weight dtype. Default: the config's; in training bf16 with f32 master weights.",
      oneOf("--dtype", STORED_NAMES),
    )
    .addOption(strategyOption("numerics"))
    .addOption(strategyOption("wire"))
    .addOption(strategyOption("operands"))
    .addOption(cacheOption())
    .option(
      "--limits <limits>",
      "Device limits that override the machine's.",
      parseLimits,
    )
    .option(
      "--svg <file>",
      "Write a plot of throughput over 1 to 4096 devices; for training, over the machine's devices.",
    )
    .option(
      "--out <file>",
      "Write a page with the best configuration and all others.",
    )
    .option("--json", "Print JSON.");
}

/** Adds the flags that select a plan and the machine to compare it with. */
function summaryFlags(command: Command): Command {
  return loraFlag(
    planFlags(command),
    "With --train, adapters to train, such as rank=16,alpha=32,targets=attention+experts. ",
  )
    .option(
      "--target <machine>",
      "Machine to check the plan against: a name from machines/, a machine file, or 'this' to measure this machine.",
    )
    .option(
      "--limits <limits>",
      "Device limits that override the machine's, for example maxBufferSize=4294967296.",
      parseLimits,
    )
    .option("--experts <load>", EXPERTS)
    .option(
      "--expert-memory <bytes>",
      "Memory for experts of each process, for example 4GiB, or auto: others are on the target's disk. Default: all are in memory.",
      parseMemory,
    )
    .option("--train", "Plan a training step.")
    .option(
      "--optimizer <name>",
      "With --train, optimizer: adamw or sgd. Default: adamw.",
      oneOf("--optimizer", ["adamw", "sgd"]),
    )
    .option(
      "--clip <norm>",
      "With --train, gradient clipping norm. Default: 1.",
      positive("--clip", 1e6),
    )
    .option(
      "--accumulate <n>",
      "With --train, micro-batches per step. Default: 1.",
      integer("--accumulate", 1, MAX_MICRO_BATCHES),
    )
    .addOption(strategyOption("pipeline"))
    .addOption(zeroOption())
    .option(
      "--rollout-mesh <axes>",
      "With --train, mesh of sampling for policy gradients: print the bytes of weights sent to it.",
      parseMesh,
    )
    .option(
      "--recompute",
      "With --train, activation checkpointing: recompute attention and experts in the backward pass.",
    )
    .option(
      "--dtype <dtype>",
      "Weight dtype for a config.json without weights, or with --train. Default: the config's.",
      oneOf("--dtype", STORED_NAMES),
    );
}
