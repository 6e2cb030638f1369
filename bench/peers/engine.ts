/** This project's side: targets opened as every command opens them. */

import { nodeFiles } from "../../cli/files.ts";
import type { AdapterChoice } from "../../engine/devices.ts";
import {
  type Candidates,
  type Decoder,
  type Need,
  type Opened,
  type OpenOptions,
  openTarget,
  packPrompts,
  type Target,
} from "../../engine/mod.ts";
import { slicePacked } from "../../engine/packing.ts";
import { OURS } from "../results.ts";

/** How a target is opened. */
export interface OpenOursOptions {
  readonly adapter: AdapterChoice;
  readonly threads: number;
  readonly weights?: string;
  readonly need?: Need;
  /** Of a checkpoint: logits of some rows alone. */
  readonly next?: NonNullable<OpenOptions["next"]>;
  /** Of a checkpoint: its bounds, and the pages of its caches. */
  readonly bounds?: NonNullable<OpenOptions["bounds"]>;
  readonly pages?: NonNullable<OpenOptions["pages"]>;
  readonly kvCacheDtype?: NonNullable<OpenOptions["kvCacheDtype"]>;
  /** Keep when launches ran. */
  readonly timestamps?: boolean;
  readonly mesh?: NonNullable<OpenOptions["mesh"]>;
  readonly place?: NonNullable<OpenOptions["place"]>;
  readonly numerics?: NonNullable<OpenOptions["numerics"]>;
  readonly activations?: NonNullable<OpenOptions["activations"]>;
}

/** This project by C whose products and sums are rounded at once, and by WebAssembly. */
export const FAST = "switchyard, fast numerics";
export const WASM = "switchyard by WebAssembly";

/** How the sides of this project on the CPU are opened. */
export const OUR_SIDES = {
  [OURS]: { adapter: "native" },
  [FAST]: { adapter: "native", numerics: "fast" },
  [WASM]: { adapter: "cpu" },
} as const satisfies {
  readonly [side: string]: Pick<OpenOursOptions, "adapter" | "numerics">;
};

/** Open a target with all that is there by default. */
export async function openOurs(
  target: Target,
  options: OpenOursOptions,
): Promise<Opened> {
  return await openTarget(target, nodeFiles(), {
    ...options,
    sharing: "shared",
  });
}

/** What follows a prompt, which is read in as few steps as it takes. States have to be new. */
export async function readPrompt(
  decoder: Decoder,
  prompt: readonly number[],
): Promise<Candidates> {
  const tokens = packPrompts([prompt]);
  const step = decoder.maxTokens;
  let next: Candidates | undefined;
  for (let from = 0; from < prompt.length; from += step) {
    const part = slicePacked(tokens, from, from + step);
    const isLast = from + step >= prompt.length;
    [next] = await decoder.next(part, isLast ? [part.ids.length - 1] : []);
  }
  return next!;
}

/** Let threads of the other side that wait in a loop for more work fall asleep. */
export async function pause(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 30));
}
