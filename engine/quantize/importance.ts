/** Importance of the columns of matrices: mean squares of their activations over the tokens of texts. */

import { SQUARES } from "../../compiler/mod.ts";
import { Decoder, decoderShape } from "../generation/decoder.ts";
import type { Opened } from "../open.ts";
import { packPrompts, slicePacked } from "../generation/packing.ts";
import { windowsOf } from "../score/windows.ts";
import type { Importance } from "./gguf_file.ts";

/** Options of `measureImportance`. */
export interface MeasureImportanceOptions {
  /** Tokens of a window. Windows do not overlap. */
  readonly context: number;
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Runs texts, as token ids, through a target that was opened with `recordSquares`. Experts that no token has chosen
 * have no importance.
 */
export async function measureImportance(
  { session, plan }: Pick<Opened, "session" | "plan">,
  texts: readonly (readonly number[])[],
  { context, onProgress }: MeasureImportanceOptions,
): Promise<Importance> {
  const decoder = new Decoder(session, decoderShape(plan)!);
  const sums = new Map<string, Float64Array>();
  const windows = texts.flatMap((text) =>
    windowsOf(text.length, { context, stride: context }).map(({ from, to }) =>
      text.slice(from, to)
    )
  );
  for (const [i, window] of windows.entries()) {
    session.reset();
    const packed = packPrompts([window]);
    for (let from = 0; from < window.length; from += decoder.shape.maxTokens) {
      const to = Math.min(window.length, from + decoder.shape.maxTokens);
      const outputs = await decoder.outputs(slicePacked(packed, from, to));
      for (const [name, { data }] of Object.entries(outputs)) {
        if (!name.startsWith(SQUARES)) continue;
        const sum = sums.get(name) ?? new Float64Array(data.length);
        data.forEach((x: number, at: number) => sum[at]! += x);
        sums.set(name, sum);
      }
    }
    onProgress?.(i + 1, windows.length);
  }
  return importanceOf(sums, plan.axes["expert"]?.size ?? 1);
}

/** Importance by the name of a tensor, from sums by the name of a parameter. */
function importanceOf(
  sums: ReadonlyMap<string, Float64Array>,
  experts: number,
): Importance {
  return ({ name, fused }) => {
    const { tensor, expert } = fused ?? numbered(name);
    const all = sums.get(SQUARES + tensor);
    if (!all || expert === undefined) return all && scaled(all);
    const columns = all.length / experts;
    return scaled(all.subarray(expert * columns, (expert + 1) * columns));
  };
}

/** The name of the parameter of a tensor, and the number of its expert. */
function numbered(
  name: string,
): { readonly tensor: string; readonly expert?: number } {
  const [, start, expert, end] = /^(.*\.experts\.)(\d+)(\..*)$/.exec(name) ??
    [];
  return expert === undefined
    ? { tensor: name }
    : { tensor: `${start}{expert}${end}`, expert: Number(expert) };
}

/** Sums with a mean of 1, and none that is nothing; undefined where all are. */
function scaled(sums: Float64Array): Float32Array | undefined {
  const mean = sums.reduce((total, x) => total + x, 0) / sums.length;
  return mean > 0
    ? Float32Array.from(sums, (x) => Math.max(x / mean, MIN_WEIGHT))
    : undefined;
}

/** The smallest importance of a column, relative to the mean. */
const MIN_WEIGHT = 1e-4;
