/** An all-to-all between ranks that share a device: launches that read the rows of up to four ranks each. */

import { countsPerRank, expertRanges } from "../plan/bytes.ts";
import { invariant } from "../errors.ts";
import { local } from "../kernel/build.ts";
import { bindings, type Grid, kernelOf } from "../kernel/make.ts";
import { pick } from "../kernel/pick.ts";
import { type Hole, type KernelText, wgsl } from "../kernel/text/text.ts";
import type { Kernel } from "../kernel/tree.ts";
import type { Size } from "../size.ts";

/** Sources per launch: with the other bindings they stay within the eight that every device supports. */
export const SOURCES = 4;

/** Workgroups of an exchange; each copies every 64th row. */
const EXCHANGE_GROUPS = 64;
const LANES = 64;

/**
 * A part of an all-to-all, as the plan's `AllToAllStep` defines it. Bindings: `counts` u32 [group rank, expert],
 * `groupRank` u32 [1], `dst` and `receivedCounts` u32 [group rank], both written, and `src0`, `src1`, … of the group
 * ranks `sources`. Its grid is `exchangeGrid(rows)`.
 */
export interface ExchangeOptions {
  readonly name: string;
  readonly direction: "forward" | "back";
  /** Experts splits[p] to splits[p + 1] belong to group rank p. */
  readonly splits: readonly number[];
  /** Counts per rank. Default: up to the last split. */
  readonly countsPerRank?: number;
  /** Only these experts of each group rank. Default: all. */
  readonly experts?: readonly (readonly [first: number, end: number])[];
  /** The counts are those of a round: offsets in the buffer by destination follow the experts. */
  readonly inRounds?: boolean;
  /** Group ranks of the sources, at most four. */
  readonly sources: readonly number[];
  readonly rowWords: number;
}

/** The grid of `exchange` for at most `rows` received rows. There is always a workgroup to write `receivedCounts`. */
export function exchangeGrid(rows: Size): Grid {
  return [{ min: [EXCHANGE_GROUPS, { add: [rows, 1] }] }, 1, 1];
}

const ME = local("me", "u32");

/** Rows from several group ranks, in blocks that follow from the counts. */
export function exchange(o: ExchangeOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  const parts = expertRanges(o);
  const numbers = o.sources.map((_, f) => f);
  const sources = numbers.map((f) => [`src${f}`, "u32"] as const);
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: bindings(
      { counts: "u32", groupRank: "u32", ...Object.fromEntries(sources) },
      { dst: "u32", receivedCounts: "u32" },
    ),
    body: wgsl`
      let me = groupRank[0];
      let my_first = ${pick(parts.map(([first]) => first), ME)};
      let my_end = ${pick(parts.map(([, end]) => end), ME)};
      ${numbers.map((f) => blockOf(o, f))}
      ${numbers.map((f) => copyRows(o, f))}
      if (group.x == 0 && lane < 1) {
        ${numbers.map((f) => wgsl`receivedCounts[${o.sources[f]}] = rows${f};`)}
      }`,
  });
}

/** `rows<f>` rows of source f, from its row `from<f>` to row `to<f>` here: prefix sums of counts. */
function blockOf(o: ExchangeOptions, f: number): KernelText {
  const perRank = countsPerRank(o);
  const source = o.sources[f]!;
  const [local_first, local_end] = expertRanges(o)[source]!;
  const forward = o.direction === "forward";
  const [sender, owner, first, end] = forward
    ? [wgsl`${source}u`, wgsl`me`, wgsl`my_first`, wgsl`my_end`]
    : [wgsl`me`, wgsl`${source}u`, wgsl`${local_first}u`, wgsl`${local_end}u`];
  const [inSender, inReceiver] = forward ? ["from", "to"] : ["to", "from"];
  /** `name` += counts of `sender` in experts from `from` below `to`. */
  const addExperts = (name: string, sender: Hole, from: Hole, to: Hole) =>
    wgsl`
      for (var c = ${from}; c < ${to}; c++) {
        ${name + f} += counts[${sender} * ${perRank} + c];
      }`;
  return wgsl`
    var rows${f} = 0u;
    var from${f} = 0u;
    var to${f} = 0u;
    ${addExperts("rows", sender, first, end)}
    // The sender's rows for earlier experts, and the rows of earlier senders for these experts.
    ${
    o.inRounds
      ? wgsl`${inSender + f} = counts[${sender} * ${perRank} + ${o.splits.at(
        -1,
      )!} + ${owner}];`
      : addExperts(inSender, sender, wgsl`${o.splits[0]!}u`, first)
  }
    for (var s = 0u; s < ${sender}; s++) {
      ${addExperts(inReceiver, wgsl`s`, first, end)}
    }`;
}

/** Copies the rows of source f: a workgroup copies every 64th row, a lane every 64th word. */
function copyRows({ rowWords }: ExchangeOptions, f: number): KernelText {
  return wgsl`
    for (var row = group.x; row < rows${f}; row += ${EXCHANGE_GROUPS}) {
      let read_at = (from${f} + row) * ${rowWords};
      let write_at = (to${f} + row) * ${rowWords};
      for (var word = lane; word < ${rowWords}; word += ${LANES}) {
        dst[write_at + word] = src${f}[read_at + word];
      }
    }`;
}
