/** A trace of runs in Chrome's and Perfetto's form: one row for each rank. */

import type { Step } from "../spec/plan.ts";
import { traceName } from "../spec/text_parts.ts";
import { type BoundPart, fliesOff } from "./bound_program.ts";
import type { SentBytes } from "./communicator.ts";
import type { LaunchTiming } from "./device.ts";
import type { RankMemory } from "./memory.ts";

/** One event, times in microseconds. */
export interface TraceEvent {
  readonly name: string;
  readonly cat: string;
  readonly ph: "X" | "M";
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur?: number;
  readonly args: { readonly [name: string]: string | number };
}

/** The document that Chrome's `about:tracing` and Perfetto open. */
export interface Trace {
  readonly traceEvents: readonly TraceEvent[];
  readonly displayTimeUnit: "ms";
}

/**
 * Records runs. Kernels have the device's own timestamps where it was opened with them, else the host's times around a
 * wait; either way every step is waited for, so a traced run takes longer than a plain one.
 */
export class Tracer {
  readonly #now: () => number;
  readonly #events: TraceEvent[] = [];
  readonly #named = new Set<number>();
  readonly #sent = new Map<number, number>();
  #run: { readonly name: string; readonly start: number } | undefined;

  /** `now` is a clock in milliseconds, such as `performance.now`. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** The time on the clock of the events. */
  now(): number {
    return this.#now();
  }

  /** A run begins. */
  begin(program: string): void {
    this.#run = { name: program, start: this.#now() };
  }

  /** The run that began is over. */
  end(): void {
    const { name, start } = this.#run!;
    this.#add(-1, name, "program", start * 1000, (this.#now() - start) * 1000);
  }

  /** What stands around every part of a program. */
  around(
    ranks: readonly RankMemory[],
    sent: readonly SentBytes[],
  ): (step: Step, part: BoundPart) => BoundPart {
    return (step, part) => ({
      ...part,
      carryOut: async (counts) => {
        const start = this.#now();
        const here = ranks.filter(({ rank }) => part.ranks.includes(rank));
        const flies = fliesOff(step, part, { ranks });
        const wait = part.carryOut(counts);
        await wait;
        const carried = this.#now() - start;
        const timed = here.every(({ device }) => device.timings);
        // What was launched while an exchange was in flight is not its own.
        const timings = flies ? [] : await finish(here);
        // An exchange through the host is over when the host is done with it.
        const duration =
          wait && (step.op === "allToAll" || step.op === "allGather")
            ? carried
            : this.#now() - start;
        const span = spanOf(timings);
        // Zero workgroups: nothing was started.
        if (step.op === "launch" && span === undefined && timed) return;
        for (const rank of part.ranks) {
          const args = {
            ...(step.op === "launch" ? { kernel: step.kernel } : {}),
            ...(step.part ? { op: step.part.op, part: step.part.part } : {}),
            ...(step.op === "allToAll" || step.op === "allGather"
              ? { sentBytes: this.#newlySent(rank, sent[rank]!) }
              : {}),
          };
          this.#add(
            rank,
            traceName(step),
            step.op,
            start * 1000,
            span ?? duration * 1000,
            { ...args, clock: span === undefined ? "host" : "device" },
          );
        }
      },
    });
  }

  /** Everything so far. */
  toTrace(): Trace {
    return { traceEvents: this.#events, displayTimeUnit: "ms" };
  }

  /** Bytes that a rank has sent since the last exchange that is reported: exchanges end in the order in which they start. */
  #newlySent(rank: number, sent: SentBytes): number {
    const all = total(sent);
    const fresh = all - (this.#sent.get(rank) ?? 0);
    this.#sent.set(rank, all);
    return fresh;
  }

  #add(
    rank: number,
    name: string,
    cat: string,
    ts: number,
    dur: number,
    args: TraceEvent["args"] = {},
  ): void {
    const tid = rank + 1;
    if (!this.#named.has(tid)) {
      this.#named.add(tid);
      this.#events.push({
        name: "thread_name",
        cat: "",
        ph: "M",
        pid: 0,
        tid,
        ts: 0,
        args: { name: rank < 0 ? "programs" : `rank ${rank}` },
      });
    }
    this.#events.push({ name, cat, ph: "X", pid: 0, tid, ts, dur, args });
  }
}

function total({ counts, dispatch, combine }: SentBytes): number {
  return counts + dispatch + combine;
}

/** Wait for the ranks' devices; returns when their launches ran, where they can tell. */
async function finish(ranks: readonly RankMemory[]): Promise<LaunchTiming[]> {
  const timings: LaunchTiming[] = [];
  for (const device of new Set(ranks.map((memory) => memory.device))) {
    if (device.timings) timings.push(...await device.timings());
    else await device.idle();
  }
  return timings;
}

/** Microseconds from the first start to the last end. */
function spanOf(timings: readonly LaunchTiming[]): number | undefined {
  if (timings.length === 0) return undefined;
  const start = Math.min(...timings.map((t) => t.start));
  return (Math.max(...timings.map((t) => t.end)) - start) / 1000;
}
