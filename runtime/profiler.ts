/** Traces of runs in the format of Chrome and Perfetto: one row per rank. */

import { isCollective } from "../spec/plan/members.ts";
import type { CollectiveStep, Step } from "../spec/plan/plan.ts";
import { traceName } from "../spec/text/parts.ts";
import { type BoundPart, isAsynchronous } from "./bound_program.ts";
import type { SentAccount } from "./exchange/communicator.ts";
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

interface EventArgs {
  [name: string]: string | number;
}

/** A run in progress. */
interface TracedRun {
  readonly name: string;
  readonly start: number;
  readonly args: TraceEvent["args"];
  /** The events of its exchanges; sent bytes are added at the end of the run. */
  readonly exchanges: {
    readonly step: CollectiveStep;
    readonly rank: number;
    readonly args: EventArgs;
  }[];
  /** Bytes by step, sender and receiver. */
  readonly sent: Map<CollectiveStep, Map<number, Map<number, number>>>;
}

/** The document that Chrome's `about:tracing` and Perfetto open. */
export interface Trace {
  readonly traceEvents: readonly TraceEvent[];
  readonly displayTimeUnit: "ms";
}

/**
 * Records runs. Kernel times are the device's timestamps if it was opened with them, else host times around a wait.
 * Every step is waited for in both cases, so a traced run takes longer.
 */
export class Tracer {
  readonly #now: () => number;
  readonly #events: TraceEvent[] = [];
  readonly #named = new Set<number>();
  #run: TracedRun | undefined;

  /** `now` is a clock in milliseconds, such as `performance.now`. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** The current time on the clock of the events. */
  now(): number {
    return this.#now();
  }

  /** Starts a run; `args` are its known properties. */
  begin(program: string, args: TraceEvent["args"] = {}): void {
    const start = this.#now();
    this.#run = { name: program, start, args, exchanges: [], sent: new Map() };
  }

  /** Ends the current run. */
  end(): void {
    const { name, start, args, exchanges, sent } = this.#run!;
    const microseconds = (this.#now() - start) * 1000;
    this.#add(-1, name, "program", start * 1000, microseconds, args);
    // All exchanges in flight have ended only now.
    for (const { step, rank, args } of exchanges) {
      const to = [...sent.get(step)?.get(rank) ?? []]
        .filter(([, bytes]) => bytes > 0).sort(([a], [b]) => a - b);
      args["sentBytes"] = to.reduce((sum, [, bytes]) => sum + bytes, 0);
      args["sentTo"] = to.map(([rank, bytes]) => `${rank}:${bytes}`).join(" ");
    }
  }

  /** An account that forwards to another one and records the sent bytes for the events of exchanges. */
  noting(account: SentAccount): SentAccount {
    return {
      add: (step, sent) => {
        account.add(step, sent);
        const { from, to, bytes } = sent;
        const ofStep = entryOf(this.#run!.sent, step, () => new Map());
        const ofRank = entryOf(ofStep, from, () => new Map());
        ofRank.set(to, (ofRank.get(to) ?? 0) + bytes);
      },
    };
  }

  /** Wraps every part of a program. */
  around(
    ranks: readonly RankMemory[],
  ): (step: Step, part: BoundPart, index: number) => BoundPart {
    return (step, part, index) => ({
      ...part,
      execute: async (counts) => {
        const start = this.#now();
        const here = ranks.filter(({ rank }) => part.ranks.includes(rank));
        const asynchronous = isAsynchronous(step, part, { ranks });
        const wait = part.execute(counts);
        await wait;
        const elapsed = this.#now() - start;
        const timed = here.every(({ device }) => device.timings);
        // Launches during an exchange in flight are not part of it.
        const timings = asynchronous ? [] : await finish(here);
        // An exchange through the host ends when the host has finished it.
        const duration = wait && isCollective(step)
          ? elapsed
          : this.#now() - start;
        const span = spanOf(timings);
        // Zero workgroups: nothing was launched.
        if (step.op === "launch" && span === undefined && timed) return;
        for (const rank of part.ranks) {
          const args: EventArgs = {
            step: index,
            ...(step.op === "launch" ? { kernel: step.kernel } : {}),
            ...(step.part ? { op: step.part.op, part: step.part.part } : {}),
            clock: span === undefined ? "host" : "device",
          };
          if (isCollective(step)) {
            this.#run!.exchanges.push({ step, rank, args });
          }
          this.#add(
            rank,
            traceName(step),
            step.op,
            start * 1000,
            span ?? duration * 1000,
            args,
          );
        }
      },
    });
  }

  /** All events so far. */
  toTrace(): Trace {
    return { traceEvents: this.#events, displayTimeUnit: "ms" };
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

function entryOf<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key) ?? make();
  map.set(key, found);
  return found;
}

/** Waits for the ranks' devices. Returns the times of their launches, if available. */
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
