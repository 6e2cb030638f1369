/** Flags of `run` and `tune`. */

import type { Command } from "commander";
import { deviceFlags, loraFlag, planFlags, watchOption } from "./options.ts";
import { positive } from "./values.ts";

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
