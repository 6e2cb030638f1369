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
import { gatherTrace } from "../../engine/job.ts";
import { measureMachine } from "../../engine/machine/measure_machine.ts";
import { predictStep, type SceneOptions } from "../../engine/predict/mod.ts";
import { computerOf, TUNING } from "../../engine/tuning.ts";
import { storedDTypes } from "../../engine/weights.ts";
import { publishedModel } from "../../models/mod.ts";
import {
  createSession,
  type FileSource,
  openSafetensors,
  rankTimes,
  type RunOptions,
  type Session,
  type Trace,
  type TraceEvent,
  Tracer,
} from "../../runtime/mod.ts";
import { createMpiCommunicator } from "../../runtime/mpi/mod.ts";
import type { Plan } from "../../spec/plan.ts";
import { median } from "../measure.ts";
import { expertLayer } from "../models.ts";
import { randomValues, randomWeights } from "../session.ts";
import { FFN, packed, PROMPT } from "../work.ts";

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
const WARM_UP = 3;
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
  /** Steps for each run that is asked for: the shorter, the more, and the host's part of a step is slow at first. */
  readonly times: number;
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
    scene: { tokens: sequences * length, sequences, skew: 0 },
    times: 4,
    run: (session) => {
      session.reset();
      return session.run("main", packed(PROMPT), logits([0]));
    },
  }, {
    name: `decode, ${sequences} sequences`,
    ...{ model: demo, file },
    scene: { tokens: sequences, sequences, past: length, skew: 0 },
    times: 32,
    run: (session) =>
      session.run(
        "main",
        packed({ ...PROMPT, length: 1, position: length }),
        logits([0, 1, 2, 3]),
      ),
  }];
}

/** A piece of work on a mesh, ready to run again and again. */
interface Ready {
  readonly work: Work;
  readonly ranks: number;
  readonly plan: Plan;
  /** Milliseconds of a step. */
  step(): Promise<number>;
  /** Milliseconds in which rows move, of each of some steps; nothing on ranks other than the first. */
  exchanges(): Promise<number[]>;
  close(): Promise<void>;
}

async function ready(work: Work, ranks: number): Promise<Ready> {
  const plain = await load(work, ranks, undefined);
  const tracer = new Tracer(now);
  const traced = ranks > 1 ? await load(work, ranks, tracer) : undefined;
  let told = 0;
  return {
    ...{ work, ranks, plan: plain.plan },
    step: plain.step,
    exchanges: async () => {
      if (!traced) return [0];
      for (let i = 0; i < repetitions; i++) await traced.step();
      const { world } = traced;
      const trace = world ? await gatherTrace(world, tracer) : tracer.toTrace();
      if (!trace) return [];
      const fresh = runsOf(trace).slice(told);
      told += fresh.length;
      return fresh.map((run) =>
        Math.max(...rankTimes(run).map(({ exchange }) => exchange))
      );
    },
    close: async () => {
      await plain.close();
      await traced?.close();
    },
  };
}

/** The events of each run of a trace: on every rank, those up to the end of its program. */
function runsOf({ traceEvents, displayTimeUnit }: Trace): Trace[] {
  const ended = new Map<number, number>();
  const runs: TraceEvent[][] = [];
  for (const event of traceEvents) {
    if (event.ph !== "X") continue;
    const run = ended.get(event.pid) ?? 0;
    (runs[run] ??= []).push(event);
    if (event.cat === "program") ended.set(event.pid, run + 1);
  }
  return runs.map((events) => ({ traceEvents: events, displayTimeUnit }));
}

async function load(work: Work, ranks: number, tracer: Tracer | undefined) {
  const selected = await selectDevices({
    ...select,
    timestamps: tracer !== undefined,
  });
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
    ...tracer ? { tracer } : {},
    ...world ? { communicator: await createMpiCommunicator(world, plan) } : {},
  });
  const step = async () => {
    await world?.barrier(world, { what: "measuring" });
    const start = now();
    await work.run(session);
    for (const device of new Set(devices)) await device.idle();
    return now() - start;
  };
  for (let i = 0; i < WARM_UP * work.times; i++) await step();
  return {
    ...{ plan, world, step },
    close: async () => {
      session.close();
      await close();
    },
  };
}

const counts = list.split(",").map(Number);
const all: Ready[] = [];
for (const work of works()) {
  for (const ranks of counts) all.push(await ready(work, ranks));
}

/** What one round found: a machine, and each piece of work predicted from it and run. */
async function round() {
  const { machine, first } = await measureMachine({
    ...select,
    ...sharing === "mpi" ? {} : { ranks: Math.max(...counts) },
    host: "here",
    now,
  });
  const compared: Compared[] = [];
  for (const { work, ranks, plan, step, exchanges } of all) {
    const steps: number[] = [];
    for (let i = 0; i < repetitions * work.times; i++) {
      steps.push(await step());
    }
    const moves = await exchanges();
    if (!first) continue;
    const { seconds, parts } = predictStep(plan, machine, work.scene);
    compared.push({
      ...{ work: work.name, ranks },
      step: { predicted: 1000 * seconds, measured: median(steps) },
      exchange: { predicted: 1000 * parts.exchange, measured: median(moves) },
    });
  }
  return { machine, compared };
}

const found: Awaited<ReturnType<typeof round>>[] = [];
for (let i = 0; i < Number(rounds); i++) found.push(await round());
const { world } = await selectDevices(select);
if ((world?.rank ?? 0) === 0) console.log(JSON.stringify(found));
for (const { close } of all) await close();
await world?.finish();
process.exit(0);
