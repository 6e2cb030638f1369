// Weights and states of a plan are known before its kernels are compiled.
// rotates with: engine/planner/, compiler/passes/

import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { configurationOf } from "../engine/checkpoint/configuration.ts";
import {
  compileRepresentatives,
  heldRepresentatives,
} from "../engine/planner/summary/compiled.ts";
import { onRank } from "../spec/plan/plan.ts";
import { range } from "../spec/range.ts";

const CONFIGS = fileURLToPath(new URL("references/configs", import.meta.url));

const CASES = [
  // FP8 blocks, latent attention with an indexer.
  ["deepseek-v3.2", { pp: 2, tp: 4 }],
  ["olmoe-1b-7b", { cp: 2, ep: 2 }],
  // Recurrent states.
  ["qwen3.6-35b-a3b", { ep: 4, tp: 2 }],
  // Three parts of equal layers on three stages; embeddings are also the output projection.
  ["granite-3.0-1b-a400m", { pp: 3, ep: 2 }],
  ["gemma-4-26b-a4b", { tp: 2 }],
] as const;

for (const [name, mesh] of CASES) {
  t.test(`${name} on ${JSON.stringify(mesh)}`, async (t) => {
    const files = nodeFiles();
    const file = path.join(CONFIGS, `${name}.json`);
    const configuration = configurationOf(
      JSON.parse(readFileSync(file, "utf8")),
      file,
    );
    const target = { kind: "configuration", configuration } as const;
    const sequences = 12;
    const options = {
      mesh,
      need: {
        tokens: sequences,
        sequences,
        context: 512,
        lengths: range(sequences).map(() => 512),
      },
    };
    const { plan } = await compileRepresentatives(target, files, options);
    const { held } = await heldRepresentatives(target, files, options);
    const ranks = range(plan.ranks);
    const bytes = new Map(
      Object.values(plan.buffers)
        .filter(({ kind }) => kind === "weight" || kind === "state")
        .map((buffer) => [
          buffer.name,
          ranks.map((rank) => onRank(buffer.bytes, rank)),
        ]),
    );
    t.ok(bytes.size > 10);
    t.strictSame(
      new Map(
        held.map((buffer) => [
          buffer.name,
          ranks.map((rank) => onRank(buffer.bytes, rank)),
        ]),
      ),
      bytes,
    );
  });
}
