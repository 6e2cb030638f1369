/** Speculation of `generate` and `serve`, and the sources of its drafts. */

import {
  type Companion,
  Decoder,
  decoderShape,
  type Drafter,
  lookupDrafter,
  modelDrafter,
  openTarget,
  type Predicting,
  predictingDrafter,
  predictorCompanion,
  Speculation,
  type Target,
} from "../engine/mod.ts";
import { DataError } from "../spec/mod.ts";
import { openOptions, targetOf } from "./commands/options.ts";
import type { DeviceFlags } from "./flags/flags.ts";
import type { CliIo } from "./io.ts";
import { locate } from "./located.ts";
import { createProgressBar } from "./progress.ts";
import type { SpeculationFlags } from "./flags/speculation.ts";

/** A speculation, and how to free the devices of its checkpoint. */
export interface OpenedSpeculation {
  readonly speculation?: Speculation;
  close(): Promise<void>;
}

/** The decoder that drafts are for. */
export interface Drafted {
  readonly decoder: Decoder;
  readonly companions: readonly Predicting[];
  /** Whether this process decides without others, so that it may measure times. */
  readonly alone: boolean;
}

/** A source of drafts. */
interface Source {
  /** Plans that it needs beside that of the decoder, which then returns hidden states. Default: none. */
  companions?(
    target: Extract<Target, { readonly kind: "checkpoint" }>,
    files: CliIo["files"],
  ): readonly Companion[];
  drafter(drafted: Drafted): Drafter;
}

/** The sources of drafts besides other checkpoints, by the value of `--draft`. */
const SOURCES: ReadonlyMap<string, Source> = new Map<string, Source>([
  ["lookup", { drafter: lookupDrafter }],
  ["mtp", {
    companions: (target, files) => [predictorCompanion(target, files)],
    drafter: ({ decoder, companions }) =>
      predictingDrafter(companions[0]!, decoder),
  }],
]);

/** The options of opening a decoder that drafts are for. */
export function draftedOptions(
  { speculate = 0, draft = "lookup" }: SpeculationFlags,
  target: Extract<Target, { readonly kind: "checkpoint" }>,
  files: CliIo["files"],
): {
  readonly companions: readonly Companion[];
  /** Whether the decoder returns hidden states. */
  readonly hidden: boolean;
} {
  const source = speculate > 0 ? SOURCES.get(draft) : undefined;
  const companions = source?.companions?.(target, files) ?? [];
  return { companions, hidden: companions.length > 0 };
}

/** Opens the speculation of a decoder. A drafting checkpoint is unsharded, on a device of this process. */
export async function openSpeculation(
  io: CliIo,
  flags: SpeculationFlags & DeviceFlags,
  drafted: Drafted,
): Promise<OpenedSpeculation> {
  const { speculate = 0, draft = "lookup" } = flags;
  const close = () => Promise.resolve();
  if (speculate === 0) return { close };
  const source = SOURCES.get(draft);
  const found = source
    ? { drafter: source.drafter(drafted), close }
    : await openDraft(io, flags, { draft, ...drafted });
  const { drafter } = found;
  const now = drafted.alone ? io.now : undefined;
  const speculation = new Speculation({ max: speculate, drafter, now });
  return { speculation, close: found.close };
}

/** Opens another checkpoint that drafts. */
async function openDraft(
  io: CliIo,
  flags: DeviceFlags,
  { draft, decoder: { shape: { vocabulary, maxSequences, maxContext } } }:
    & Pick<Drafted, "decoder">
    & { readonly draft: string },
): Promise<{ readonly drafter: Drafter; close(): Promise<void> }> {
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
    return { drafter: modelDrafter(drafter, vocabulary), close };
  } catch (error) {
    await close();
    throw error;
  }
}
