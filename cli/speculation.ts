/** Speculation of `generate` and `serve`, and the checkpoint that drafts. */

import {
  Decoder,
  decoderShape,
  lookupDrafter,
  modelDrafter,
  openTarget,
  Speculation,
} from "../engine/mod.ts";
import { DataError } from "../spec/mod.ts";
import { openOptions, targetOf } from "./commands/options.ts";
import type { DeviceFlags } from "./flags.ts";
import type { CliIo } from "./io.ts";
import { locate } from "./located.ts";
import { createProgressBar } from "./progress.ts";
import type { SpeculationFlags } from "./speculation_flags.ts";

/** A speculation, and how to free the devices of its checkpoint. */
export interface OpenedSpeculation {
  readonly speculation?: Speculation;
  close(): Promise<void>;
}

/**
 * Opens the speculation of a decoder. The drafting checkpoint is unsharded, on a device of this process. `alone`: this
 * process decides without others, so it may measure times.
 */
export async function openSpeculation(
  io: CliIo,
  flags: SpeculationFlags & DeviceFlags,
  { decoder, alone }: { readonly decoder: Decoder; readonly alone: boolean },
): Promise<OpenedSpeculation> {
  const { speculate = 0, draft } = flags;
  if (speculate === 0) return { close: () => Promise.resolve() };
  const { vocabulary, maxSequences, maxContext } = decoder;
  const made = (drafter: ReturnType<typeof lookupDrafter>) =>
    new Speculation({
      max: speculate,
      drafter,
      now: alone ? io.now : undefined,
    });
  if (draft === undefined) {
    return {
      speculation: made(lookupDrafter()),
      close: () => Promise.resolve(),
    };
  }
  const located = await locate(io, draft);
  const target = await targetOf(located.io, located.model, {});
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot draft with '${draft}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const bar = createProgressBar(io);
  const { plan, session, close } = await openTarget(target, located.io.files, {
    ...await openOptions(io, target, {
      devices: "shared",
      adapter: Array.isArray(flags.adapter)
        ? flags.adapter.slice(0, 1)
        : flags.adapter,
    }),
    next: { candidates: 1 },
    need: {
      tokens: Math.max(256, maxSequences),
      sequences: maxSequences,
      context: maxContext,
    },
    onProgress: bar.update,
  }).finally(bar.stop);
  try {
    const drafter = new Decoder(session, decoderShape(plan)!);
    return { speculation: made(modelDrafter(drafter, vocabulary)), close };
  } catch (error) {
    await close();
    throw error;
  }
}
