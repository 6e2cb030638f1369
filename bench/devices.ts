/**
 * The CPU device against an adapter, interleaved: the grouped expert FFN, and prefill and decode of the bundled
 * checkpoint, on one rank. Flags: `--adapter NUMBER` (default 0), `--runs N`.
 */

import { describe, interleaved, machine, median } from "./measure.ts";
import type { Bench } from "./session.ts";
import {
  decodeSteps,
  FFN,
  ffnOnce,
  loadDemo,
  loadFfn,
  prefillOnce,
  PROMPT,
  type Setup,
  STEPS,
  workFlags,
} from "./work.ts";

const { adapter, repetitions } = workFlags("0");

async function onBoth(open: (setup: Setup) => Promise<Bench>) {
  const cpu = await open({ adapter: "cpu", mesh: {} });
  const other = await open({ adapter, mesh: {} });
  return { cpu, other };
}

interface Work {
  readonly name: string;
  readonly open: (setup: Setup) => Promise<Bench>;
  readonly once: (bench: Bench) => () => Promise<void>;
  /** Returns the rate of the work, given its time in ms. */
  readonly rate: (ms: number) => string;
}

const WORK: readonly Work[] = [
  {
    name: `expert FFN, ${FFN.tokens} tokens`,
    open: loadFfn,
    once: ffnOnce,
    rate: (ms) => `${(FFN.flops / ms / 1e6).toFixed(1)} GFLOP/s`,
  },
  {
    name: `prefill, ${PROMPT.sequences * PROMPT.length} tokens`,
    open: loadDemo,
    once: prefillOnce,
    rate: (ms) =>
      `${(PROMPT.sequences * PROMPT.length / ms * 1000).toFixed(0)} tokens/s`,
  },
  {
    name: `${STEPS} decode steps, ${PROMPT.sequences} sequences`,
    open: loadDemo,
    once: decodeSteps,
    rate: (ms) =>
      `${(PROMPT.sequences * STEPS / ms * 1000).toFixed(0)} tokens/s`,
  },
];

console.log(machine());
for (const { name, open, once, rate } of WORK) {
  const { cpu, other } = await onBoth(open);
  const times = await interleaved(
    { cpu: once(cpu), other: once(other) },
    { repetitions, warmUp: 2 },
  );
  for (const side of ["cpu", "other"] as const) {
    const label = side === "cpu" ? "CPU device" : `adapter ${adapter}`;
    const ms = times[side];
    console.log(`${name}, ${label}: ${describe(ms)}, ${rate(median(ms))}`);
  }
  const ratio = median(times.other) / median(times.cpu);
  console.log(`${name}: the CPU device is ${ratio.toFixed(2)} times as fast`);
  await cpu.close();
  await other.close();
}
