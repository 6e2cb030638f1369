/** Flags that several commands share. */

import { ACTIVATIONS } from "../../spec/weights/activations.ts";
import { type Command, Option } from "commander";
import { MAX_NATIVE_THREADS } from "../../runtime/available_cores.ts";
import type { Mesh } from "../../spec/mod.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import {
  type Strategy,
  STRATEGY_NAMES,
  STRATEGY_OPTIONS,
  strategyFlag,
} from "../../spec/strategies.ts";
import {
  integer,
  matching,
  oneOf,
  parseAdapter,
  parseMemory,
  parseMesh,
  parsePages,
  parsePlace,
  positive,
  UsageError,
} from "./values.ts";

/** `--zero` of a training. */
export function zeroOption(): Option {
  const stage = oneOf("--zero", ["0", "1", "3"]);
  return new Option(
    "--zero <stage>",
    "ZeRO stage: 0 shards nothing over replicas, 1 the optimizer state, 3 parameters too. Default: 0.",
  ).argParser((text) => Number(stage(text)));
}

/** `--kv-cache-dtype`. */
export function cacheOption(): Option {
  return new Option(
    "--kv-cache-dtype <dtype>",
    "KV cache dtype: f32, f16 or bf16. Default: f32.",
  ).argParser(oneOf("--kv-cache-dtype", ["f32", "f16", "bf16"]));
}

/** Adds the compile flags. */
export function planFlags(command: Command): Command {
  const placed = meshFlags(command)
    .option(
      "--max-tokens <n>",
      "Maximum tokens of a step, of all sequences; longer prompts take several steps.",
      integer("--max-tokens", 1, MAX_AXIS),
    )
    .option(
      "--max-sequences <n>",
      "Maximum concurrent sequences.",
      integer("--max-sequences", 1, MAX_AXIS),
    )
    .option(
      "--max-context <n>",
      "Maximum context length, prompt included.",
      integer("--max-context", 1, MAX_AXIS),
    )
    .option(
      "--pages <n>x<positions>",
      "Paged KV cache: N pages of M positions per rank, allocated on demand, with prefix sharing. Default in generate: as many as the prompts need.",
      parsePages,
    )
    .addOption(cacheOption())
    .option(
      "--activations <mode>",
      "Activations of integer weights: q8 (quantized to blocks of 32 8-bit integers) or f32. Default: q8 for GGUF files, otherwise f32.",
      oneOf("--activations", ACTIVATIONS),
    );
  for (const name of STRATEGY_NAMES) {
    // It is of trainings.
    if (name !== "pipeline") placed.addOption(strategyOption(name));
  }
  return placed;
}

/** Adds the flags of pipeline stages. */
export function stageFlags(command: Command): Command {
  for (const name of ["stages", "pipeline"] as const) {
    command.addOption(strategyOption(name));
  }
  return command;
}

/** Creates an option of the dispatch strategy. */
export function strategyOption(name: keyof Strategy): Option {
  const flag = strategyFlag(name);
  const option = STRATEGY_OPTIONS[name];
  const { kind, about } = option;
  if (kind === "flag") return new Option(flag, about);
  if (kind === "count") {
    return new Option(`${flag} <n>`, about)
      .argParser(integer(flag, 1, option.max));
  }
  if (kind === "text") {
    return new Option(`${flag} <${flag.split("-").at(-1)}>`, about)
      .argParser(matching(flag, option.pattern));
  }
  const { words } = option;
  const named = oneOf(flag, words.map((word) => word.toLowerCase()));
  const otherwise = "otherwise" in option
    ? option.otherwise
    : words[0]!.toLowerCase();
  return new Option(`${flag} <${name}>`, `${about} Default: ${otherwise}.`)
    .argParser((text) => {
      const found = named(text);
      return words.find((word) => word.toLowerCase() === found);
    });
}

/** Adds the flags that select a model. */
export function modelFlags(command: Command): Command {
  return command
    .option(
      "--family <file.ts>",
      "File that exports the family of config.json, made by defineFamily. Its code runs. Default: a built-in family.",
    )
    .addOption(revisionOption());
}

/** Adds the flag of low-rank adapters. */
export function loraFlag(command: Command, more = ""): Command {
  return command.option(
    "--lora <folder>",
    `Folder of low-rank adapters in PEFT's layout. ${more}Default: none.`,
  );
}

/** The revision of a model on the hub. */
export function revisionOption(): Option {
  return new Option(
    "--revision <name>",
    "Branch, tag or commit of a model of the hub. Default: main.",
  );
}

/** The mesh of a command line. Throws UsageError for a second one: it would replace the first, not add axes. */
function onlyMesh(text: string, previous: Mesh | undefined): Mesh {
  if (previous !== undefined) {
    throw new UsageError(
      "Cannot use --mesh several times: there is one mesh. Give its axes in one, such as ep=4,dp=2",
    );
  }
  return parseMesh(text);
}

/** Adds the flags that place a model on a mesh. */
export function meshFlags(command: Command): Command {
  return modelFlags(command)
    .option(
      "--mesh <axes>",
      "Mesh axes and sizes, for example ep=4,dp=2.",
      onlyMesh,
    )
    .option(
      "--place <axes>",
      "Mesh axes that shard each tensor axis, for example expert=ep,token=dp+ep.",
      parsePlace,
    );
}

/** Adds the flags that select devices and ranks. */
export function deviceFlags(command: Command): Command {
  return command
    .option(
      "--devices <where>",
      "Placement of ranks: shared (one device), separate (one device each) or mpi (one process each). Default: shared.",
      oneOf("--devices", ["shared", "separate", "mpi"]),
      "shared",
    )
    .option(
      "--adapter <which>",
      "Device: auto, cpu (WebAssembly), native (compiled C) or GPU adapter numbers. Default: auto.",
      parseAdapter,
      "auto",
    )
    .option(
      "-t, --threads <n>",
      "Threads of CPU devices, without effect on GPUs; processes on one host divide them. Results do not depend on their number. Default: the number of cores, or the CPU quota of the container.",
      integer("--threads", 1, MAX_NATIVE_THREADS),
    )
    .option(
      "--deadline <seconds>",
      "Time limit of a run (default: 600), of waiting for another process in a step, and of a process that a signal has stopped (default: 120).",
      positive("--deadline", 86_400),
    )
    .option(
      "--expert-memory <bytes>",
      "Memory for experts, for example 4GiB, or auto: experts are read from their files when they are used. On a GPU, bytes of its memory: other experts are in host memory. Default: no limit.",
      parseMemory,
    )
    .option(
      "--preload",
      "Read the weight files completely when loading. Default: mapped weights are read when they are used. No effect on GPUs, which read all weights when loading.",
    )
    .addOption(new Option("--job <folder>").hideHelp());
}

/** The option of long-running commands. */
export function watchOption(): Option {
  return new Option("--watch", "Serve a live page on this machine.");
}
