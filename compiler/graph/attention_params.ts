/** Parameters of attention and of its derivatives. */

import type { AxisName } from "../../spec/values.ts";

/** Parameters of attention. */
export interface AttentionParams {
  readonly scale: number;
  /**
   * Tokens attend only to this many positions, their own included.
   *
   * @integer
   * @minimum 1
   * @maximum 2 ** 31
   */
  readonly window?: number;
  /**
   * Chunk size: tokens attend only to positions of their own chunk.
   *
   * @integer
   * @minimum 1
   * @maximum 2 ** 31
   */
  readonly chunk?: number;
  readonly token: AxisName;
  readonly head: AxisName;
  readonly dim: AxisName;
  readonly valueDim: AxisName;
  readonly kvHead?: AxisName;
  readonly context: AxisName;
  readonly sinks: boolean;
  readonly shared: boolean;
  /** The axis of positions that a token attends to, where those are given. */
  readonly selected?: AxisName;
  /**
   * Length of the listed blocks of positions. A token attends to the positions of its blocks up to its own.
   *
   * @integer
   * @minimum 1
   * @maximum 2 ** 24
   */
  readonly selectedBlock?: number;
  /** Each key head has its own list. */
  readonly selectedPerHead?: true;
  /** The axis of entries of a second cache, to which tokens attend besides. Then `selected` lists entries. */
  readonly entries?: AxisName;
}

/** Parameters of a part of attention's derivative. */
export type AttentionPart = AttentionParams & {
  /** Only some tokens wrote the keys, and a token may see none. */
  readonly sparse?: true;
};
