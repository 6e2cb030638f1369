/** Memory layout of parameters, for the passes between layout and lowering. */

import type { FileDType } from "../../spec/dtype.ts";

/** Layout of a parameter in its buffer. */
export interface ParamLayout {
  /** Axes in memory order. */
  readonly axes: readonly string[];
  readonly rowStride?: number;
  /** For a gathered parameter: the concatenation of the ranks' shards, gathered in their stored layout. */
  readonly shards?: boolean;
  /** The axis order of the file, with the axes contracted by its first dot innermost. */
  readonly filed?: boolean;
  readonly stored: FileDType;
  /** The contracted axis, along which elements share words (`PACKINGS`). */
  readonly along?: string;
  /** Products with it have quantized activations. */
  readonly q8?: boolean;
  /** Rows of 16-bit elements may start in the middle of a word. */
  readonly splitsWords?: boolean;
}
