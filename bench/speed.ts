/**
 * Speed of computation: the grouped expert FFN, prefill and decode of the bundled checkpoint, the host's fraction of a
 * decode step, and the cost of ep=4 relative to ep=1 on one adapter. Flags: `--adapter cpu|native|NUMBER` (default:
 * auto), `--runs N`.
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

const { adapter, repetitions } = workFlags("auto");
const MESHES = { "ep=1": { ep: 1 }, "ep=4": { ep: 4 } };
const NAMES = ["ep=1", "ep=4"] as const;
type Both<T> = { [_ in (typeof NAMES)[number]]: T };

async function onBoth(open: (setup: Setup) => Promise<Bench>) {
  const one = await open({ adapter, mesh: MESHES["ep=1"] });
  const four = await open({ adapter, mesh: MESHES["ep=4"] });
  return { "ep=1": one, "ep=4": four };
}

function ratio(times: Both<number[]>): string {
  return (median(times["ep=4"]) / median(times["ep=1"])).toFixed(2);
}

async function expertFfn(): Promise<void> {
  const benches = await onBoth(loadFfn);
  const times = await interleaved(
    { "ep=1": ffnOnce(benches["ep=1"]), "ep=4": ffnOnce(benches["ep=4"]) },
    { repetitions, warmUp: 2 },
  );
  for (const name of NAMES) {
    const rate = FFN.flops / median(times[name]) / 1e6;
    console.log(
      `expert FFN, ${FFN.tokens} tokens, ${name}: ${describe(times[name])}, ${
        rate.toFixed(1)
      } GFLOP/s`,
    );
    await benches[name].close();
  }
  console.log(`expert FFN, ep=4 against ep=1: ${ratio(times)}`);
}

async function generation(): Promise<void> {
  const benches = await onBoth(loadDemo);
  const host: Both<number[]> = { "ep=1": [], "ep=4": [] };
  const prefills = await interleaved({
    "ep=1": prefillOnce(benches["ep=1"]),
    "ep=4": prefillOnce(benches["ep=4"]),
  }, { repetitions, warmUp: 2 });
  const decodes = await interleaved({
    "ep=1": decodeSteps(benches["ep=1"], host["ep=1"]),
    "ep=4": decodeSteps(benches["ep=4"], host["ep=4"]),
  }, { repetitions, warmUp: 1 });
  const tokens = PROMPT.sequences * PROMPT.length;
  for (const name of NAMES) {
    const steps = decodes[name].map((ms) => ms / STEPS);
    const share = 100 * median(host[name].slice(-repetitions));
    console.log(
      `prefill, ${tokens} tokens, ${name}: ${describe(prefills[name])}, ${
        (tokens / median(prefills[name]) * 1000).toFixed(0)
      } tokens/s`,
    );
    console.log(
      `decode step, ${PROMPT.sequences} sequences, ${name}: ${
        describe(steps)
      }, ${
        (PROMPT.sequences / median(steps) * 1000).toFixed(0)
      } tokens/s, host ${share.toFixed(1)} % of the step`,
    );
    await benches[name].close();
  }
  console.log(`prefill, ep=4 against ep=1: ${ratio(prefills)}`);
  console.log(`decode, ep=4 against ep=1: ${ratio(decodes)}`);
}

console.log(machine());
await expertFfn();
await generation();
