/** Primitives that are defined in one file each. The tables of the compiler include them. */

import { conv1d } from "./conv1d.ts";
import type { Definition } from "./definition.ts";
import { linearRecurrence } from "./linear_recurrence.ts";
import { linearScan } from "./linear_scan.ts";
import { logSumExp } from "./log_sum_exp.ts";
import { nextState } from "./next_state.ts";
import { selectBlocks } from "./select_blocks.ts";
import { selectKeys } from "./select_keys.ts";
import { rmsNorm } from "./rms_norm.ts";
import { round } from "./round.ts";
import type { AxisName } from "../../../spec/values.ts";
import type { WireFormat } from "../../../spec/wire.ts";
import { shift } from "./shift.ts";
import { softmax } from "./softmax.ts";

/** Parameters of these primitives. The comment names operands in order. */
export interface DefinedParams {
  /** x */
  softmax: { readonly over: AxisName };
  /** x: the logarithm of the sum of exponentials */
  logSumExp: { readonly over: AxisName };
  /** x, gain: gain * x / sqrt(mean(x^2) + epsilon) */
  rmsNorm: { readonly over: AxisName; readonly epsilon: number };
  /** state [sequence, slot, channel], x, weight [channel, over], sequence, position: causal, per channel */
  conv1d: { readonly over: AxisName };
  /** state [sequence, head, dim, valueDim], query, key, value, decay, rate, sequence, position */
  linearRecurrence: {
    readonly rule: "delta" | "add";
    readonly token: AxisName;
    readonly head: AxisName;
    readonly kvHead: AxisName;
    readonly dim: AxisName;
    readonly valueDim: AxisName;
  };
  /** query, key, value, decay, rate, sequence, position: for runs in which every sequence starts */
  linearScan: {
    readonly rule: "add" | "seen" | "erase";
    readonly token: AxisName;
    readonly head: AxisName;
    readonly dim: AxisName;
    readonly valueDim: AxisName;
    readonly reverse?: true;
  };
  /** y of a node that updates its first operand, a state, in place: the next value of the state */
  nextState: Record<never, never>;
  /** query, weights, keys [sequence, context, dim] after writing, sequence, last: the best positions up to `last` */
  selectKeys: {
    readonly token: AxisName;
    readonly head: AxisName;
    readonly dim: AxisName;
    readonly context: AxisName;
    readonly k: number;
    readonly axis: AxisName;
  };
  /** query, keys [sequence, context, dim] after writing, sequence, position: the best blocks of positions, per head */
  selectBlocks: {
    readonly token: AxisName;
    readonly head: AxisName;
    readonly dim: AxisName;
    readonly context: AxisName;
    readonly k: number;
    /** Positions per block. */
    readonly block: number;
    /** First blocks, and last ones up to that of the token, which are always selected. */
    readonly first: number;
    readonly local: number;
    readonly axis: AxisName;
  };
  /** x, sequence, position: the rows of the tokens `by` positions earlier */
  shift: { readonly by: number };
  /**
   * x, rounded in blocks along `over` to the format of an exchange; `encoded`, after expansion: stored in the format.
   * Only the compiler inserts it
   */
  round: {
    readonly over: AxisName;
    readonly format: WireFormat;
    readonly encoded?: true;
  };
}

type Defined = keyof DefinedParams;

/** The definitions. A primitive without one does not compile. */
const DEFINITIONS: { readonly [P in Defined]: Definition<P> } = {
  softmax,
  logSumExp,
  rmsNorm,
  conv1d,
  linearRecurrence,
  linearScan,
  nextState,
  selectKeys,
  selectBlocks,
  shift,
  round,
};

/** One field of every definition, as table rows by primitive. */
export function definedRows<K extends keyof Definition<Defined>>(
  field: K,
): { readonly [P in Defined]: Definition<P>[K] } {
  return Object.fromEntries(
    Object.entries(DEFINITIONS).map(([name, row]) => [name, row[field]]),
  ) as { [P in Defined]: Definition<P>[K] };
}
