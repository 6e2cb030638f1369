/** How parameters are stored in memory, as the passes between layout and lowering see it. */

import type { FileDType } from "../../spec/dtype.ts";

/** How a parameter is laid out in its buffer. */
export interface ParamLayout {
  /** Axes in memory order. */
  readonly axes: readonly string[];
  readonly rowStride?: number;
  /** Of a gathered parameter: it is the concatenation of the ranks' shards, so it is gathered in its stored layout. */
  readonly shards?: boolean;
  /** They are those of the file, with the axes inside over which its first dot contracts. */
  readonly filed?: boolean;
  readonly stored: FileDType;
  /** The contracted axis, along which elements share words, of which `PACKINGS` says how many. */
  readonly along?: string;
  /** Rows of 16-bit elements may begin in the middle of a word. */
  readonly splitsWords?: boolean;
}
