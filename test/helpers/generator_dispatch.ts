/** Small launches of the generators of dispatch and combine, with all choices of few tokens. */

import {
  assign,
  type AssignOptions,
  DROPPED,
} from "../../compiler/kernels/routing/assign.ts";
import {
  assignFew,
  FEW_CHOICES,
} from "../../compiler/kernels/routing/assign_few.ts";
import {
  compareIds,
  sendIds,
} from "../../compiler/kernels/routing/check_ids.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { bindings, lengthAt } from "../../compiler/kernels/kernel.ts";
import { listRows } from "../../compiler/kernels/routing/list_rows.ts";
import {
  moveRows,
  nodeCounts,
} from "../../compiler/kernels/routing/move_rows.ts";
import {
  combine,
  combineTranspose,
  permute,
  permuteOne,
  permuteOneGroups,
} from "../../compiler/kernels/routing/permute.ts";
import {
  regroup,
  regroupGrid,
} from "../../compiler/kernels/routing/regroup.ts";
import {
  decodeRows,
  encodeRows,
  roundRows,
  wireUnits,
} from "../../compiler/kernels/wire.ts";
import { load, store } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/text/resolve.ts";
import { range } from "../../spec/range.ts";
import { sum } from "../../spec/sum.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { type WireFormat, wireWords } from "../../spec/wire.ts";
import { type Contents, type Launch, resultsOf } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

const tokens = lengthAt(0);

/** Returns a function that builds a list on its first call. */
function once<T>(make: () => Iterable<T>): () => readonly T[] {
  let list: readonly T[] | undefined;
  return () => list ??= [...make()];
}

/** Choices of tokens: `index` [token, k]. */
export interface Choices {
  readonly experts: number;
  readonly k: number;
  readonly tokens: number;
  readonly index: readonly number[];
}

/** All choices of up to three tokens among up to three experts, and two longer batches. */
export function* allChoices(): Generator<Choices> {
  for (
    const [experts, k, maxChoices] of [[1, 1, 2], [2, 1, 3], [2, 2, 2], [
      3,
      2,
      2,
    ]]
  ) {
    const each = k === 1
      ? range(experts!).map((e) => [e])
      : range(experts!).flatMap((a) =>
        range(experts!).filter((b) => b !== a).map((b) => [a, b])
      );
    for (const tokens of range(maxChoices! + 1)) {
      for (const n of range(each.length ** tokens)) {
        const index = range(tokens).flatMap((t) =>
          each[Math.floor(n / each.length ** t) % each.length]!
        );
        yield { experts: experts!, k: k!, tokens, index };
      }
    }
  }
  for (const tokens of [65, 130]) {
    const index = range(tokens).flatMap((t) => [t * t % 3, (t * t + 1) % 3]);
    yield { experts: 3, k: 2, tokens, index };
  }
}

/** Choices with their assignment to rows. Some are dropped or belong to other ranks. */
interface Assigned extends Choices {
  readonly kept: readonly boolean[];
  readonly options: AssignOptions;
  readonly launch: Launch;
}

const GROUP_RANKS = [0, 1];

function* assigned(): Generator<Assigned> {
  let n = 0;
  for (const choices of allChoices()) {
    const { experts, k, index } = choices;
    const order = range(experts).reverse();
    for (const ordered of [false, true]) {
      const expert = (e: number) => ordered ? order[e]! : e;
      for (const dropped of [undefined, 0, 1, 2] as const) {
        for (
          const groupRank of experts > 1 && !dropped
            ? [undefined, ...GROUP_RANKS]
            : [undefined]
        ) {
          for (
            // Two units; the first has one expert.
            const { tileRows, units } of groupRank === undefined
              ? [
                {},
                { tileRows: 1 + n++ % 2 },
                ...experts > 1 ? [{ units: [0, 1, experts] }] : [],
              ]
              : [{}]
          ) {
            if (ordered && dropped) continue;
            const slot = index.map((_, a) =>
              dropped && (a + dropped) % 3 < 2 ? -1 : 0
            );
            const splits = [0, 1, experts];
            const kept = index.map((e, a) =>
              slot[a] === 0 && (groupRank === undefined ||
                expert(e) >= splits[groupRank]! &&
                  expert(e) < splits[groupRank + 1]!)
            );
            const counts = range(experts).map((c) =>
              index.filter((e, a) => kept[a] && expert(e) === c).length
            );
            const rows = sum(counts);
            const tiles = sum(
              counts.map((n) => Math.ceil(n / (tileRows ?? 1))),
            );
            const options: AssignOptions = {
              name,
              experts,
              k,
              tokens,
              ordered,
              dropping: dropped !== undefined,
              ...groupRank === undefined ? {} : { splits },
              ...tileRows === undefined ? {} : { grouped: { tileRows } },
              ...units ? { units } : {},
            };
            yield {
              ...choices,
              kept,
              options,
              launch: {
                kernel: () => assign(options),
                grid: [1, 1, 1],
                reads: {
                  index,
                  slot,
                  order,
                  groupRank: [groupRank ?? 0],
                  lengths: [choices.tokens],
                },
                stores: {
                  counts: experts + (units ? 2 : 0),
                  sendRow: index.length,
                  tokenRow: index.length,
                  tokenIndices: rows,
                  tokenOf: rows,
                  expertOf: rows,
                  rowCount: 1,
                  tiles: 1 + 3 * tiles,
                },
              },
            };
          }
        }
      }
    }
  }
}

/** With one workgroup, and with one per expert or unit. */
export function* ofAssign(): Generator<Launch> {
  for (const { options, launch } of assigned()) {
    yield launch;
    const { experts, units, grouped } = options;
    if (grouped) continue;
    const ranges = units ?? range(experts + 1);
    yield {
      ...launch,
      kernel: () => assign({ ...options, ranges }),
      grid: [ranges.length - 1, 1, 1],
    };
  }
}

export function* ofAssignFew(): Generator<Launch> {
  for (const { options, launch, index } of assigned()) {
    if (index.length > FEW_CHOICES) continue;
    yield { ...launch, kernel: () => assignFew(options) };
  }
}

/** Assigned choices with the rows of their kernels. Skips kernels that store tiles or token rows, or read an order. */
const sent = once(function* (): Generator<
  Assigned & { readonly got: Contents }
> {
  for (const one of assigned()) {
    const names = one.launch.kernel().bindings.map((b) => b.name);
    const others = ["tiles", "order", "tokenRow"];
    if (others.some((other) => names.includes(other))) continue;
    const got = resultsOf(one.launch);
    const sendRow = got["sendRow"]!.slice(0, one.index.length);
    yield { ...one, got: { ...got, sendRow } };
  }
});

export function* ofPermute(): Generator<Launch> {
  for (const { k, tokens: count, kept, got } of sent()) {
    for (const row of [1, 3]) {
      yield {
        kernel: () => permute({ name, row, k, tokens }),
        grid: elementwiseGrid(count * k * row),
        reads: {
          x: waves(count * row),
          sendRow: got["sendRow"]!,
          lengths: [count],
        },
        stores: { send: kept.filter(Boolean).length * row },
      };
    }
  }
}

/** The row of one token, with fewer and more elements than a workgroup has lanes. */
export function* ofPermuteOne(): Generator<Launch> {
  for (const row of [3, 257]) {
    for (const rows of [1, 3]) {
      yield {
        kernel: () => permuteOne({ name, row, rows }),
        grid: [1, permuteOneGroups({ row }), 1],
        reads: { x: waves(row) },
        stores: { send: rows * row },
      };
    }
  }
}

/** Rows in all orders, in both directions. */
export function* ofMoveRows(): Generator<Launch> {
  for (const order of [[], [0], [1, 0], [2, 0, 1]]) {
    for (const direction of ["forward", "back"] as const) {
      for (const row of [1, 3]) {
        const elements = order.length * row;
        yield {
          kernel: () => moveRows({ name, row, direction, type: "u32" }),
          grid: elementwiseGrid(4 * row),
          reads: {
            rowCount: [order.length],
            index: order,
            x: range(elements),
          },
          stores: { y: elements },
        };
      }
    }
  }
}

export function* ofNodeCounts(): Generator<Launch> {
  for (const [nodes, experts, units] of [[2, 1, 0], [2, 3, 2], [3, 2, 3]]) {
    const countsPerRank = nodes! * experts! + units!;
    for (const me of range(nodes!)) {
      yield {
        kernel: () =>
          nodeCounts({
            name,
            nodes: nodes!,
            experts: experts!,
            countsPerRank,
          }),
        grid: elementwiseGrid(experts!),
        reads: { all: range(nodes! * countsPerRank), groupRank: [me] },
        stores: { counts: experts! },
      };
    }
  }
}

export function* ofCombine(): Generator<Launch> {
  for (const { k, tokens: count, kept, got } of sent()) {
    for (const [row, weighed] of [[1, true], [3, false]] as const) {
      yield {
        kernel: () =>
          combine({
            name,
            row,
            k,
            tokens,
            weighed,
            bindings: bindings(
              { returned: "f32", sendRow: "u32", weight: "f32" },
              { y: "f32" },
            ),
            epilogue: (i, value) => [store("y", i, value)],
          }),
        grid: elementwiseGrid(count * row),
        reads: {
          returned: waves(kept.filter(Boolean).length * row),
          sendRow: got["sendRow"]!,
          weight: waves(count * k),
          lengths: [count],
        },
        stores: { y: count * row },
      };
    }
  }
}

export function* ofCombineTranspose(): Generator<Launch> {
  for (const { index, kept, got } of sent()) {
    for (const width of [1, 3]) {
      yield {
        kernel: () =>
          combineTranspose({
            name,
            width,
            count: lengthAt(0),
            bindings: bindings(
              { returned: "f32", sendRow: "u32" },
              { y: "f32" },
            ),
            epilogue: (i, value) => [store("y", i, value)],
          }),
        grid: elementwiseGrid(index.length * width),
        reads: {
          returned: waves(kept.filter(Boolean).length * width),
          sendRow: got["sendRow"]!,
          lengths: [index.length * width],
        },
        stores: { y: index.length * width },
      };
    }
  }
}

export function* ofListRows(): Generator<Launch> {
  for (const { launch, ...choices } of assigned()) {
    const { experts, k, tokens: count, index } = choices;
    const names = launch.kernel().bindings.map((b) => b.name);
    if (!names.includes("tokenRow") || names.includes("order")) continue;
    const got = resultsOf(launch);
    const maxChoices = Math.min(k, experts - 1);
    const local = [...got["counts"]!.slice(0, experts + 2)];
    const sent = sum(local.slice(experts));
    for (const me of [0, 1]) {
      const other = range(experts + 2).map((e) => e + 1);
      yield {
        kernel: () =>
          listRows({
            name,
            splits: [0, 1, experts],
            k,
            tokens,
            maxChoices,
          }),
        grid: elementwiseGrid(index.length),
        reads: {
          weight: waves(index.length),
          sendRow: got["sendRow"]!.slice(0, index.length),
          tokenRow: got["tokenRow"]!.slice(0, index.length),
          counts: me === 0 ? [...local, ...other] : [...other, ...local],
          groupRank: [me],
          lengths: [count],
        },
        stores: { rows: sent * 2 * maxChoices },
      };
    }
  }
}

/** All counts below `below` by [group rank, expert], for one or two experts per rank. */
export function* ofRegroup(): Generator<Launch> {
  for (
    const { splits, experts, below, once, offsets = 0 } of [
      { splits: [0, 1, 2], below: 3 },
      { splits: [0, 1, 3], below: 2 },
      { splits: [0, 1, 3], below: 2, once: { chunk: 0, chunks: 1 } },
      { splits: [0, 2, 4], experts: [[1, 2], [3, 4]] as const, below: 2 },
      {
        splits: [0, 2, 4],
        experts: [[1, 2], [3, 4]] as const,
        below: 2,
        once: { chunk: 1, chunks: 2 },
      },
      { splits: [0, 3], below: 4 },
      { splits: [0, 1, 3], below: 2, offsets: 2 },
    ]
  ) {
    const [groupSize, all] = [splits.length - 1, splits.at(-1)!];
    const cells = groupSize * all;
    // Counts of units, one for each rank and chunk, follow those of experts.
    const units = range(once ? groupSize * once.chunks : offsets);
    for (const n of range(below ** cells)) {
      const counts = range(cells).map((c) =>
        Math.floor(n / below ** c) % below
      );
      for (const me of range(groupSize)) {
        const [first, end] = experts?.[me] ?? [splits[me]!, splits[me + 1]!];
        const ofExpert = range(end - first).map((e) =>
          sum(range(groupSize).map((s) => counts[s * all + first + e]!))
        );
        const rows = sum(ofExpert);
        const tileRows = 1 + n % 3;
        yield {
          kernel: () =>
            regroup({
              name,
              splits,
              tileRows,
              // Each value of a count occurs with both kernels.
              wide: (n + Math.floor(n / below ** 2)) % 2 === 1,
              ...experts ? { experts } : {},
              ...once ? { once } : {},
              ...offsets ? { countsPerRank: all + offsets } : {},
            }),
          grid: regroupGrid(rows),
          reads: {
            counts: range(groupSize).flatMap((s) => [
              ...counts.slice(s * all, (s + 1) * all),
              ...units,
            ]),
            groupRank: [me],
            tokenIndices: range(rows),
          },
          stores: {
            rowOf: rows,
            expertOf: rows,
            tokenOf: rows,
            rowCount: once ? 2 : 1,
            tiles: 1 + 3 * sum(ofExpert.map((n) => Math.ceil(n / tileRows))),
          },
        };
      }
    }
  }
}

/** Choices with one dropped, on a rank whose ids follow those of another rank. */
const SENT = range(5).flatMap((tokens) =>
  [1, 2].map((k) => ({
    k,
    count: tokens,
    sendRow: range(tokens * k).map((i) =>
      i === 1 ? DROPPED : tokens * k - 1 - i
    ),
  }))
);
const MAX_CHOICES = 10;

const rowsOf = (sendRow: readonly number[]): number[] =>
  sendRow.filter((row) => row !== DROPPED);

/** Ids of the choices of up to four tokens. */
export function* ofSendIds(): Generator<Launch> {
  for (const { k, count, sendRow } of SENT) {
    yield {
      kernel: () => sendIds({ k, tokens, maxChoices: MAX_CHOICES }),
      grid: elementwiseGrid(count * k),
      reads: { sendRow, groupRank: [1], lengths: [count] },
      stores: { ids: rowsOf(sendRow) },
    };
  }
}

/** Comparison of these ids. */
export function* ofCompareIds(): Generator<Launch> {
  for (const { k, count, sendRow } of SENT) {
    const ids = new Array<number>(count * k).fill(NaN);
    sendRow.forEach((row, i) => {
      if (row !== DROPPED) ids[row] = MAX_CHOICES + i;
    });
    yield {
      kernel: () => compareIds({ k, tokens, maxChoices: MAX_CHOICES }),
      grid: [1, 1, 1],
      reads: { sendRow, ids, groupRank: [1], lengths: [count] },
      stores: { wrong: 1 },
    };
  }
}

/** Few rows in every format, with and without partial words and blocks. */
function* wireRows() {
  for (const format of ["bf16", "fp8"] satisfies WireFormat[]) {
    for (const length of [1, 2, 6, 128, 131]) {
      for (const count of [0, 1, 3]) {
        const rows = { name, format, length, rows: lengthAt(0) };
        const words = count * wireWords(format, length);
        yield { rows, count, length, words };
      }
    }
  }
}

/** Index of element `i` of a row of `length` elements. */
function elementOf(length: number) {
  return (row: Expr, i: Expr) => expr`${row} * ${length} + ${i}`;
}

export function* ofEncodeRows(): Generator<Launch> {
  for (const { rows, count, length, words } of wireRows()) {
    const at = elementOf(length);
    yield {
      kernel: () =>
        encodeRows({
          ...rows,
          bindings: bindings({ x: "f32" }, { to: "u32" }),
          load: (row, i) => load("x", at(row, i)),
          to: "to",
        }),
      grid: elementwiseGrid(count * wireUnits(rows)),
      reads: { x: waves(count * length), lengths: [count] },
      stores: { to: words },
    };
  }
}

export function* ofRoundRows(): Generator<Launch> {
  for (const { rows, count, length } of wireRows()) {
    const at = elementOf(length);
    yield {
      kernel: () =>
        roundRows({
          ...rows,
          bindings: bindings({ x: "f32" }, { y: "f32" }),
          load: (row, i) => load("x", at(row, i)),
          store: (row, i, value) => [store("y", at(row, i), value)],
        }),
      grid: elementwiseGrid(count * wireUnits(rows)),
      reads: { x: waves(count * length), lengths: [count] },
      stores: { y: count * length },
    };
  }
}

export function* ofDecodeRows(): Generator<Launch> {
  for (const { rows, count, length, words } of wireRows()) {
    yield {
      kernel: () =>
        decodeRows({
          ...rows,
          bindings: bindings({ from: "u32", rowOf: "u32" }, { y: "f32" }),
          from: "from",
          rowFrom: (row) => load("rowOf", row, "u32"),
          store: (i, value) => [store("y", i, value)],
        }),
      grid: elementwiseGrid(count * length),
      reads: {
        from: range(words),
        rowOf: range(count).reverse(),
        lengths: [count],
      },
      stores: { y: count * length },
    };
  }
}
