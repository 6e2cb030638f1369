/** A model, a plan or a checkpoint, loaded by its path: runs on tensors or generates text. */

import type { Plan } from "../spec/plan/plan.ts";
import { DataError } from "../spec/errors.ts";
import { checkOptions } from "../spec/options.ts";
import { loadTarget, type LoadTargetOptions } from "./check.ts";
import { openTokenizer } from "./checkpoint/checkpoint.ts";
import { Decoder, decoderShape } from "./generation/decoder.ts";
import type { FileSystem } from "./files.ts";
import {
  generateText,
  type GenerateTextOptions,
} from "./generation/generate_text.ts";
import { type OpenOptions, openTarget } from "./open.ts";
import { GENERATE_TEXT_OPTIONS, OPEN_OPTIONS } from "./option_names.ts";
import { runOpened, type RunOptions, type Tensors } from "./run.ts";

/** A loaded model. */
export interface LoadedModel {
  readonly plan: Plan;
  /** Outputs by name. */
  run(inputs: Tensors, options?: RunOptions): Promise<Tensors>;
  /** Continues a text, for a checkpoint with a tokenizer. Default: greedy. */
  generate(prompt: string, options?: GenerateTextOptions): Promise<string>;
  /** Frees devices and processes. */
  close(): Promise<void>;
}

/**
 * Loads the target at a path: `file.ts` or `file.ts#export`, a plan, or a checkpoint folder. Throws DataError for an
 * unknown option, as `run` and `generate`.
 *
 * @example
 * ```ts
 * const model = await openModel("examples/demo-lm", nodeFiles(), { mesh: { ep: 4 } });
 * await model.generate("Once upon a time", { onText: (piece) => console.log(piece) });
 * await model.close();
 * ```
 */
export async function openModel(
  path: string,
  files: FileSystem,
  { family, ...options }: OpenOptions & Pick<LoadTargetOptions, "family"> = {},
): Promise<LoadedModel> {
  checkOptions("open a model", { family, ...options }, {
    family: true,
    ...OPEN_OPTIONS,
  });
  const target = await loadTarget(path, files, {
    family,
    withoutWeights: options.random !== undefined,
  });
  const opened = await openTarget(target, files, options);
  const { plan, session } = opened;
  const shape = decoderShape(plan);
  const tokenizer = target.kind === "checkpoint"
    ? await openTokenizer(path, files)
    : undefined;
  return {
    plan,
    async run(inputs, how = {}) {
      checkOptions("run a model", how, { replay: true });
      return await runOpened(opened, inputs, how);
    },
    async generate(prompt, how = {}) {
      checkOptions("generate text", how, GENERATE_TEXT_OPTIONS);
      if (!shape || !tokenizer || target.kind !== "checkpoint") {
        throw new DataError(
          `Cannot generate text with '${path}': it is no checkpoint with a tokenizer. Give a checkpoint folder`,
        );
      }
      session.reset();
      const decoder = new Decoder(session, shape);
      const { stop } = target.checkpoint;
      return await generateText({ decoder, tokenizer, stop }, prompt, how);
    },
    async close() {
      tokenizer?.close?.();
      await opened.close();
    },
  };
}
