/** The commands and their flags. */

import { Command } from "commander";
import type { CliIo } from "./io.ts";
import {
  deviceFlags,
  loraFlag,
  modelFlags,
  planFlags,
  revisionOption,
  searchFlags,
  summaryFlags,
  watchOption,
} from "./flags/options.ts";
import type { Prompt } from "./flags/flags.ts";
import { samplingFlags } from "./flags/generation.ts";
import { perplexityFlags, quantizeFlags } from "./flags/quantize.ts";
import { serveFlags } from "./flags/serve.ts";
import { speculationFlags } from "./flags/speculation.ts";
import { trainFlags } from "./flags/train.ts";
import type { Rule } from "../engine/mod.ts";
import { VERSION } from "../engine/version.ts";
import { MAX_RANKS } from "../spec/limits.ts";
import { PICTURE_NAMES } from "../view/pictures/names.ts";
import {
  integer,
  oneOf,
  parseSeed,
  parseTokens,
  positive,
} from "./flags/values.ts";

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
  addTrainCommand(program, io, hooks);
  return program;
}

function addInspectCommands(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  deviceFlags(
    program.command("devices")
      .description(
        "List devices and GPU adapters, and the one a run would use",
      ),
  )
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
    .option("--json", "Print JSON.")
    .action(async (flags) =>
      finish(await (await COMMANDS.devices())(io, flags))
    );
  modelFlags(
    program.command("check")
      .description("Report type errors and domain errors of a model")
      .argument("<model>", "Model file, checkpoint folder or hub name."),
  )
    .option(
      "--watch",
      "Check again when the file or one of its imports changes.",
    )
    .option(
      "--json",
      "Print JSON; with --watch, one line per check.",
    )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.check())(io, model, flags))
    );
  summaryFlags(
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
    .option("--full", "Print the whole plan.")
    .option("--layer <n>", "Show only this layer.", integer("--layer", 0))
    .option("--rank <n>", "Show only this rank.", integer("--rank", 0))
    .option(
      "--diff",
      "Compare with another model or plan. With --full, also line by line.",
    )
    .option("--out <file>", "Write the plan to a file.")
    .option("--check", "Send token ids with the rows, for 'run --check'.")
    .option("--json", "Print the summary as JSON; with --full, the plan.")
    .action(async (model, other, flags) => {
      const planCommand = await COMMANDS.plan();
      finish(await planCommand(io, model, { ...flags, other }));
    });
  summaryFlags(
    program.command("view")
      .description(
        "Write an interactive page about a plan",
      )
      .argument(
        "<model>",
        "Model file, checkpoint folder, hub name, config.json or plan file.",
      ),
  )
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
  const presets: string[] = [];
  program.command("routers")
    .description("Compare router presets on the same logits")
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
    .option("--preset <name>", "Show only this preset. Repeatable.", (name) => {
      presets.push(name);
      return presets;
    })
    .option("--json", "Print JSON.")
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
  loraFlag(deviceFlags(planFlags(
    program.command("run")
      .description("Run a model or plan on tensors")
      .argument(
        "<model>",
        "Model file, checkpoint folder, hub name or plan file.",
      ),
  )))
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
    .option("--json", "Print JSON.")
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
  speculationFlags(loraFlag(samplingFlags(deviceFlags(planFlags(
    program.command("generate")
      .description("Generate text with continuous batching")
      .argument("<checkpoint>", "Checkpoint folder, GGUF file or hub name."),
  )))))
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
  deviceFlags(planFlags(
    program.command("tune")
      .description("Measure kernel variants on a device and save the fastest")
      .argument("<model>", "Model file, checkpoint folder or hub name."),
  ))
    .option("--weights <file>", "Weights, a safetensors file or a folder.")
    .option(
      "--budget <seconds>",
      "Time budget. Default: 60.",
      positive("--budget", 1e6),
    )
    .option("--json", "Print JSON.")
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
