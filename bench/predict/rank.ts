/**
 * Measures devices and links, predicts steps from that, and runs them: `rank.ts SHARING ADAPTER RANKS RUNS`. RANKS is a list
 * such as 1,2,4; with SHARING mpi, this is one rank of a job. Prints a line of JSON.
 */

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import process from "node:process";
import { compile, type Model } from "../../compiler/mod.ts";
import { type DeviceSharing, selectDevices } from "../../engine/devices.ts";
import { measureMachine } from "../../engine/machine/measure_machine.ts";
import { predictStep, type SceneOptions } from "../../engine/predict/mod.ts";
import { computerOf, TUNING } from "../../engine/tuning.ts";
import { storedDTypes } from "../../engine/weights.ts";
import { publishedModel } from "../../models/mod.ts";
import {
  createSession,
  type FileSource,
  openSafetensors,
  type RunOptions,
  type Session,
  Tracer,
} from "../../runtime/mod.ts";
import { createMpiCommunicator } from "../../runtime/mpi/mod.ts";
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

const [sharing, adapter, list, runs] = process.argv.slice(2) as [
  DeviceSharing,
  string,
  string,
  string,
];
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
    run: (session) => session.run("main", { x }, { outputs: [] }),
  }, {
    name: `prefill, ${sequences * length} tokens`,
    ...{ model: demo, file },
    scene: { tokens: sequences * length, sequences, skew: 0 },
    run: (session) => {
      session.reset();
      return session.run("main", packed(PROMPT), logits([0]));
    },
  }, {
    name: `decode, ${sequences} sequences`,
    ...{ model: demo, file },
    scene: { tokens: sequences, sequences, past: length, skew: 0 },
    run: (session) =>
      session.run(
        "main",
        packed({ ...PROMPT, length: 1, position: length }),
        logits([0, 1, 2, 3]),
      ),
  }];
}

/** The middle time of a step, or with a tracer the mean time of its exchanges, in ms. */
async function measure(
  work: Work,
  ranks: number,
  traced: boolean,
): Promise<{ ms: number; plan: Awaited<ReturnType<typeof compile>> }> {
  const selected = await selectDevices({ ...select, timestamps: traced });
  const tensors = await openSafetensors(work.file ? [work.file] : []);
  const plan = await compile(work.model, {
    mesh: { ep: ranks },
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
    ...work.file ? { weights: storedDTypes(tensors) } : {},
  });
  const { devices, close } = await selected.open(plan);
  const { world } = selected;
  const tracer = traced ? new Tracer(now) : undefined;
  const session = await createSession(plan, {
    devices,
    tensors: work.file ? tensors : await openSafetensors([randomWeights(plan)]),
    ...tracer ? { tracer } : {},
    ...world ? { communicator: await createMpiCommunicator(world, plan) } : {},
  });
  const times: number[] = [];
  for (let i = -3; i < Number(runs); i++) {
    await world?.barrier(world, { what: "measuring" });
    const start = now();
    await work.run(session);
    for (const device of new Set(devices)) await device.idle();
    if (i >= 0) times.push(now() - start);
  }
  const rank = world?.rank ?? 0;
  const exchanges = tracer?.toTrace().traceEvents
    .filter(({ cat, tid }) => /^all/.test(cat) && tid === rank + 1)
    .reduce((sum, { dur = 0 }) => sum + dur / 1000, 0);
  session.close();
  await close();
  const ms = exchanges === undefined
    ? median(times)
    : exchanges / (Number(runs) + 3);
  return { ms, plan };
}

const counts = list.split(",").map(Number);
const { machine, first, finish } = await measureMachine({
  ...select,
  ...sharing === "mpi" ? {} : { ranks: Math.max(...counts) },
  host: "here",
  now,
  repetitions: 2 * Number(runs),
});
const compared: Compared[] = [];
for (const work of works()) {
  for (const ranks of counts) {
    const { ms, plan } = await measure(work, ranks, false);
    const exchange = ranks > 1 ? (await measure(work, ranks, true)).ms : 0;
    const { seconds, parts } = predictStep(plan, machine, work.scene);
    compared.push({
      work: work.name,
      ranks,
      step: { predicted: 1000 * seconds, measured: ms },
      exchange: { predicted: 1000 * parts.exchange, measured: exchange },
    });
  }
}
if (first) console.log(JSON.stringify({ machine, compared }));
await finish();
process.exit(0);
