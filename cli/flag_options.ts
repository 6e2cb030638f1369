/** Flags that several commands have. */

import { type Command, Option } from "commander";
import { STORED_NAMES } from "../spec/encoding.ts";
import { MAX_AXIS, MAX_RANKS } from "../spec/limits.ts";
import type { Mesh } from "../spec/mod.ts";
import { STRATEGY_ENTRIES } from "../spec/strategies.ts";
import {
  integer,
  oneOf,
  parseAdapter,
  parseLimits,
  parseMesh,
  parsePages,
  parsePlace,
  positive,
} from "./values.ts";

/** What `--experts` is. */
const EXPERTS =
  "how experts are chosen: even, zipf:S (expert n with weight 1/n^S), or the outputs of a run (even)";

/** `--zero` of a training. */
export function zeroOption(): Option {
  const stage = oneOf("--zero", ["0", "1", "3"]);
  return new Option(
    "--zero <stage>",
    "ZeRO stage, what replicas shard: 0, nothing; 1, the optimizer state; 3, parameters too (0)",
  ).argParser((text) => Number(stage(text)));
}

/** `--dtype` of a training. */
export function dtypeOption(): Option {
  return new Option(
    "--dtype <dtype>",
    "dtype of the trained weights: f32, or with f32 master weights bf16 or f16; default: the checkpoint's",
  ).argParser(oneOf("--dtype", ["f32", "f16", "bf16"]));
}

/** Flags that say how a model is compiled. `meshes` takes every mesh that is given. */
export function planFlags(command: Command, meshes: Mesh[] = []): Command {
  const placed = meshFlags(command, meshes)
    .option(
      "--max-tokens <n>",
      "tokens of one step, at most",
      integer("--max-tokens", 1, MAX_AXIS),
    )
    .option(
      "--max-sequences <n>",
      "sequences with a KV cache, at most",
      integer("--max-sequences", 1, MAX_AXIS),
    )
    .option(
      "--max-context <n>",
      "tokens of a sequence with its prompt, at most",
      integer("--max-context", 1, MAX_AXIS),
    )
    .option(
      "--pages <n>x<positions>",
      "paged KV cache: pages on each rank, and the positions of one; sequences take pages as they grow (generate: as many as its prompts need)",
      parsePages,
    )
    .option(
      "--kv-cache-dtype <dtype>",
      "dtype of the KV cache: f32, f16 or bf16 (f32)",
      oneOf("--kv-cache-dtype", ["f32", "f16", "bf16"]),
    );
  for (const [name, option] of STRATEGY_ENTRIES) {
    placed.addOption(strategyOption(name, option));
  }
  return placed;
}

/** An option of how dispatches are sent. */
function strategyOption(
  name: string,
  option: typeof STRATEGY_ENTRIES[number][1],
): Option {
  const flag = `--${name}`;
  const { kind, about } = option;
  if (kind === "flag") return new Option(flag, about);
  if (kind === "count") {
    return new Option(`${flag} <n>`, about)
      .argParser(integer(flag, 1, option.max));
  }
  const { words } = option;
  const named = oneOf(flag, words.map((word) => word.toLowerCase()));
  return new Option(
    `${flag} <${name}>`,
    `${about} (${words[0]!.toLowerCase()})`,
  )
    .argParser((text) => {
      const found = named(text);
      return words.find((word) => word.toLowerCase() === found);
    });
}

/** Flags that say where a model is placed. */
export function meshFlags(command: Command, meshes: Mesh[] = []): Command {
  return command
    .option("--mesh <axes>", "mesh axes, such as ep=4,dp=2", (text) => {
      const mesh = parseMesh(text);
      meshes.push(mesh);
      return mesh;
    })
    .option(
      "--place <axes>",
      "how tensor axes are sharded, such as expert=ep,token=dp+ep",
      parsePlace,
    );
}

/** Flags that say where a plan runs. */
export function deviceFlags(command: Command): Command {
  return command
    .addOption(
      new Option(
        "--devices <where>",
        "shared: all ranks on one device; separate: a device each; mpi: a process each",
      )
        .default("shared")
        .argParser(oneOf("--devices", ["shared", "separate", "mpi"])),
    )
    .addOption(
      new Option(
        "--adapter <which>",
        "device: auto, cpu, native, or numbers of GPU adapters",
      )
        .default("auto")
        .argParser(parseAdapter),
    )
    .option(
      "--deadline <seconds>",
      "how long a run may take (600), and how long processes wait for one another in a step (120)",
      positive("--deadline", 86_400),
    )
    .addOption(new Option("--job <folder>").hideHelp());
}

/** Flags that say what plan of a model is looked at, and what it is held against. */
export function summaryFlags(command: Command, meshes: Mesh[] = []): Command {
  return planFlags(command, meshes)
    .option(
      "--target <machine>",
      "hold the plan against a machine: a name of machines/, a machine file, or 'this' to measure this one",
    )
    .option(
      "--limits <limits>",
      "limits of its devices, such as maxBufferSize=4294967296",
      parseLimits,
    )
    .option("--experts <load>", EXPERTS)
    .option("--train", "plan a training step instead")
    .addOption(
      new Option("--optimizer <name>", "with --train: adamw or sgd (adamw)")
        .argParser(oneOf("--optimizer", ["adamw", "sgd"])),
    )
    .option(
      "--clip <norm>",
      "with --train, gradient clipping: maximum norm (1)",
      positive("--clip", 1e6),
    )
    .addOption(zeroOption())
    .option(
      "--recompute",
      "with --train, activation checkpointing: compute attention and experts again in the backward pass",
    )
    .addOption(
      new Option(
        "--dtype <dtype>",
        "dtype of the weights, of a config.json without weights or with --train; default: as it says",
      ).argParser(oneOf("--dtype", STORED_NAMES)),
    );
}

/** Flags of `search`. */
export function searchFlags(command: Command): Command {
  return command
    .requiredOption(
      "--target <machine>",
      "a name of machines/, or a machine file",
    )
    .addOption(
      new Option("--phase <phase>", "prefill, decode or train (decode)")
        .argParser(oneOf("--phase", ["prefill", "decode", "train"])),
    )
    .addOption(
      new Option(
        "--objective <what>",
        "throughput, latency or memory (throughput)",
      ).argParser(oneOf("--objective", ["throughput", "latency", "memory"])),
    )
    .option(
      "--ranks <n>",
      "ranks to use (all)",
      integer("--ranks", 1, MAX_RANKS),
    )
    .option(
      "--max-context <n>",
      "tokens of a sequence (4096)",
      integer("--max-context", 1, MAX_AXIS),
    )
    .option("--experts <load>", EXPERTS)
    .addOption(
      new Option(
        "--dtype <dtype>",
        "dtype of the weights; default: as config.json says, of training bf16 with f32 master weights",
      ).argParser(oneOf("--dtype", STORED_NAMES)),
    )
    .option("--limits <limits>", "limits of its devices", parseLimits)
    .option(
      "--svg <file>",
      "draw throughput over 1 to 4096 devices; of training over those of the machine",
    )
    .option("--out <file>", "write a page about the best result and all others")
    .option("--json", "machine-readable output");
}

/** Of commands that take a while. */
export function watchOption(): Option {
  return new Option(
    "--watch",
    "serve a page on this machine that follows it as it goes",
  );
}
