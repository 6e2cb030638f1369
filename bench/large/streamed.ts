/**
 * Decode steps of a large checkpoint whose experts are on disk, for several routings, with their bytes and times, and
 * those that the planner predicts from a measurement of this machine. Choices of experts are inputs of the plan.
 */

import { availableParallelism } from "node:os";
import process from "node:process";
import { Decoder, decoderShape, openMachineMeter } from "../../engine/mod.ts";
import {
  type DiskOptions,
  openDiskMeter,
} from "../../engine/planner/machine/measure_disk.ts";
import { withDevices } from "../../engine/planner/machine/meter.ts";
import {
  type ExpertLoad,
  recordedLoad,
  simulate,
} from "../../engine/planner/simulate/mod.ts";
import { uniformsFrom } from "../../engine/planner/simulate/loads.ts";
import type { Target } from "../../engine/mod.ts";
import type { HostTensor } from "../../runtime/mod.ts";
import { streamableBytes } from "../../runtime/weights/mapped.ts";
import { openOurs } from "../peers/engine.ts";
import { median } from "../measure.ts";

/** Routings: the exponent of a Zipf distribution, and the chance that a choice stays from one token to the next. */
const ROUTINGS = {
  "uniform": { exponent: 0, stays: 0 },
  "Zipf 0.8": { exponent: 0.8, stays: 0 },
  "Zipf 0.8, 0.3 stay": { exponent: 0.8, stays: 0.3 },
  "Zipf 1.2": { exponent: 1.2, stays: 0 },
} as const;

/** Statistics before the first step that reads experts. */
const NOTHING_READ = {
  bytesRead: 0,
  hits: 0,
  misses: 0,
  readMs: 0,
  waitedMs: 0,
};

/** Repetitions of each measurement of this machine. */
const REPETITIONS = 3;

/** A token with a routing. */
export interface Streamed {
  /** Milliseconds, milliseconds of all cores, of reading and of waiting for reads, and bytes read per token. */
  readonly ms: number;
  readonly coresMs: number;
  readonly readMs: number;
  readonly waitedMs: number;
  readonly bytes: number;
  readonly hitRate: number;
  /** The same by the planner, from the choices and from their distribution, and with the rate of these reads. */
  readonly predicted: readonly {
    readonly from: string;
    readonly ms: number;
    readonly bytes: number;
    readonly hitRate: number;
  }[];
  /** Bytes per second of the disk before and after. */
  readonly disk: readonly number[];
}

/** Choices of experts per layer, [token][choice]. */
type Choices = readonly (readonly number[])[][];

/** Measures `tokens` decode steps of each routing; the second half counts. Yields each routing once it is measured. */
export async function* measureStreamed(
  target: Extract<Target, { readonly kind: "checkpoint" }>,
  { expertMemory, tokens, file }: {
    readonly expertMemory: number | "auto";
    /** The file of the experts, for measurements of the disk. */
    readonly file: NonNullable<DiskOptions["file"]>;
    readonly tokens: number;
  },
): AsyncGenerator<readonly [routing: string, Streamed]> {
  const now = () => performance.now();
  const threads = availableParallelism();
  // Its arrays are large: they are freed before experts are in memory.
  const meter = await openMachineMeter({
    adapter: "native",
    threads,
    repetitions: REPETITIONS,
    host: "this",
    now,
  });
  const machine = await meter.measure();
  await meter.close();
  const disk = (await openDiskMeter({ now, repetitions: REPETITIONS, file }))!;
  for (const [name, routing] of Object.entries(ROUTINGS)) {
    // The planner's cache of experts is initially empty.
    const opened = await openOurs(target, {
      adapter: "native",
      threads,
      expertMemory,
      replay: true,
      need: { tokens: 1, sequences: 1, context: tokens },
    });
    const { plan, session } = opened;
    const decoder = new Decoder(session, decoderShape(plan)!);
    const names = decoder.shape.choices.map(([name]) => name);
    const topK = decoder.shape.width(decoder.shape.choices[0]![1]);
    const choices = choicesOf(routing, {
      layers: names.length,
      experts: decoder.shape.experts,
      topK,
      tokens,
    });
    const rates = [await disk.measure()];
    const steps: { ms: number; coresMs: number }[] = [];
    let start: typeof NOTHING_READ = session.statistics().streaming ??
      NOTHING_READ;
    for (let token = 0; token < tokens; token++) {
      if (token === tokens >> 1) {
        start = session.statistics().streaming ?? NOTHING_READ;
      }
      const [before, began] = [process.cpuUsage(), now()];
      const cell = Int32Array.of(token);
      await decoder.outputs(
        {
          ids: cell.map((cell) =>
            (cell * 7919 + 13) % decoder.shape.vocabulary
          ),
          sequence: new Int32Array(1),
          position: cell,
          cell,
        },
        Object.fromEntries(
          names.map((name, layer): [string, HostTensor] => [name, {
            dtype: "i32",
            shape: [1, topK],
            data: Int32Array.from(choices[layer]![token]!),
          }]),
        ),
      );
      const { user, system } = process.cpuUsage(before);
      if (token < tokens >> 1) continue;
      steps.push({ ms: now() - began, coresMs: (user + system) / 1e3 });
    }
    const end = session.statistics().streaming!;
    const { bytesRead, hits, misses } = end;
    rates.push(await disk.measure());
    const [hit, missed] = [hits - start.hits, misses - start.misses];
    const recorded = recordedLoad(Object.fromEntries(
      names.map((name, layer) => [name, {
        dtype: "i32",
        shape: [1, tokens, topK],
        data: Int32Array.from(choices[layer]!.flat()),
      }]),
    ));
    const { exponent } = routing;
    const measured = median(rates);
    const readMs = end.readMs - start.readMs;
    // Without reads, their rate is unknown.
    const used = readMs > 0
      ? (bytesRead - start.bytesRead) / readMs * 1000
      : measured;
    const cases: readonly (readonly [string, ExpertLoad, number])[] = [
      ["choices", recorded, measured],
      [`zipf:${exponent}`, { kind: "zipf", exponent }, measured],
      ["choices and the rate of these reads", recorded, used],
    ];
    await opened.close();
    const resident = end.residentBytes / streamableBytes(plan, 0);
    yield [name, {
      ms: median(steps.map(({ ms }) => ms)),
      coresMs: median(steps.map(({ coresMs }) => coresMs)),
      readMs: readMs / steps.length,
      waitedMs: (end.waitedMs - start.waitedMs) / steps.length,
      bytes: (bytesRead - start.bytesRead) / steps.length,
      hitRate: hit / (hit + missed),
      predicted: cases.map(([from, experts, disk]) => {
        const here = withDevices(machine, (device) => ({ ...device, disk }));
        const workload = { tokens: 1, sequences: 1, past: tokens, experts };
        const { seconds, streamed } = simulate(plan, here, workload, {
          resident,
        });
        const { bytes, hitRate } = streamed!;
        return { from, ms: 1000 * seconds, bytes, hitRate };
      }),
      disk: rates,
    }];
  }
  await disk.close();
}

/** Random choices without repetition; the experts of each layer have their own order of popularity. */
function choicesOf(
  { exponent, stays }: { readonly exponent: number; readonly stays: number },
  { layers, experts, topK, tokens }: {
    readonly layers: number;
    readonly experts: number;
    readonly topK: number;
    readonly tokens: number;
  },
): Choices {
  const random = uniformsFrom(7);
  return Array.from({ length: layers }, () => {
    const order = Array.from({ length: experts }, (_, e) => [random(), e])
      .sort(([a], [b]) => a! - b!).map(([, e]) => e!);
    let last: readonly number[] = [];
    return Array.from({ length: tokens }, () => {
      const kept = last.filter(() => random() < stays);
      const others = order.map((e, rank) => ({
        e,
        at: -Math.log(random()) * (rank + 1) ** exponent,
      })).filter(({ e }) => !kept.includes(e)).sort((a, b) => a.at - b.at);
      last = [...kept, ...others.map(({ e }) => e)].slice(0, topK);
      return last;
    });
  });
}
