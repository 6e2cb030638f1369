/** `switchyard plan --machine`: what a step would take on a machine, layer by layer, and which mesh is fastest. */

import {
  type ComparedMesh,
  loadTarget,
  meshName,
  predictTarget,
  readMachine,
  readTensors,
  recordedChoices,
} from "../../engine/mod.ts";
import type { Mesh } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { PlanFlags } from "../flags.ts";
import { formatTable } from "../table.ts";
import { timeText } from "../../spec/time_text.ts";
import { UsageError } from "../values.ts";
import { planOptions } from "./options.ts";

/** Flags that say what is predicted. */
export interface SceneFlags {
  readonly machine?: string;
  readonly tokens?: number;
  readonly sequences?: number;
  readonly past?: number;
  readonly skew?: number;
  readonly choices?: string;
}

/** Print predictions; `--out` writes them to a file as JSON. */
export async function predictCommand(
  io: CliIo,
  model: string,
  flags: PlanFlags & SceneFlags & {
    readonly machine: string;
    readonly meshes: readonly Mesh[];
    readonly check?: boolean;
    readonly out?: string;
    readonly json?: boolean;
  },
): Promise<number> {
  const { meshes, tokens = 1, sequences = 1, past = 0 } = flags;
  const { skew, choices } = flags;
  if (skew !== undefined && choices !== undefined) {
    throw new UsageError(
      "Cannot use --skew with --choices: both say which experts are chosen. Leave one of them out",
    );
  }
  if (sequences > tokens) {
    throw new UsageError(
      `Cannot use --sequences ${sequences} with --tokens ${tokens}: every sequence has at least one token in a step. Give more tokens`,
    );
  }
  const machine = await readMachine(flags.machine, io.files);
  const target = await loadTarget(model, io.files, { withoutWeights: true });
  const { mesh: _, ...options } = planOptions(target, flags);
  const scene = {
    ...{ tokens, sequences, past },
    ...skew === undefined ? {} : { skew },
  };
  const chosen = choices === undefined ? {} : {
    choices: recordedChoices(await readTensors(choices, io.files), tokens),
  };
  const compared = await predictTarget(target, {
    ...{ ...options, machine, files: io.files },
    scene: { ...scene, ...chosen },
    ...meshes.length > 0 ? { meshes } : {},
    check: flags.check ?? false,
  });
  const document = JSON.stringify(
    {
      machine: machine.name,
      scene: { ...scene, ...choices === undefined ? {} : { choices } },
      meshes: compared.map(({ prediction, speed, why }) => ({
        ...prediction,
        ...{ mesh: meshName(prediction), speed, why },
      })),
    },
    null,
    2,
  ) + "\n";
  if (flags.out !== undefined) {
    await io.files.write(flags.out, [new TextEncoder().encode(document)]);
  }
  const choice = choices !== undefined
    ? `experts chosen as in '${choices}'`
    : skew === undefined
    ? "experts chosen evenly"
    : `experts chosen at random with skew ${skew}`;
  await io.out(
    flags.json ? document : [
      `a step of ${plural(tokens, "token")} of ${
        plural(sequences, "sequence")
      } after ${past} each, ${choice}, on '${machine.name}'`,
      "",
      ...meshTable(compared),
      "",
      ...compared.map(({ why }) => why),
      ...compared.flatMap(layerTable),
      "",
    ].join("\n"),
  );
  return 0;
}

function meshTable(compared: readonly ComparedMesh[]): string[] {
  return formatTable([
    [
      ...["mesh", "devices", "step", "speed", "launches", "arithmetic"],
      ...["memory", "exchange", "waiting", "besides", "fits"],
    ],
    ...compared.map(({ prediction, speed }) => {
      const { parts, seconds, devices, memory, exact } = prediction;
      const { needed, available } = memory;
      return [
        meshName(prediction),
        `${devices}`,
        `${exact ? "" : ">= "}${timeText(seconds)}`,
        `${speed.toFixed(2)}x`,
        ...[parts.launch, parts.arithmetic, parts.memory].map(timeText),
        ...[parts.exchange, parts.waiting, parts.run].map(timeText),
        available === undefined ? "?" : needed <= available ? "yes" : "no",
      ];
    }),
  ]);
}

function layerTable({ prediction }: ComparedMesh): string[] {
  const { layers } = prediction;
  return [
    "",
    ...formatTable([
      [`${meshName(prediction)}, by layer`, "compute", "exchange", "waiting"],
      ...layers.map(({ name, launch, arithmetic, memory, ...rest }) => [
        name,
        timeText(launch + arithmetic + memory),
        timeText(rest.exchange),
        timeText(rest.waiting),
      ]),
    ]),
  ];
}

function plural(n: number, thing: string): string {
  return `${n} ${thing}${n === 1 ? "" : "s"}`;
}
