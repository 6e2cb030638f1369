/** Routing with capacity against runs of fairscale recorded in test/references. */

import { readFileSync } from "node:fs";
import { capacity, elementwiseGrid, router } from "../compiler/kernels/mod.ts";
import { ROUTING_PRESETS } from "../compiler/graph/routing.ts";
import { u32 } from "../spec/kernel/build.ts";
import {
  close,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";

const FOLDER = new URL("references/fairscale/", import.meta.url);

/** The f32 tensors of a safetensors file. */
function readTensors(name: string): (key: string) => Float32Array {
  const file = readFileSync(new URL(name, FOLDER));
  const bytes = new Uint8Array(file).buffer;
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + length)) as {
    [key: string]: { data_offsets: [number, number] };
  };
  return (key) => {
    const [start, end] = header[key]!.data_offsets;
    return new Float32Array(bytes.slice(8 + length + start, 8 + length + end));
  };
}

const FILES = [
  { file: "w2-e4.safetensors", ranks: 2, experts: 4, noisy: false },
  { file: "w4-e8-noise.safetensors", ranks: 4, experts: 8, noisy: true },
];

for (const { file, ranks, experts, noisy } of FILES) {
  testKernels(
    `router() and capacity() route as fairscale did in ${file}`,
    async (t, target) => {
      const tensor = readTensors(file);
      const gate = rowsOf(tensor("gate.weight"), 8);
      // The ranks of the recorded run are groups here, all in one launch.
      const inputs = Array.from(
        { length: ranks },
        (_, r) => rowsOf(tensor(`rank${r}.input`), 8),
      );
      const tokens = inputs.flat();
      const logits = tokens.flatMap((x) =>
        gate.map((w) => w.reduce((sum, v, i) => sum + v * x[i]!, 0))
      );
      const noise = inputs.flatMap((_, r) => [...tensor(`rank${r}.gumbel`)]);
      const grid = workgroups(elementwiseGrid(tokens.length));
      const rule = {
        preset: "fairscale.top2",
        topK: 2,
        ...ROUTING_PRESETS["fairscale.top2"],
      };
      const two = tokens.length * 2;
      const routed = await target.run(
        router({
          name: "router",
          experts,
          rule,
          tokens: u32(tokens.length),
          noisy,
        }),
        {
          logits: Float32Array.from(logits),
          noise: Float32Array.from(noise),
          index: new Int32Array(two),
          weight: new Float32Array(two),
        },
        grid,
      );
      const size = tokens.length / ranks;
      const kept = await target.run(
        capacity({
          name: "capacity",
          experts,
          tokens: u32(tokens.length),
          group: size,
        }),
        {
          index: routed["index"]!,
          score: routed["weight"]!,
          slot: new Int32Array(two),
          weight: new Float32Array(two),
        },
        grid,
      );
      const slots = 2 * size / experts;
      const combined = new Float32Array(tokens.length * experts * slots);
      kept["slot"]!.forEach((slot, a) => {
        const token = Math.floor(a / 2);
        const expert = routed["index"]![a]!;
        if (slot >= 0) {
          combined[(token * experts + expert) * slots + slot] =
            kept["weight"]![a]!;
        }
      });
      const expected = inputs.flatMap((
        _,
        r,
      ) => [...tensor(`rank${r}.combine_weights`)]);
      close(t, combined, expected, 1e-5);
      t.ok(kept["slot"]!.includes(-1), "some choices are dropped");
    },
  );
}
