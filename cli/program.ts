/** The commands and their flags. */

import { Command } from "commander";
import type { CliIo } from "./io.ts";
import type { Prompt } from "./flags/flags.ts";
import { generateFlags } from "./flags/generate.ts";
import { samplingFlags } from "./flags/generation.ts";
import {
  checkFlags,
  devicesFlags,
  planCommandFlags,
  routersFlags,
  searchFlags,
  viewFlags,
} from "./flags/inspect.ts";
import {
  deviceFlags,
  loraFlag,
  planFlags,
  revisionOption,
} from "./flags/options.ts";
import { perplexityFlags, quantizeFlags } from "./flags/quantize.ts";
import { runFlags, tuneFlags } from "./flags/run.ts";
import { serveFlags } from "./flags/serve.ts";
import { trainFlags } from "./flags/train.ts";
import type { Rule } from "../engine/mod.ts";
import { VERSION } from "../engine/version.ts";
import { MAX_RANKS } from "../spec/limits.ts";
import { integer, parseSeed } from "./flags/values.ts";

/** The modules of the commands, loaded on demand. Printing help loads none of them. */
const COMMANDS = {
  chat: async () => (await import("./commands/chat.ts")).chatCommand,
  check: async () => (await import("./commands/check.ts")).checkCommand,
  devices: async () => (await import("./commands/devices.ts")).devicesCommand,
  generate: async () =>
    (await import("./commands/generate.ts")).generateCommand,
  launch: async () => (await import("./commands/launch.ts")).launchCommand,
  perplexity: async () =>
    (await import("./commands/perplexity.ts")).perplexityCommand,
  plan: async () => (await import("./commands/plan.ts")).planCommand,
  pull: async () => (await import("./commands/pull.ts")).pullCommand,
  merge: async () => (await import("./commands/merge.ts")).mergeCommand,
  quantize: async () =>
    (await import("./commands/quantize.ts")).quantizeCommand,
  replay: async () => (await import("./commands/replay.ts")).replayCommand,
  routers: async () => (await import("./commands/routers.ts")).routersCommand,
  search: async () =>
    (await import("./commands/start_search.ts")).searchCommand,
  run: async () => (await import("./commands/run.ts")).runCommand,
  serve: async () => (await import("./commands/serve.ts")).serveCommand,
  train: async () => (await import("./commands/train.ts")).trainCommand,
  tune: async () => (await import("./commands/tune.ts")).tuneCommand,
  view: async () => (await import("./commands/view.ts")).viewCommand,
  verify: async () => (await import("./commands/verify.ts")).verifyCommand,
};

/** Callbacks of commands. */
export interface ProgramHooks {
  /** Receives the exit code. */
  finish(code: number): void;
  /** Receives help and version texts. */
  print(text: string): void;
}

/** Creates the complete command line. */
export function createProgram(io: CliIo, hooks: ProgramHooks): Command {
  const program = new Command("switchyard")
    .description("Compile mixture-of-experts models to plans and run them")
    .version(VERSION)
    .exitOverride()
    // Descriptions state defaults themselves.
    .configureHelp({ optionDescription: ({ description }) => description })
    .configureOutput({
      writeOut: hooks.print,
      writeErr: () => {},
      outputError: () => {},
    });
  addInspectCommands(program, io, hooks);
  addRunCommands(program, io, hooks);
  addCheckpointCommands(program, io, hooks);
  addLaunchCommand(program, io, hooks);
  addTrainCommand(program, io, hooks);
  return program;
}

function addInspectCommands(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  devicesFlags(
    program.command("devices")
      .description(
        "List devices and GPU adapters, and the one a run would use",
      ),
  )
    .action(async (flags) =>
      finish(await (await COMMANDS.devices())(io, flags))
    );
  checkFlags(
    program.command("check")
      .description("Report type errors and domain errors of a model")
      .argument("<model>", "Model file, checkpoint folder or hub name."),
  )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.check())(io, model, flags))
    );
  planCommandFlags(
    program.command("plan")
      .description(
        "Compile a model; report memory, communication and predicted times",
      )
      .argument(
        "<model>",
        "Model file, checkpoint folder, hub name, config.json or plan file.",
      )
      .argument("[other]", "With --diff, the model or plan to compare with."),
  )
    .action(async (model, other, flags) => {
      const planCommand = await COMMANDS.plan();
      finish(await planCommand(io, model, { ...flags, other }));
    });
  viewFlags(
    program.command("view")
      .description(
        "Write an interactive page about a plan",
      )
      .argument(
        "<model>",
        "Model file, checkpoint folder, hub name, config.json or plan file.",
      ),
  )
    .action(async (model, flags) => {
      const viewCommand = await COMMANDS.view();
      finish(await viewCommand(io, model, flags));
    });
  searchFlags(
    program.command("search")
      .description(
        "Find the best mesh, strategy and batch size for a machine",
      )
      .argument("<model>", "config.json, checkpoint folder or hub name."),
  )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.search())(io, model, flags))
    );
  routersFlags(
    program.command("routers")
      .description("Compare router presets on the same logits"),
  )
    .action(async (flags) =>
      finish(await (await COMMANDS.routers())(io, flags))
    );
  program.command("verify")
    .description("Verify a plan file")
    .argument("<plan>", "Plan file.")
    .option("--json", "Print JSON.")
    .action(async (plan, flags) =>
      finish(await (await COMMANDS.verify())(io, plan, flags))
    );
}

function addRunCommands(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  runFlags(
    program.command("run")
      .description("Run a model or plan on tensors")
      .argument(
        "<model>",
        "Model file, checkpoint folder, hub name or plan file.",
      ),
  )
    .action(async (model, flags) =>
      finish(
        await (await COMMANDS.run())(io, model, {
          ...flags,
          ...flags.random === undefined
            ? {}
            : { random: parseSeed(flags.random) },
        }),
      )
    );
  const prompts: Prompt[] = [];
  generateFlags(
    program.command("generate")
      .description("Generate text with continuous batching")
      .argument("<checkpoint>", "Checkpoint folder, GGUF file or hub name."),
    prompts,
  )
    .action(async (folder, flags) =>
      finish(
        await (await COMMANDS.generate())(io, folder, { ...flags, prompts }),
      )
    );
  deviceFlags(planFlags(
    program.command("replay")
      .description("Generate the text of a receipt again, and compare")
      .argument("<receipt>", "File of generate --receipt or of a response."),
  ))
    .option(
      "--model <checkpoint>",
      "Checkpoint folder, GGUF file or hub name. Default: that of the receipt.",
    )
    .option("--json", "Print JSON.")
    .action(async (receipt, flags) =>
      finish(await (await COMMANDS.replay())(io, receipt, flags))
    );
  loraFlag(samplingFlags(deviceFlags(planFlags(
    program.command("chat")
      .description("Chat with a checkpoint in the terminal")
      .argument("<checkpoint>", "Checkpoint folder, GGUF file or hub name."),
  ))))
    .option("--system <text>", "System message.")
    .action(async (folder, flags) =>
      finish(await (await COMMANDS.chat())(io, folder, flags))
    );
  loraFlag(serveFlags(
    program.command("serve")
      .description("Serve a checkpoint with an OpenAI-compatible API")
      .argument("<checkpoint>", "Checkpoint folder, GGUF file or hub name."),
  ))
    .action(async (folder, flags) =>
      finish(await (await COMMANDS.serve())(io, folder, flags))
    );
}

function addCheckpointCommands(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  loraFlag(perplexityFlags(
    program.command("perplexity")
      .description("Measure how well a checkpoint predicts texts")
      .argument("<checkpoint>", "Checkpoint folder, GGUF file or hub name.")
      .argument("<files...>", "Texts, plain or compressed."),
  ))
    .action(async (model, files, flags) =>
      finish(
        await (await COMMANDS.perplexity())(io, model, { files, flags }),
      )
    );
  program.command("merge")
    .description("Write a checkpoint with the low-rank adapters of a folder")
    .argument("<checkpoint>", "Checkpoint folder or hub name.")
    .requiredOption(
      "--lora <folder>",
      "Folder of low-rank adapters in PEFT's layout.",
    )
    .requiredOption("--out <folder>", "Folder to write.")
    .addOption(revisionOption())
    .action(async (model, flags) =>
      finish(await (await COMMANDS.merge())(io, model, flags))
    );
  const rules: Rule[] = [];
  quantizeFlags(
    program.command("quantize")
      .description("Write a checkpoint with quantized weights")
      .argument("<checkpoint>", "Checkpoint folder or hub name."),
    rules,
  )
    .action(async (model, flags) =>
      finish(
        await (await COMMANDS.quantize())(io, model, { ...flags, rules }),
      )
    );
  tuneFlags(
    program.command("tune")
      .description("Measure kernel variants on a device and save the fastest")
      .argument("<model>", "Model file, checkpoint folder or hub name."),
  )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.tune())(io, model, flags))
    );
  program.command("pull")
    .description("Fetch a model of the hub into the cache")
    .argument("<name>", "OWNER/NAME, with @REVISION or /FILE.gguf.")
    .addOption(revisionOption())
    .action(async (name, flags) =>
      finish(await (await COMMANDS.pull())(io, name, flags))
    );
}

function addLaunchCommand(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  program.command("launch")
    .description("Run a command with one process per rank, over MPI")
    .requiredOption("-n <n>", "Number of ranks.", integer("-n", 1, MAX_RANKS))
    .option("--hosts <file>", "Hosts, one line 'NAME slots=N' each.")
    .option("--json", "Print the command's JSON.")
    .argument(
      "<args...>",
      "After --: run, generate, serve, train or devices --all, with arguments.",
    )
    .action(async (args, flags) =>
      finish(await (await COMMANDS.launch())(io, args, flags))
    );
}

function addTrainCommand(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  trainFlags(
    program.command("train")
      .description(
        "Train a model or checkpoint; without weights, from random initialization",
      )
      .argument(
        "<what>",
        "Checkpoint folder (config.json and tokenizer), hub name, or a file that exports a training.",
      ),
  )
    .action(async (what, flags) =>
      finish(await (await COMMANDS.train())(io, what, flags))
    );
}
