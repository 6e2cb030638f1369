/** Sequential processing of the tokens of a sequence, for kernels with state. */

import type { Expr, KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";

/** Sequences of such a kernel. */
export interface Sequences {
  readonly tokens: Expr;
  /** Sequences per rank. */
  readonly sequences: number;
  /** From the last token to the first. */
  readonly reverse?: boolean;
  /** Whether the binding `states` has the row of a sequence's state to read and the one to write. */
  readonly rows?: boolean;
}

/** The row of the state of token `t`'s sequence. */
export function stateRow(
  { rows = false }: Sequences,
  use: "read" | "write",
): KernelText {
  const sequence = wgsl`u32(sequence[t])`;
  return rows
    ? wgsl`u32(states[${sequence} * 2 + ${use === "read" ? 0 : 1}])`
    : sequence;
}

/**
 * Sequences per workgroup: few, so that many are processed concurrently, but enough that not too many workgroups scan
 * all tokens.
 */
function together(sequences: number): number {
  return Math.max(8, Math.ceil(sequences / 16));
}

/** The number of blocks of sequences. */
export function sequenceBlocks({ sequences }: Sequences): number {
  return Math.ceil(sequences / together(sequences));
}

/** Code per token; `t` is the token. */
export interface RunParts {
  /** Before the first of consecutive tokens of a sequence. */
  readonly begin: KernelText;
  /** For each token. `goes_on`: the next token is of the same sequence; `next` is then that token, else this one. */
  readonly token: KernelText;
  /** After the last of them. */
  readonly end: KernelText;
}

/** Processes the tokens of the sequences of block `group.y` in order; `sequence` and `position` are bindings. */
export function eachRun(
  { tokens, sequences, reverse = false }: Sequences,
  { begin, token, end }: RunParts,
): KernelText {
  const blocks = sequenceBlocks({ tokens, sequences });
  const [after, before] = [
    wgsl`min(t + 1, ${tokens} - 1)`,
    wgsl`max(t, 1u) - 1`,
  ];
  const later = reverse ? wgsl`t` : wgsl`coming`;
  const earlier = reverse ? wgsl`previous` : wgsl`t`;
  const body = wgsl`
    let coming = ${reverse ? before : after};
    let previous = ${reverse ? after : before};
    let goes_on = coming != t && sequence[coming] == sequence[t] && position[${later}] != 0;
    let next = select(t, coming, goes_on);
    if (previous == t || sequence[previous] != sequence[t] || position[${earlier}] == 0) {
      ${begin}
    }
    ${token}
    if (!goes_on) {
      ${end}
    }`;
  return wgsl`
    for (var n = 0u; n < ${tokens}; n++) {
      let t = ${reverse ? wgsl`${tokens} - 1 - n` : wgsl`n`};
      ${
    blocks === 1 ? body : wgsl`
      if (u32(sequence[t]) / ${together(sequences)} == group.y) {
        ${body}
      }`
  }
    }`;
}
