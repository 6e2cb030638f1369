/** Hashes of the results of runs. */

import { createHash } from "node:crypto";
import { generate, runOpened, writeSafetensors } from "../../engine/mod.ts";
import {
  loadCheckpoint,
  type Loaded,
  padBatch,
  type Setup,
} from "./checkpoints.ts";
import { mispredictions } from "./predictions.ts";

/** Hashes logits and generated tokens of a recorded checkpoint. Default: on the CPU. */
export async function bytesOf(
  name: string,
  setup: Setup,
  prompts: readonly (readonly number[])[],
): Promise<string> {
  const loaded = await loadCheckpoint(name, { adapter: "cpu", ...setup });
  return await digestOf(loaded, prompts);
}

/**
 * Hashes logits and generated tokens. Throws if memory or sent bytes differ from the prediction. Closes the checkpoint.
 */
export async function digestOf(
  loaded: Loaded,
  prompts: readonly (readonly number[])[],
): Promise<string> {
  try {
    const outputs = await runOpened(loaded, padBatch(prompts));
    loaded.session.reset();
    const { sequences } = await generate(loaded.decoder, prompts, {
      maxNewTokens: 4,
      stop: new Set(),
    });
    const [problem] = mispredictions(loaded.session);
    if (problem) throw new Error(problem);
    return createHash("sha256").update(writeSafetensors(outputs))
      .update(JSON.stringify(sequences)).digest("hex");
  } finally {
    await loaded.close();
  }
}
