/** The rows that a rank receives for its experts, or for those of a chunk, listed by expert without moving them. */

import { mapRanks, type PerRank } from "../../../../spec/per_rank.ts";
import type { Size } from "../../../../spec/size.ts";
import type { NodeOf } from "../../../graph/graph.ts";
import { tileHeight } from "../../../tuning/tile.ts";
import { kernelFrom } from "../../../kernels/kernel.ts";
import {
  regroup,
  regroupGrid,
  tileBound,
} from "../../../kernels/routing/regroup.ts";
import {
  countsPerRankOf,
  launchAssign,
  listBuffer,
  partOf,
  routingScratch,
  sentBy,
} from "./assign.ts";
import { addLaunch, type Lowering } from "../context.ts";
import { type ReceivedRows, receivedRows } from "./receive_bound.ts";
import { emitExchange } from "./exchange.ts";

/** Received rows, and the buffers that list them by expert. */
export interface GroupedRows {
  readonly received: ReceivedRows;
  /** The axis of the rank's experts, and of its rows in the plan. */
  readonly expert: string;
  readonly axis: string;
  readonly tileSize: Size;
  readonly tiles: string;
  /** Grouped row -> received row. Absent if they are equal, because rows are local. */
  readonly rowOf?: string;
  /** With local rows: grouped row -> token. */
  readonly tokenOf?: string;
  readonly expertOf: string;
  /** The number of rows, followed by the number of tokens if they are deduplicated. */
  readonly rowCount: string;
  /** Set if tokens are deduplicated. */
  readonly tokens?: ReceivedTokens;
}

/** Mapping from choices to deduplicated tokens. */
interface ReceivedTokens {
  /** For each received row of a choice, the index of its token among those of its source. */
  readonly indices: string;
  /** Grouped row -> received token. */
  readonly tokenOf: string;
  /** With pre-summing: the rows of each received token. */
  readonly rows?: string;
}

/** Groups received rows by expert: a tile list for the grouped kernels. */
export function lowerGroup(lowering: Lowering, node: NodeOf<"group">): void {
  const rows = groupedRows(lowering, node);
  lowering.values.groups.set(node, rows);
  const { received, tokens } = rows;
  const { sent, chunk } = received;
  const { splits, chunks, groupRank } = sent;
  const { tiles, rowOf, tokenOf, expertOf, rowCount } = rows;
  const tileRows = tileHeight(lowering.options.tile);
  if (sent.node.params.local) {
    return launchAssign(lowering, node, sent, {
      tileRows,
      bindings: { tiles, tokenOf: tokenOf!, expertOf, rowCount },
    });
  }
  if (tokens) exchangeIndices(lowering, node, rows);
  const kernel = kernelFrom(regroup, {
    name: `regroup_${splits.at(-1)!}`,
    splits,
    tileRows,
    wide: lowering.options.tuning.wideRows,
    ...sent.roundRows === undefined
      ? {}
      : { countsPerRank: countsPerRankOf(sent) },
    ...chunks.length === 1 ? {} : { experts: chunks[chunk]! },
    ...sent.node.params.localOnly ? { sources: 1 } : {},
    ...tokens ? { once: { chunk, chunks: chunks.length } } : {},
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      counts: sent.countsAll,
      groupRank,
      tiles,
      rowOf: rowOf!,
      expertOf,
      rowCount,
      ...tokens
        ? { tokenIndices: tokens.indices, tokenOf: tokens.tokenOf }
        : {},
    },
    workgroups: regroupGrid(received.size),
    part: partOf(sent, "regroup"),
  });
}

/** Sends the token indices of choices to the ranks of experts, and with pre-summing, the rows of each token. */
function exchangeIndices(
  lowering: Lowering,
  node: NodeOf<"group">,
  rows: GroupedRows,
): void {
  const { received } = rows;
  const { sent } = received;
  const { lists, indices } = sent.tokens!;
  const here = rows.tokens!;
  if (lists) {
    emitExchange(lowering, node, received, {
      from: lists.rows,
      to: here.rows!,
      words: 2 * lists.maxChoices,
      direction: "forward",
      once: true,
      part: partOf(sent, "exchange rows"),
    });
  }
  emitExchange(lowering, node, received, {
    from: indices,
    to: here.indices,
    words: 1,
    direction: "forward",
    part: partOf(sent, "exchange indices"),
  });
}

function groupedRows(
  lowering: Lowering,
  node: NodeOf<"group">,
): GroupedRows {
  const sent = sentBy(lowering, node.inputs[0]!);
  const { chunk, expert, slot } = node.params;
  const received = receivedRows(lowering, sent, chunk);
  const { bound, size, experts, maxExperts } = received;
  const lists = sent.tokens?.lists;
  const tileRows = tileHeight(lowering.options.tile);
  const tilesBound = mapRanks(
    [bound, experts],
    ([rows, n]) => 1 + 3 * (Math.ceil(rows! / tileRows) + n!),
  );
  const scratch = (name: string, size: PerRank) =>
    routingScratch(lowering, name, { size });
  return {
    received,
    expert,
    axis: `${expert} ${slot}`,
    tileSize: tileBound(size, maxExperts, tileRows),
    tiles: routingScratch(lowering, "tiles", {
      size: tilesBound,
      routing: "tiles",
    }),
    ...sent.node.params.local
      ? { tokenOf: scratch("tokenOf", bound) }
      : { rowOf: scratch("rowOf", bound) },
    expertOf: scratch("expertOf", bound),
    rowCount: scratch("rowCount", sent.tokens ? 2 : 1),
    ...sent.tokens
      ? {
        tokens: {
          indices: scratch("receivedTokenIndices", bound),
          tokenOf: scratch("tokenOf", bound),
          ...lists
            ? {
              rows: listBuffer(lowering, received.tokenBound, lists.maxChoices),
            }
            : {},
        },
      }
      : {},
  };
}
