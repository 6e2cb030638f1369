/** Options and state of the expansion of routings. */

import type { Node, NodeOf, PrimitiveParams } from "../graph/graph.ts";
import { ModelError } from "../../spec/errors.ts";
import type { NumericsClass } from "../../spec/numerics.ts";
import type { Placed } from "../sharding/placed.ts";
import type { nodeLevels } from "./node_levels.ts";

/** The mesh, and the strategy of every routing. */
export interface ExpandOptions {
  readonly placed: Placed;
  /** Number of chunks of a dispatch, if its ranks have enough experts. */
  readonly chunks: number;
  /** Whether tokens are deduplicated. Undefined: if it saves enough. */
  readonly deduplicate: boolean | undefined;
  /** Rows that ranks have receive buffers for, see `Strategy`. Undefined: the worst case. */
  readonly receiveRows: string | undefined;
  readonly numerics: NumericsClass;
  /** Whether ids of choices are sent with every routing and compared on return. */
  readonly check: boolean;
}

/** State of the parts of one routing. */
export interface Routed {
  readonly assign: NodeOf<"assign">;
  /** The levels of its exchanges, if there are two. */
  readonly levels: ReturnType<typeof nodeLevels>;
  /** With two levels, the parts of the exchange between nodes: counts, received rows, and counts of the node. */
  nodes?: {
    readonly counts: Node;
    readonly group: Node;
    readonly forwarded: Node;
  };
  /** The mesh axes of its group of ranks; with two levels, those of a node. */
  readonly over: readonly string[];
  readonly chunks: number;
  /** Undefined: all rows are received at once. */
  readonly rounds: PrimitiveParams["rounds"] | undefined;
  /** Counts of every rank of the group. */
  counts: Node;
  /** Received rows, by chunk. */
  readonly groups: Node[];
  /** Values whose first chunk is in flight, or that are received in rounds. */
  readonly inFlight: Sent[];
  /** Nodes on rows before the combine, in order. */
  readonly deferred: Node[];
  /** Replacements of nodes on rows, by chunk. */
  readonly values: readonly Map<Node, Node>[];
  /** Returned rows, by sent value. */
  readonly returned: Map<Node, Node>;
}

/** Rows to send. `once`: rows are deduplicated tokens. */
export interface Sent {
  /** The dispatch. */
  readonly node: Node;
  readonly sent: Node;
  readonly once: boolean;
}

/** Whether rows are received in parts. */
export function inParts({ chunks, rounds }: Routed): boolean {
  return chunks > 1 || rounds !== undefined;
}

/** Whether a node returns rows to tokens. */
export function isReturn(
  node: Node,
): node is NodeOf<"combine"> | NodeOf<"combineTranspose"> {
  return node.primitive === "combine" || node.primitive === "combineTranspose";
}

/** The name of a chunk, if there are several. */
export function chunkName(
  chunk: number,
  chunks: number,
): { readonly chunk?: string } {
  return chunks === 1 ? {} : { chunk: `chunk ${chunk + 1} of ${chunks}` };
}

/** The error for a node that needs all rows of a dispatch that is received in parts. */
export function needsAllRows(
  { primitive, span }: Node,
  { receiveRows }: Pick<ExpandOptions, "receiveRows">,
): ModelError {
  const [parts, remedy] = receiveRows === undefined
    ? ["chunks", "with one chunk"]
    : ["rounds", "without receiveRows"];
  return new ModelError(
    `Cannot split a dispatch into ${parts}: '${primitive}' needs all of its rows at once. Compile ${remedy}`,
    span,
  );
}
