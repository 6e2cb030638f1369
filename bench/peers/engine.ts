/** This project's side: targets are opened in the same way as by the commands. */

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
import { slicePacked } from "../../engine/generation/packing.ts";
import { OURS } from "../results.ts";

/** Options for opening a target. */
export interface OpenOursOptions {
  readonly adapter: AdapterChoice;
  readonly threads: number;
  readonly weights?: string;
  readonly need?: Need;
  /** For a checkpoint: compute the logits of selected rows only. */
  readonly next?: NonNullable<OpenOptions["next"]>;
  /** For a checkpoint: its bounds, and the pages of its caches. */
  readonly bounds?: NonNullable<OpenOptions["bounds"]>;
  readonly pages?: NonNullable<OpenOptions["pages"]>;
  readonly kvCacheDtype?: NonNullable<OpenOptions["kvCacheDtype"]>;
  /** Record when kernels run. */
  readonly timestamps?: boolean;
  readonly mesh?: NonNullable<OpenOptions["mesh"]>;
  readonly place?: NonNullable<OpenOptions["place"]>;
  readonly numerics?: NonNullable<OpenOptions["numerics"]>;
  readonly activations?: NonNullable<OpenOptions["activations"]>;
  /** Choices of experts are inputs. */
  readonly replay?: NonNullable<OpenOptions["replay"]>;
  /** Memory of streamed experts. */
  readonly expertMemory?: NonNullable<OpenOptions["expertMemory"]>;
}

/** This project in C, with products and sums rounded together, and in WebAssembly. */
export const FAST = "switchyard, fast numerics";
export const WASM = "switchyard by WebAssembly";

/** Options of this project's sides on the CPU. */
export const OUR_SIDES = {
  [OURS]: { adapter: "native" },
  [FAST]: { adapter: "native", numerics: "fast" },
  [WASM]: { adapter: "cpu" },
} as const satisfies {
  readonly [side: string]: Pick<OpenOursOptions, "adapter" | "numerics">;
};

/** Opens a target with the defaults of the commands. */
export async function openOurs(
  target: Target,
  options: OpenOursOptions,
): Promise<Opened> {
  return await openTarget(target, nodeFiles(), {
    ...options,
    sharing: "shared",
  });
}

/** Processes a prompt in the minimum number of steps and returns the next token. States must be new. */
export async function readPrompt(
  decoder: Decoder,
  prompt: readonly number[],
): Promise<Candidates> {
  const tokens = packPrompts([prompt]);
  const step = decoder.shape.maxTokens;
  let next: Candidates | undefined;
  for (let from = 0; from < prompt.length; from += step) {
    const part = slicePacked(tokens, from, from + step);
    const isLast = from + step >= prompt.length;
    [next] = await decoder.next(part, isLast ? [part.ids.length - 1] : []);
  }
  return next!;
}

/** Waits until threads of the other side sleep instead of waiting in a loop. */
export async function pause(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 30));
}
