/** The commands and their flags. */

import { Command, Option } from "commander";
import type { CliIo } from "./io.ts";
import {
  deviceFlags,
  dtypeOption,
  meshFlags,
  planFlags,
  searchFlags,
  summaryFlags,
  watchOption,
  zeroOption,
} from "./flag_options.ts";
import type { Prompt } from "./flags.ts";
import { samplingFlags } from "./generation_flags.ts";
import { VERSION } from "../engine/version.ts";
import { MAX_AXIS, MAX_MICRO_BATCHES, MAX_RANKS } from "../spec/limits.ts";
import type { Mesh } from "../spec/mod.ts";
import { PICTURE_NAMES } from "../view/picture_names.ts";
import {
  integer,
  notNegative,
  oneOf,
  parseSeed,
  parseTokens,
  positive,
} from "./values.ts";

/** What runs a command, loaded when it is called: to print help takes none of it. */
const COMMANDS = {
  chat: async () => (await import("./commands/chat.ts")).chatCommand,
  check: async () => (await import("./commands/check.ts")).checkCommand,
  devices: async () => (await import("./commands/devices.ts")).devicesCommand,
  generate: async () =>
    (await import("./commands/generate.ts")).generateCommand,
  launch: async () => (await import("./commands/launch.ts")).launchCommand,
  plan: async () => (await import("./commands/plan.ts")).planCommand,
  routers: async () => (await import("./commands/routers.ts")).routersCommand,
  search: async () => (await import("./commands/search.ts")).searchCommand,
  run: async () => (await import("./commands/run.ts")).runCommand,
  train: async () => (await import("./commands/train.ts")).trainCommand,
  tune: async () => (await import("./commands/tune.ts")).tuneCommand,
  view: async () => (await import("./commands/view.ts")).viewCommand,
  verify: async () => (await import("./commands/verify.ts")).verifyCommand,
};

/** How commands report back. */
export interface ProgramHooks {
  /** Takes the exit code. */
  finish(code: number): void;
  /** Takes help and version texts. */
  print(text: string): void;
}

/** The whole command line. */
export function createProgram(io: CliIo, hooks: ProgramHooks): Command {
  const program = new Command("switchyard")
    .description("Compile mixture-of-experts models to plans and run them")
    .version(VERSION)
    .exitOverride()
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
        "list devices and GPU adapters, and say which would be used and why",
      ),
  )
    .option(
      "--all",
      "measure what a run would use, and every link of its ranks",
    )
    .option(
      "--ranks <n>",
      "ranks in this process",
      integer("--ranks", 1, MAX_RANKS),
    )
    .option(
      "--repetitions <n>",
      "times that everything is measured; the median counts (default: 9)",
      integer("--repetitions", 1),
    )
    .option("--out <file>", "write a machine file, for --target")
    .option("--json", "machine-readable output")
    .action(async (flags) =>
      finish(await (await COMMANDS.devices())(io, flags))
    );
  program.command("check")
    .description("type errors and domain errors of a model")
    .argument("<model>", "model file or checkpoint folder")
    .option(
      "--watch",
      "check again whenever the file, or one that it imports, changes",
    )
    .option(
      "--json",
      "machine-readable output; with --watch, a line for each check",
    )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.check())(io, model, flags))
    );
  const meshes: Mesh[] = [];
  summaryFlags(
    program.command("plan")
      .description(
        "compile a model, and say what its plan holds and whether it fits",
      )
      .argument(
        "<model>",
        "model file, checkpoint folder, config.json or plan document",
      )
      .argument("[other]", "with --diff, what to compare it with"),
    meshes,
  )
    .option("--full", "print the whole plan")
    .option("--layer <n>", "only this layer", integer("--layer", 0))
    .option("--rank <n>", "only this rank", integer("--rank", 0))
    .option("--diff", "how another model or plan differs")
    .option("--out <file>", "write the document to a file")
    .option("--check", "send token ids along, for 'run --check'")
    .option("--json", "the summary as JSON; with --full, the document")
    .action(async (model, other, flags) => {
      const planCommand = await COMMANDS.plan();
      finish(await planCommand(io, model, { ...flags, other, meshes }));
    });
  const viewed: Mesh[] = [];
  summaryFlags(
    program.command("view")
      .description(
        "draw a plan: ranks as tracks, which tokens change at dispatch and combine",
      )
      .argument(
        "<model>",
        "model file, checkpoint folder, config.json or plan document",
      ),
    viewed,
  )
    .addOption(
      new Option(
        "--svg <picture>",
        `only one picture, as SVG: ${PICTURE_NAMES.join(", ")}`,
      )
        .argParser(oneOf("--svg", PICTURE_NAMES)),
    )
    .option("--dark", "with --svg, on a dark ground")
    .option("--trace <file>", "show a run that 'run --trace' recorded")
    .option(
      "--choices <file>",
      "show the experts that tokens chose, as the outputs of a run have them",
    )
    .option("--against <plan>", "show how another model or plan differs")
    .option("--out <file>", "write to a file (plan.html; --svg: to the output)")
    .option("--open", "show the page in the browser too")
    .option(
      "--run",
      "serve the page of a checkpoint, which runs the plan itself",
    )
    .action(async (model, flags) => {
      const viewCommand = await COMMANDS.view();
      finish(await viewCommand(io, model, { ...flags, meshes: viewed }));
    });
  searchFlags(
    program.command("search")
      .description(
        "find the best mesh, strategy and batch of a model on a machine",
      )
      .argument("<model>", "config.json, or checkpoint folder"),
  )
    .action(async (model, flags) =>
      finish(await (await COMMANDS.search())(io, model, flags))
    );
  const presets: string[] = [];
  program.command("routers")
    .description("what router presets make of the same logits, side by side")
    .requiredOption(
      "--logits <file>",
      "JSON, a list of rows; or a safetensors file",
    )
    .option("--tensor <name>", "tensor of that file (logits)")
    .option("--top-k <k>", "experts per token (2)", integer("--top-k", 1))
    .option(
      "--capacity-factor <f>",
      "capacity factor: room of an expert over its even share; default: the preset's",
      positive("--capacity-factor", 1e6),
    )
    .addOption(
      new Option(
        "--drop <which>",
        "which choices are dropped: by position or by score",
      )
        .argParser(oneOf("--drop", ["position", "score"])),
    )
    .option("--preset <name>", "only this one; repeatable", (name) => {
      presets.push(name);
      return presets;
    })
    .option("--json", "machine-readable output")
    .action(async (flags) =>
      finish(await (await COMMANDS.routers())(io, flags))
    );
  program.command("verify")
    .description("say whether a saved plan is legal")
    .argument("<plan>", "plan document")
    .option("--json", "machine-readable output")
    .action(async (plan, flags) =>
      finish(await (await COMMANDS.verify())(io, plan, flags))
    );
}

function addRunCommands(
  program: Command,
  io: CliIo,
  { finish }: ProgramHooks,
): void {
  deviceFlags(planFlags(
    program.command("run")
      .description("run a model or a plan: tensors in, tensors out")
      .argument("<model>", "model file, checkpoint folder or plan document"),
  ))
    .option("--inputs <file>", "safetensors file with the inputs")
    .option("--weights <file>", "safetensors file or folder with the weights")
    .option("--outputs <file>", "safetensors file to write")
    .option(
      "--random [seed]",
      "draw inputs and weights that are not given; default seed: 0",
    )
    .option(
      "--replay <file>",
      "route as in a recorded run: its outputs, with the choices of experts",
    )
    .option("--trace <file>", "write a Chrome/Perfetto trace")
    .addOption(watchOption())
    .option("--check", "check that every choice returns to its token")
    .option(
      "--allow-kernels",
      "run a plan that is not what the model in it compiles to: results may differ from run to run",
    )
    .option("--json", "machine-readable output")
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
  samplingFlags(deviceFlags(planFlags(
    program.command("generate")
      .description("generate text from prompts, in batches")
      .argument("<checkpoint>", "checkpoint folder"),
  )))
    .option(
      "-p, --prompt <text>",
      "a prompt, or '-' for standard input; repeatable",
      (text) => {
        prompts.push({ text });
      },
    )
    .option(
      "--prompt-file <file>",
      "a prompt in a file; repeatable",
      (file) => {
        prompts.push({ file });
      },
    )
    .option(
      "--prompts <file>",
      "a prompt on each line of a file; those that find no room wait",
      (lines) => {
        prompts.push({ lines });
      },
    )
    .option("--tokens <ids>", "a prompt as token ids; repeatable", (text) => {
      prompts.push({ tokens: parseTokens(text) });
    })
    .option(
      "--chat",
      "each prompt is a message, put into the checkpoint's chat template",
    )
    .option("--system <text>", "a system message before each, with --chat")
    .option(
      "--logprobs <n>",
      "log-probabilities of tokens and of the n likeliest, with --json or --jsonl",
      integer("--logprobs", 0, 128),
    )
    .option("--json", "machine-readable output")
    .addOption(watchOption())
    .option(
      "--jsonl",
      "machine-readable output, a line a token as it is chosen",
    )
    .action(async (folder, flags) =>
      finish(
        await (await COMMANDS.generate())(io, folder, { ...flags, prompts }),
      )
    );
  samplingFlags(deviceFlags(planFlags(
    program.command("chat")
      .description("talk with a checkpoint, a line a message")
      .argument("<checkpoint>", "checkpoint folder"),
  )))
    .option("--system <text>", "a system message before the conversation")
    .action(async (folder, flags) =>
      finish(await (await COMMANDS.chat())(io, folder, flags))
    );
  deviceFlags(planFlags(
    program.command("tune")
      .description("find the fastest kernels for a device, and save them")
      .argument("<model>", "model file or checkpoint folder"),
  ))
    .option("--weights <file>", "safetensors file or folder with the weights")
    .option(
      "--budget <seconds>",
      "time after which nothing new is tried (60)",
      positive("--budget", 1e6),
    )
    .option("--json", "machine-readable output")
    .action(async (model, flags) =>
      finish(await (await COMMANDS.tune())(io, model, flags))
    );
  program.command("launch")
    .description("run a command with its ranks as processes, through MPI")
    .requiredOption("-n <n>", "ranks", integer("-n", 1, MAX_RANKS))
    .option("--hosts <file>", "machines, a line 'NAME slots=N' for each")
    .option("--json", "machine-readable output of the command")
    .argument(
      "<args...>",
      "'run', 'generate', 'train' or 'devices --all' with its arguments, behind --",
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
  deviceFlags(meshFlags(
    program.command("train")
      .description("train a model on text; without weights, from random ones")
      .argument(
        "<what>",
        "folder with config.json and a tokenizer, or a file that exports a training",
      ),
  ))
    .option("--data <files...>", "texts, plain or compressed")
    .option(
      "--validate <files...>",
      "validation texts",
    )
    .option(
      "--validate-every <n>",
      "steps from one validation to the next; default: only at the end",
      integer("--validate-every", 1),
    )
    .option(
      "--validate-batches <n>",
      "batches of a validation before the last (all)",
      integer("--validate-batches", 1),
    )
    .requiredOption("--out <folder>", "where checkpoints go")
    .requiredOption("--steps <n>", "steps in all", integer("--steps", 1))
    .option(
      "--batch <n>",
      "sequences of a micro-batch (8)",
      integer("--batch", 1, MAX_AXIS),
    )
    .option(
      "--accumulate <n>",
      "gradient accumulation: micro-batches of a step (1)",
      integer("--accumulate", 1, MAX_MICRO_BATCHES),
    )
    .option(
      "--length <n>",
      "tokens of a sequence (128)",
      integer("--length", 1, MAX_AXIS),
    )
    .addOption(
      new Option("--optimizer <name>", "adamw or sgd (adamw)")
        .argParser(oneOf("--optimizer", ["adamw", "sgd"])),
    )
    .option("--lr <rate>", "learning rate (0.001)", notNegative("--lr"))
    .option(
      "--warmup <n>",
      "steps of linear warmup (0)",
      integer("--warmup", 0),
    )
    .option(
      "--decay <n>",
      "step at which the learning rate is lowest, along a cosine (--steps)",
      integer("--decay", 0),
    )
    .option(
      "--floor <share>",
      "lowest learning rate, as a share of --lr (0.1)",
      notNegative("--floor"),
    )
    .option("--beta1 <b>", "beta1 of AdamW (0.9)", notNegative("--beta1"))
    .option("--beta2 <b>", "beta2 of AdamW (0.95)", notNegative("--beta2"))
    .option(
      "--momentum <m>",
      "momentum of SGD (0.9)",
      notNegative("--momentum"),
    )
    .option(
      "--weight-decay <w>",
      "weight decay; default: the optimizer's own",
      notNegative("--weight-decay"),
    )
    .option(
      "--clip <norm>",
      "gradient clipping: maximum norm of all parameters together (1)",
      positive("--clip", 1e30),
    )
    .option(
      "--aux <weight>",
      "weight of the load balancing loss; default: config.json",
      notNegative("--aux"),
    )
    .addOption(
      new Option(
        "--balance <what>",
        "load balancing loss of each 'layer', or of all 'together' as transformers has it (together)",
      ).argParser(oneOf("--balance", ["layer", "together"])),
    )
    .option(
      "--bias-update <rate>",
      "loss-free load balancing: how much selection biases of routers change in a step; default: not at all",
      notNegative("--bias-update"),
    )
    .option("--seed <s>", "same seed, same training (0)", integer("--seed", 0))
    .addOption(zeroOption())
    .addOption(dtypeOption())
    .option(
      "--save-every <n>",
      "steps from checkpoint to checkpoint; default: only at the end",
      integer("--save-every", 1),
    )
    .option(
      "--recompute",
      "activation checkpointing: compute blocks again in the backward pass",
    )
    .option("--resume", "resume the training in --out")
    .option(
      "--tokenizer <folder>",
      "folder of the tokenizer; default: that of config.json",
    )
    .option(
      "--metrics <file>",
      "file for a line of JSON a step, with plots beside it at the end (OUT/metrics.jsonl)",
    )
    .addOption(watchOption())
    .option("--json", "the lines of --metrics on standard output")
    .action(async (what, flags) =>
      finish(await (await COMMANDS.train())(io, what, flags))
    );
}
