/**
 * Decode steps of a large checkpoint in this process for each storage type of the cache, or for each activation mode,
 * interleaved with a loop in C that reads the same number of bytes.
 */

import { availableParallelism } from "node:os";
import process from "node:process";
import {
  Decoder,
  decoderShape,
  type Opened,
  type Target,
} from "../../engine/mod.ts";
import type { HostKind } from "../../engine/devices.ts";
import type { PackedTokens } from "../../engine/generation/packing.ts";
import type { Activations } from "../../spec/weights/activations.ts";
import { sum } from "../../spec/sum.ts";
import { interleaved, median, milliseconds } from "../measure.ts";
import { openOurs } from "../peers/engine.ts";
import { readLoops } from "./bandwidth.ts";
import { cacheBytes, stepBytes } from "./olmoe.ts";

const DTYPES = ["f32", "f16", "bf16"] as const;

/** Bytes of a cache value. */
const WIDTH = { f32: 4, f16: 2, bf16: 2 };

/** The measurement for one dtype of the cache, or for one activation mode. */
export interface Decoded {
  /** Bytes that a step reads: the used weights, keys and values. */
  readonly bytes: number;
  readonly prefillMs: number;
  /** The fraction of a step in which no kernel runs. */
  readonly hostShare?: number;
  readonly stepsMs: readonly number[];
  /** Times of all cores together: other work on the machine affects them less. */
  readonly stepsCoresMs: readonly number[];
}

/** Number of steps for the host's fraction. */
const SHARE_STEPS = 16;

/** Measures steps after a prompt of the given number of tokens. */
export async function measureDecode(
  target: Extract<Target, { readonly kind: "checkpoint" }>,
  { adapter, prompt, runs, activations, step }: {
    readonly adapter: HostKind;
    readonly prompt: number;
    readonly runs: number;
    /** Activation modes to compare, with a cache in bf16. Default: the mode of the model, with each dtype. */
    readonly activations?: readonly Activations[] | undefined;
    /** Bytes of weights that a step reads, without caches. Default: those of OLMoE's shape, with caches. */
    readonly step?: number;
  },
): Promise<{ [what: string]: Decoded }> {
  const { vocabulary, layers } = target.checkpoint.published.decoder;
  const weights = step ?? stepBytes(layers);
  const read: {
    [what: string]: Pick<Decoded, "bytes" | "prefillMs" | "hostShare">;
  } = {};
  const shares: { [what: string]: () => Promise<number> } = {};
  const work: { [what: string]: () => Promise<void> | void } = {};
  const all: Opened[] = [];
  const variants = activations
    ? activations.map((mode) =>
      ({ what: mode, dtype: "bf16", activations: mode }) as const
    )
    : DTYPES.map((dtype) => ({ what: dtype, dtype }));
  for (const { what, dtype, ...mode } of variants) {
    const opened = await openOurs(target, {
      adapter,
      threads: availableParallelism(),
      timestamps: true,
      next: { candidates: 1 },
      kvCacheDtype: dtype,
      ...mode,
      need: {
        tokens: 512,
        sequences: 1,
        context: prompt + runs + SHARE_STEPS + 2,
      },
    });
    all.push(opened);
    const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
    let position = 0;
    const feed = async (count: number) => {
      await decoder.next(tokensFrom(position, count, vocabulary), [count - 1]);
      position += count;
    };
    const prefillMs = await milliseconds(async () => {
      while (position < prompt) await feed(Math.min(512, prompt - position));
    });
    work[what] = () => feed(1);
    shares[what] = async () => {
      const all: number[] = [];
      for (let i = 0; i < SHARE_STEPS; i++) {
        await opened.timings();
        const ms = await milliseconds(() => feed(1));
        const launches = (await opened.timings())
          .map(({ start, end }) => end - start);
        all.push(1 - sum(launches) / 1e6 / ms);
      }
      return median(all);
    };
    const cache = step ? 0 : prompt * cacheBytes(layers, WIDTH[dtype]);
    const bytes = weights + cache;
    read[what] = { bytes, prefillMs };
  }
  const loops = await readLoops(target.checkpoint.weightFiles[0]!, {
    bytes: weights,
    threads: availableParallelism(),
  });
  Object.assign(work, loops);
  const cores: { [what: string]: number[] } = {};
  const counted = Object.entries(work).map(([what, run]) =>
    [what, async () => {
      const before = process.cpuUsage();
      await run();
      const { user, system } = process.cpuUsage(before);
      (cores[what] ??= []).push((user + system) / 1e3);
    }] as const
  );
  const times = await interleaved(Object.fromEntries(counted), {
    repetitions: runs,
  });
  for (const [what, share] of Object.entries(shares)) {
    read[what] = { ...read[what]!, hostShare: await share() };
  }
  for (const opened of all) await opened.close();
  for (const loop of Object.keys(loops)) {
    read[loop] = { bytes: weights, prefillMs: 0 };
  }
  return Object.fromEntries(
    Object.entries(read).map(([what, one]) => [
      what,
      { ...one, stepsMs: times[what]!, stepsCoresMs: cores[what]!.slice(1) },
    ]),
  );
}

function tokensFrom(
  from: number,
  count: number,
  vocabulary: number,
): PackedTokens {
  const positions = Int32Array.from({ length: count }, (_, i) => from + i);
  return {
    ids: positions.map((p) => p * 7919 % vocabulary),
    sequence: new Int32Array(count),
    position: positions,
    cell: positions,
  };
}
