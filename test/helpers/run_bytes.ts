/** Runs whose results are compared as bytes. */

import { createHash } from "node:crypto";
import type { Test } from "tap";
import { generate, runOpened, writeSafetensors } from "../../engine/mod.ts";
import { loadCheckpoint, padBatch, type Setup } from "./checkpoints.ts";
import { checkPredictions } from "./predictions.ts";

/** A hash of logits and generated tokens. Checks that memory and traffic are as predicted. */
export async function bytesOf(
  t: Test,
  name: string,
  setup: Setup,
  prompts: readonly (readonly number[])[],
): Promise<string> {
  const loaded = await loadCheckpoint(name, { adapter: "cpu", ...setup });
  try {
    const outputs = await runOpened(loaded, padBatch(prompts));
    loaded.session.reset();
    const { sequences } = await generate(loaded.decoder, prompts, {
      maxNewTokens: 4,
      stop: new Set(),
    });
    checkPredictions(t, loaded.session);
    return createHash("sha256").update(writeSafetensors(outputs))
      .update(JSON.stringify(sequences)).digest("hex");
  } finally {
    await loaded.close();
  }
}
