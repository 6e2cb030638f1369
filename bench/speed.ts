/**
 * How fast it computes: the grouped expert FFN, prefill and decode of the bundled checkpoint, the host's share of a
 * decode step, and what ep=4 costs against ep=1 on one adapter. `--adapter cpu|NUMBER` (default: auto), `--runs N`.
 */

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { publishedModel } from "../models/mod.ts";
import type { FileSource } from "../runtime/mod.ts";
import { openSafetensors } from "../runtime/mod.ts";
import { storedDTypes } from "../engine/weights.ts";
import { describe, interleaved, machine, median } from "./measure.ts";
import { expertLayer } from "./models.ts";
import { type Bench, load, randomValues } from "./session.ts";

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "auto" },
    runs: { type: "string", default: "9" },
  },
});
const repetitions = Number(flags.runs);
const adapter = flags.adapter === "auto" || flags.adapter === "cpu"
  ? flags.adapter
  : [Number(flags.adapter)];

const MESHES = { "ep=1": { ep: 1 }, "ep=4": { ep: 4 } };
type MeshName = keyof typeof MESHES;

/** The same work for each mesh. */
async function forEachMesh<T>(
  work: (mesh: MeshName) => Promise<T>,
): Promise<{ [_ in MeshName]: T }> {
  return { "ep=1": await work("ep=1"), "ep=4": await work("ep=4") };
}

function ratio(times: { [_ in MeshName]: number[] }): string {
  return (median(times["ep=4"]) / median(times["ep=1"])).toFixed(2);
}

async function expertFfn(): Promise<void> {
  const tokens = 512;
  const flops = tokens * 2 * 3 * 2 * 512 * 1024;
  const x = {
    dtype: "f32",
    shape: [tokens, 512],
    data: randomValues(tokens * 512),
  } as const;
  const benches = await forEachMesh((mesh) =>
    load(expertLayer(tokens), { adapter, mesh: MESHES[mesh] })
  );
  const once = ({ session, idle }: Bench) => async () => {
    await session.run("main", { x }, { outputs: [] });
    await idle();
  };
  const times = await interleaved(
    { "ep=1": once(benches["ep=1"]), "ep=4": once(benches["ep=4"]) },
    { repetitions, warmUp: 2 },
  );
  for (const mesh of ["ep=1", "ep=4"] as const) {
    const rate = flops / median(times[mesh]) / 1e6;
    console.log(
      `expert FFN, ${tokens} tokens, ${mesh}: ${describe(times[mesh])}, ${
        rate.toFixed(1)
      } GFLOP/s`,
    );
    benches[mesh].session.close();
  }
  console.log(`expert FFN, ep=4 against ep=1: ${ratio(times)}`);
}

/** Packed inputs: `length` tokens of each of `sequences` sequences, from `position` on. */
function packed(
  { sequences, length, position }: {
    sequences: number;
    length: number;
    position: number;
  },
) {
  const ints = (of: (i: number) => number) => ({
    dtype: "i32" as const,
    shape: [sequences * length],
    data: Int32Array.from({ length: sequences * length }, (_, i) => of(i)),
  });
  return {
    ids: ints((i) => (i * 37 + position) % 1000),
    sequence: ints((i) => Math.floor(i / length)),
    position: ints((i) => position + i % length),
  };
}

/** Decode steps in one measured piece of work, so that a step is not lost in the noise. */
const STEPS = 16;
const PROMPT = { sequences: 4, length: 64, position: 0 };

async function generation(): Promise<void> {
  const folder = new URL("../examples/demo-lm/", import.meta.url);
  const published = publishedModel(
    JSON.parse(readFileSync(new URL("config.json", folder), "utf8")),
  );
  const bytes = readFileSync(new URL("model.safetensors", folder));
  const file: FileSource = {
    name: "model.safetensors",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  };
  const model = published.build({
    maxTokens: 256,
    maxSequences: 4,
    maxContext: 256,
  });
  const weights = storedDTypes(await openSafetensors([file]));
  const benches = await forEachMesh((mesh) =>
    load(model, { adapter, mesh: MESHES[mesh], weights, files: [file] })
  );
  const last = { outputs: ["logits"], rows: { logits: [0] } };
  const prefill = ({ session }: Bench) => async () => {
    session.reset();
    await session.run("main", packed(PROMPT), last);
  };
  const host = { "ep=1": [] as number[], "ep=4": [] as number[] };
  const decode = (mesh: MeshName) => async () => {
    const { session, takeWaiting } = benches[mesh];
    takeWaiting();
    const start = performance.now();
    for (let i = 0; i < STEPS; i++) {
      const position = PROMPT.length + i;
      const step = packed({ ...PROMPT, length: 1, position });
      await session.run("main", step, {
        outputs: ["logits"],
        rows: { logits: [0, 1, 2, 3] },
      });
    }
    const total = performance.now() - start;
    host[mesh].push((total - takeWaiting()) / total);
  };
  const prefills = await interleaved(
    { "ep=1": prefill(benches["ep=1"]), "ep=4": prefill(benches["ep=4"]) },
    { repetitions, warmUp: 2 },
  );
  const decodes = await interleaved(
    { "ep=1": decode("ep=1"), "ep=4": decode("ep=4") },
    { repetitions, warmUp: 1 },
  );
  const tokens = PROMPT.sequences * PROMPT.length;
  for (const mesh of ["ep=1", "ep=4"] as const) {
    const steps = decodes[mesh].map((ms) => ms / STEPS);
    const share = 100 * median(host[mesh].slice(-repetitions));
    console.log(
      `prefill, ${tokens} tokens, ${mesh}: ${describe(prefills[mesh])}, ${
        (tokens / median(prefills[mesh]) * 1000).toFixed(0)
      } tokens/s`,
    );
    console.log(
      `decode step, ${PROMPT.sequences} sequences, ${mesh}: ${
        describe(steps)
      }, ${
        (PROMPT.sequences / median(steps) * 1000).toFixed(0)
      } tokens/s, host ${share.toFixed(1)} % of the step`,
    );
    benches[mesh].session.close();
  }
  console.log(`prefill, ep=4 against ep=1: ${ratio(prefills)}`);
  console.log(`decode, ep=4 against ep=1: ${ratio(decodes)}`);
}

console.log(machine());
await expertFfn();
await generation();
