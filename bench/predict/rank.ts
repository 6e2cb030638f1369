/**
 * Measures devices and links, predicts steps from that, and runs them, several times in turn, since a machine is not the
 * same at all times: `rank.ts SHARING ADAPTER RANKS RUNS ROUNDS`. RANKS is a list such as 1,2,4; with SHARING mpi, this is
 * one rank of a job. Prints a line of JSON: what each round found.
 */

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import process from "node:process";
import { compile, type Model } from "../../compiler/mod.ts";
import { type DeviceSharing, selectDevices } from "../../engine/devices.ts";
import { openMachineMeter } from "../../engine/machine/measure_machine.ts";
import {
  predictStep,
  recordedChoices,
  type SceneOptions,
} from "../../engine/predict/mod.ts";
import { CHOICES } from "../../engine/replay.ts";
import { computerOf, TUNING } from "../../engine/tuning.ts";
import { storedDTypes } from "../../engine/weights.ts";
import { publishedModel } from "../../models/mod.ts";
import {
  createSession,
  type FileSource,
  type HostTensor,
  openSafetensors,
  type RunOptions,
  type Session,
} from "../../runtime/mod.ts";
import { createMpiCommunicator } from "../../runtime/mpi/mod.ts";
import type { Plan } from "../../spec/plan.ts";
import { sum } from "../../spec/sum.ts";
import { median } from "../measure.ts";
import { expertLayer } from "../models.ts";
import { randomValues, randomWeights } from "../session.ts";
import { FFN, packed, PROMPT } from "../work.ts";
import { bindExchanges } from "./exchanges.ts";

/** A step, predicted and measured, in milliseconds. */
export interface Compared {
  readonly work: string;
  readonly ranks: number;
  readonly step: { readonly predicted: number; readonly measured: number };
  readonly exchange: { readonly predicted: number; readonly measured: number };
}

const [sharing, adapter, list, runs, rounds] = process.argv.slice(2) as [
  DeviceSharing,
  string,
  string,
  string,
  string,
];
const repetitions = Number(runs);
/** Runs before any counts: engines compile code that is used often once more. */
const WARM_UP = 10;
/** Steps of a decode in a run: threads that go to sleep and wake in another rhythm than before are slow for some 0.1 s. */
const DECODES = adapter === "cpu" ? 100 : 16;
/** Times that each round measures a part of the machine, and the exchanges of a step. */
const PARTS = 5;
const select = {
  sharing,
  adapter: adapter === "cpu" ? "cpu" as const : [Number(adapter)],
  threads: availableParallelism(),
};

function now(): number {
  return performance.now();
}

interface Work {
  readonly name: string;
  readonly model: Model;
  readonly file?: FileSource;
  readonly scene: SceneOptions;
  /** Inputs whose choices of experts are recorded; without, they are about even. */
  readonly recorded?: { readonly [name: string]: HostTensor };
  /** Steps for each run that is asked for: the shorter, the more. */
  readonly times: number;
  /** States are empty before a step. */
  readonly fresh?: boolean;
  run(session: Session): Promise<unknown>;
}

function works(): Work[] {
  const folder = new URL("../../examples/demo-lm/", import.meta.url);
  const bytes = readFileSync(new URL("model.safetensors", folder));
  const file: FileSource = {
    name: "model.safetensors",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  };
  const config = readFileSync(new URL("config.json", folder), "utf8");
  const demo = publishedModel(JSON.parse(config)).build({
    ...{ maxTokens: 256, maxSequences: 4, maxContext: 256 },
  });
  const { sequences, length } = PROMPT;
  const logits = (rows: number[]): RunOptions => ({
    ...{ outputs: ["logits"], rows: { logits: rows }, everywhere: true },
  });
  const prompt = packed(PROMPT);
  const next = packed({ ...PROMPT, length: 1, position: length });
  const x = {
    dtype: "f32",
    shape: [FFN.tokens, 512],
    data: randomValues(FFN.tokens * 512),
  } as const;
  return [{
    name: `expert layer, ${FFN.tokens} tokens`,
    model: expertLayer(FFN.tokens),
    scene: { tokens: FFN.tokens, skew: 0 },
    times: 1,
    run: (session) => session.run("main", { x }, { outputs: [] }),
  }, {
    name: `prefill, ${sequences * length} tokens`,
    ...{ model: demo, file },
    scene: { tokens: sequences * length, sequences },
    recorded: prompt,
    times: 8,
    fresh: true,
    run: (session) => session.run("main", prompt, logits([0])),
  }, {
    name: `decode, ${sequences} sequences`,
    ...{ model: demo, file },
    scene: { tokens: sequences, sequences, past: length },
    recorded: next,
    times: DECODES,
    run: (session) => session.run("main", next, logits([0, 1, 2, 3])),
  }];
}

/** A piece of work on a mesh, ready to run again and again. */
interface Ready {
  readonly work: Work;
  readonly ranks: number;
  readonly plan: Plan;
  readonly scene: SceneOptions;
  /** Milliseconds of a step, and of each of its exchanges by themselves. */
  step(): Promise<number>;
  exchanges(): Promise<number[]>;
  close(): Promise<void>;
}

async function load(work: Work, ranks: number): Promise<Ready> {
  const selected = await selectDevices(select);
  const tensors = await openSafetensors(work.file ? [work.file] : []);
  const plan = await compile(work.model, {
    mesh: { ep: ranks },
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
    ...work.file ? { weights: storedDTypes(tensors) } : {},
  });
  const { devices, close } = await selected.open(plan);
  const { world } = selected;
  const session = await createSession(plan, {
    devices,
    tensors: work.file ? tensors : await openSafetensors([randomWeights(plan)]),
    ...world ? { communicator: await createMpiCommunicator(world, plan) } : {},
  });
  const step = async () => {
    if (work.fresh) session.reset();
    for (const device of new Set(devices)) await device.idle();
    await world?.barrier(world, { what: "measuring" });
    const start = now();
    await work.run(session);
    for (const device of new Set(devices)) await device.idle();
    return now() - start;
  };
  for (let i = 0; i < WARM_UP * Math.min(work.times, 32); i++) await step();
  const scene = await sceneOf(work, plan, session);
  const own = await selected.open(plan);
  const exchanges = ranks === 1
    ? undefined
    : await bindExchanges(plan, scene, { ...own, world, now });
  for (let i = 0; i < WARM_UP; i++) await exchanges?.time();
  return {
    ...{ work, ranks, plan, scene, step },
    exchanges: () => exchanges?.time() ?? Promise.resolve([]),
    close: async () => {
      session.close();
      await close();
      for (const device of new Set(own.devices)) device.destroy();
      await own.close();
    },
  };
}

/** What a step is predicted with: the choices of experts that it makes, where the model tells them. */
async function sceneOf(
  { recorded, scene }: Work,
  plan: Plan,
  session: Session,
): Promise<SceneOptions> {
  if (!recorded) return scene;
  const outputs = Object.keys(plan.programs[0]!.outputs)
    .filter((name) => CHOICES.test(name));
  const trace = await session.run("main", recorded, {
    ...{ outputs, everywhere: true },
  });
  return { ...scene, choices: recordedChoices(trace, scene.tokens) };
}

const counts = list.split(",").map(Number);
const all: Ready[] = [];
for (const work of works()) {
  for (const ranks of counts) all.push(await load(work, ranks));
}

const { measure, first, world, close } = await openMachineMeter({
  ...select,
  ...sharing === "mpi" ? {} : { ranks: Math.max(...counts) },
  ...{ host: "here", now, repetitions: PARTS },
});

/** What one round found: a machine, and how long each piece of work took on it. */
async function round() {
  const machine = await measure();
  const times: { step: number; exchange: number }[] = [];
  for (const { work, step, exchanges } of all) {
    // As many steps before any counts: memory that was idle for a while is slow at first, and so are threads.
    const steps: number[] = [];
    for (let i = 0; i < 2 * repetitions * work.times; i++) {
      steps.push(await step());
    }
    steps.splice(0, repetitions * work.times);
    await exchanges();
    const moves: number[][] = [];
    for (let i = 0; i < PARTS; i++) moves.push(await exchanges());
    const middles = moves[0]!.map((_, n) => median(moves.map((ms) => ms[n]!)));
    times.push({ step: median(steps), exchange: sum(middles) });
  }
  return { machine, times };
}

// The first round warms up what measures the machine.
await round();
const found: Awaited<ReturnType<typeof round>>[] = [];
for (let i = 0; i < Number(rounds); i++) found.push(await round());
// Predictions leave garbage, whose collection would run beside what is measured: they are made at the end.
const results = found.map(({ machine, times }) => ({
  machine,
  compared: all.map(({ work, ranks, plan, scene }, i): Compared => {
    const { seconds, parts } = predictStep(plan, machine, scene);
    const { step, exchange } = times[i]!;
    return {
      ...{ work: work.name, ranks },
      step: { predicted: 1000 * seconds, measured: step },
      exchange: { predicted: 1000 * parts.exchange, measured: exchange },
    };
  }),
}));
if (first) console.log(JSON.stringify(results));
for (const { close } of all) await close();
await close();
await world?.finish();
process.exit(0);
