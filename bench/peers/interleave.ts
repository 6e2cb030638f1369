/** Sides that do the same work in interleaved runs. */

import { type Result, speedOf, timingOf, type Work } from "../results.ts";
import { OURS, ratioName } from "../results.ts";
import { pause } from "./engine.ts";
import { checkClose } from "./run.ts";

/** The time and the result of one run. */
export interface Once {
  /** Milliseconds of each part of the work. */
  readonly ms: { readonly [part: string]: number };
  /** Compared with this project's tokens in every run. */
  readonly tokens?: readonly number[];
}

/** A side that is ready to run. */
export interface Side {
  /** Returns values that are compared with this project's before the measurement. */
  values(): Promise<Float32Array>;
  once(): Promise<Once>;
  close(): Promise<void>;
}

/** A function that opens each side. The first side is this project. */
export type Sides = { readonly [side: string]: () => Promise<Side> };

/** The parts of the work. */
export interface Parts {
  readonly [part: string]: Pick<Work, "work" | "amount" | "unit">;
}

/** Options of interleaved runs. */
export interface Interleaving {
  readonly pairs: number;
  readonly warmUp: number;
  /** Allowed difference of values, relative to the largest one. */
  readonly tolerance: number;
  /** Allowed difference for particular sides. */
  readonly tolerances?: { readonly [side: string]: number };
  readonly absent?: { readonly [side: string]: string };
}

/**
 * Opens every side, compares results, then measures interleaved runs. A side that fails is omitted, with the reason.
 */
export async function interleave(
  sides: Sides,
  parts: Parts,
  { pairs, warmUp, tolerance, tolerances = {}, absent = {} }: Interleaving,
): Promise<Pick<Result, "works" | "ratios">> {
  const opened: { [side: string]: Side } = {};
  const difference: { [side: string]: number } = {};
  const reasons: { [side: string]: string } = { ...absent };
  let wanted:
    | { readonly values: Float32Array; readonly once: Once }
    | undefined;
  for (const [name, open] of Object.entries(sides)) {
    try {
      console.error(`opening ${name}`);
      const side = await open();
      const values = await side.values();
      const once = await side.once();
      wanted ??= { values, once };
      if (name !== OURS) {
        const what = `${name}'s values`;
        difference[name] = checkClose(values, wanted.values, {
          what,
          tolerance: tolerances[name] ?? tolerance,
        });
        checkTokens(once, wanted.once, name);
      }
      opened[name] = side;
    } catch (error) {
      if (name === OURS) throw error;
      reasons[name] = firstLine(error);
      console.error(`  ${reasons[name]}`);
    }
  }
  const times: { [part: string]: { [side: string]: number[] } } = {};
  for (const part of Object.keys(parts)) {
    times[part] = Object.fromEntries(
      Object.keys(opened).map((side) => [side, []]),
    );
  }
  for (let round = -warmUp; round < pairs; round++) {
    for (const [name, side] of Object.entries(opened)) {
      await pause();
      const once = await side.once();
      checkTokens(once, wanted!.once, name);
      if (round < 0) continue;
      for (const part of Object.keys(parts)) {
        times[part]![name]!.push(once.ms[part]!);
      }
    }
  }
  for (const side of Object.values(opened)) await side.close();
  const works: Work[] = [];
  const ratios: { [name: string]: number } = {};
  for (const [part, of] of Object.entries(parts)) {
    const sides = Object.fromEntries(
      Object.entries(times[part]!).map(([side, ms]) => [side, timingOf(ms)]),
    );
    works.push({ ...of, sides, difference, absent: reasons });
    for (const [side, ms] of Object.entries(times[part]!)) {
      if (side === OURS) continue;
      ratios[ratioName(of, side)] = speedOf(times[part]![OURS]!, ms);
    }
  }
  return { works, ratios };
}

function checkTokens(once: Once, wanted: Once, name: string): void {
  const { tokens } = wanted;
  if (tokens === undefined) return;
  const at = tokens.findIndex((token, i) => token !== once.tokens?.[i]);
  if (at < 0) return;
  throw new Error(
    `Cannot compare with ${name}: token ${at} is ${tokens[at]} here and ${
      once.tokens?.[at]
    } there. The two sides do not compute the same`,
  );
}

function firstLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n")[0]!.slice(0, 300);
}
