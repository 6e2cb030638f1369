// Context parallelism: the bytes of one rank, memory and bytes as predicted, and a verifier that holds every transfer.
// needs: cpu
import { createHash } from "node:crypto";
import t from "tap";
import { generate, runOpened, writeSafetensors } from "../engine/mod.ts";
import { loadCheckpoint, padBatch } from "./helpers/checkpoints.ts";
import { checkPredictions } from "./helpers/predictions.ts";

/** Prompts of these lengths. */
function promptsOf(lengths: readonly number[]): number[][] {
  return lengths.map((length, s) =>
    Array.from({ length }, (_, i) => (i * i * 7 + i * 3 + s * 11) % 90)
  );
}

const PROMPTS = promptsOf([70, 3, 118, 40]);

for (const name of ["granitemoe-8e", "gptoss-8e", "deepseekv3-16e"]) {
  t.test(name, async (t) => {
    const bytesOn = async (
      mesh: string,
      sharing: "shared" | "separate",
      pages?: { readonly size: number; readonly count: number },
    ) => {
      const loaded = await loadCheckpoint(name, {
        mesh,
        sharing,
        adapter: "cpu",
        bounds: { maxContext: 128, maxTokens: 64 },
        ...pages ? { pages } : {},
      });
      try {
        const outputs = await runOpened(loaded, padBatch(PROMPTS));
        loaded.session.reset();
        const { sequences } = await generate(loaded.decoder, PROMPTS, {
          maxNewTokens: 8,
          stop: new Set(),
        });
        checkPredictions(t, loaded.session);
        return createHash("sha256").update(writeSafetensors(outputs))
          .update(JSON.stringify(sequences)).digest("hex");
      } finally {
        await loaded.close();
      }
    };
    const wanted = await bytesOn("ep=1", "shared");
    t.equal(await bytesOn("cp=2", "shared"), wanted, "cp=2");
    t.equal(await bytesOn("cp=4", "shared"), wanted, "cp=4");
    const pages = { size: 16, count: 12 };
    t.equal(await bytesOn("cp=4", "shared", pages), wanted, "pages");
    t.equal(await bytesOn("cp=2", "separate"), wanted, "separate devices");
  });
}
