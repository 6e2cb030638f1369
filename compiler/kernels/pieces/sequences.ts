/** Tokens of sequences, one after another, for kernels that keep what earlier tokens of a sequence left. */

import type { Expr, KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";

/** What such a kernel knows of sequences. */
export interface Sequences {
  readonly tokens: Expr;
  /** Sequences of a rank. */
  readonly sequences: number;
}

/** Sequences of a workgroup: few, so that many go on at a time, but not so few that many workgroups look at all tokens. */
function together(sequences: number): number {
  return Math.max(8, Math.ceil(sequences / 16));
}

/** How many blocks of sequences there are. */
export function sequenceBlocks({ sequences }: Sequences): number {
  return Math.ceil(sequences / together(sequences));
}

/** What is done with tokens; `t` is the token. */
export interface RunParts {
  /** Before the first of tokens of a sequence that follow each other. */
  readonly begin: KernelText;
  /** With each. `goes_on`: the next one is of the same sequence; `next` is that one then, else this one. */
  readonly token: KernelText;
  /** After the last of them. */
  readonly end: KernelText;
}

/** The tokens of the sequences of block `group.y`, in order; `sequence` and `position` are bindings. */
export function eachRun(
  { tokens, sequences }: Sequences,
  { begin, token, end }: RunParts,
): KernelText {
  const blocks = sequenceBlocks({ tokens, sequences });
  const body = wgsl`
    let next_token = min(t + 1, ${tokens} - 1);
    let previous = max(t, 1u) - 1;
    let goes_on = next_token != t && sequence[next_token] == sequence[t] && position[next_token] != 0;
    let next = select(t, next_token, goes_on);
    if (t == 0 || sequence[previous] != sequence[t] || position[t] == 0) {
      ${begin}
    }
    ${token}
    if (!goes_on) {
      ${end}
    }`;
  return wgsl`
    for (var t = 0u; t < ${tokens}; t++) {
      ${
    blocks === 1 ? body : wgsl`
      if (u32(sequence[t]) / ${together(sequences)} == group.y) {
        ${body}
      }`
  }
    }`;
}
