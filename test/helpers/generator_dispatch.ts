/** Small launches of the generators of dispatch and of combine: all choices of few tokens. */

import { assign } from "../../compiler/kernels/assign.ts";
import { elementwiseGrid } from "../../compiler/kernels/elementwise.ts";
import { bindings, lengthAt } from "../../compiler/kernels/kernel.ts";
import { listRows } from "../../compiler/kernels/list_rows.ts";
import { countTokens, locate } from "../../compiler/kernels/locate.ts";
import {
  combine,
  combineTranspose,
  permute,
} from "../../compiler/kernels/permute.ts";
import { destinations } from "../../compiler/kernels/destinations.ts";
import { regroup, regroupGrid } from "../../compiler/kernels/regroup.ts";
import { store } from "../../spec/kernel/build.ts";
import { type Contents, type Launch, resultsOf } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

const tokens = lengthAt(0);

/** Whole numbers below `n`. */
export const range = (n: number): number[] =>
  Array.from({ length: n }, (_, i) => i);

/** Their sum. */
export const total = (list: readonly number[]): number =>
  list.reduce((a, b) => a + b, 0);

/** A list that is made where it is first asked for. */
function once<T>(make: () => Iterable<T>): () => readonly T[] {
  let made: readonly T[] | undefined;
  return () => made ??= [...make()];
}

/** What tokens choose. */
export interface Choices {
  readonly experts: number;
  readonly k: number;
  readonly tokens: number;
  readonly index: readonly number[];
}

/** All that up to three tokens can choose of up to three experts; of more, one of each kind. */
export function* allChoices(): Generator<Choices> {
  for (
    const [experts, k, most] of [[1, 1, 2], [2, 1, 3], [2, 2, 2], [3, 2, 2]]
  ) {
    const each = k === 1
      ? range(experts!).map((e) => [e])
      : range(experts!).flatMap((a) =>
        range(experts!).filter((b) => b !== a).map((b) => [a, b])
      );
    for (const tokens of range(most! + 1)) {
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

/** Where choices go: some are dropped, some are of other ranks. */
interface Assigned extends Choices {
  readonly kept: readonly boolean[];
  readonly launch: Launch;
}

const OWN = [0, 1];

function* assigned(): Generator<Assigned> {
  let n = 0;
  for (const choices of allChoices()) {
    const { experts, k, index } = choices;
    const order = range(experts).reverse();
    for (const ordered of [false, true]) {
      const expert = (e: number) => ordered ? order[e]! : e;
      for (const dropped of [undefined, 0, 1, 2] as const) {
        for (
          const own of experts > 1 && !dropped
            ? [undefined, ...OWN]
            : [undefined]
        ) {
          for (
            const tileRows of own === undefined
              ? [undefined, 1 + n++ % 2]
              : [undefined]
          ) {
            if (ordered && dropped) continue;
            const slot = index.map((_, a) =>
              dropped && (a + dropped) % 3 < 2 ? -1 : 0
            );
            const splits = [0, 1, experts];
            const kept = index.map((e, a) =>
              slot[a] === 0 && (own === undefined ||
                expert(e) >= splits[own]! && expert(e) < splits[own + 1]!)
            );
            const counts = range(experts).map((c) =>
              index.filter((e, a) => kept[a] && expert(e) === c).length
            );
            const rows = total(counts);
            const tiles = total(
              counts.map((n) => Math.ceil(n / (tileRows ?? 1))),
            );
            yield {
              ...choices,
              kept,
              launch: {
                kernel: assign({
                  ...{ name, experts, k, tokens, ordered },
                  dropping: dropped !== undefined,
                  ...own === undefined ? {} : { own: splits },
                  ...tileRows === undefined ? {} : { grouped: { tileRows } },
                }),
                grid: [1, 1, 1],
                reads: {
                  ...{ index, slot, order, groupRank: [own ?? 0] },
                  lengths: [choices.tokens],
                },
                stores: {
                  ...{ counts: experts, sendRow: index.length },
                  ...{ tokenOf: rows, expertOf: rows, rowCount: 1 },
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

export function* ofAssign(): Generator<Launch> {
  for (const { launch } of assigned()) yield launch;
}

/** Choices that were assigned, and the rows that they got; a part of all of them. */
const sent = once(function* (): Generator<
  Assigned & { readonly got: Contents }
> {
  for (const one of assigned()) {
    const names = one.launch.kernel.bindings.map((b) => b.name);
    if (names.includes("tiles") || names.includes("order")) continue;
    const got = resultsOf(one.launch);
    const sendRow = got["sendRow"]!.slice(0, one.index.length);
    yield { ...one, got: { ...got, sendRow } };
  }
});

export function* ofPermute(): Generator<Launch> {
  for (const { k, tokens: count, kept, got } of sent()) {
    for (const row of [1, 3]) {
      yield {
        kernel: permute({ name, row, k, tokens }),
        grid: elementwiseGrid(count * k * row),
        reads: {
          ...{ x: waves(count * row), sendRow: got["sendRow"]! },
          lengths: [count],
        },
        stores: { send: kept.filter(Boolean).length * row },
      };
    }
  }
}

export function* ofCombine(): Generator<Launch> {
  for (const { k, tokens: count, kept, got } of sent()) {
    for (const [row, weighed] of [[1, true], [3, false]] as const) {
      yield {
        kernel: combine({
          ...{ name, row, k, tokens, weighed },
          bindings: bindings(
            { returned: "f32", sendRow: "u32", weight: "f32" },
            { y: "f32" },
          ),
          epilogue: (i, value) => [store("y", i, value)],
        }),
        grid: elementwiseGrid(count * row),
        reads: {
          returned: waves(kept.filter(Boolean).length * row),
          ...{ sendRow: got["sendRow"]!, weight: waves(count * k) },
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
        kernel: combineTranspose({
          ...{ name, width, count: lengthAt(0) },
          bindings: bindings(
            { returned: "f32", sendRow: "u32" },
            { y: "f32" },
          ),
          epilogue: (i, value) => [store("y", i, value)],
        }),
        grid: elementwiseGrid(index.length * width),
        reads: {
          returned: waves(kept.filter(Boolean).length * width),
          ...{ sendRow: got["sendRow"]!, lengths: [index.length * width] },
        },
        stores: { y: index.length * width },
      };
    }
  }
}

/** Two group ranks, the first of which has one expert. */
function* reached(): Generator<Assigned & { got: Contents; counted: Launch }> {
  for (const one of sent()) {
    const { experts, k, tokens: count, index, kept, got } = one;
    if (experts === 1) continue;
    yield {
      ...one,
      counted: {
        kernel: destinations({
          ...{ name, splits: [0, 1, experts], k, tokens, ordered: false },
        }),
        grid: [1, 1, 1],
        reads: { index, sendRow: got["sendRow"]!, lengths: [count] },
        stores: {
          ...{ destinationCounts: 2, tokenRow: index.length },
          places: kept.filter(Boolean).length,
        },
      },
    };
  }
}

export function* ofDestinations(): Generator<Launch> {
  for (const { counted } of reached()) yield counted;
}

export function* ofListRows(): Generator<Launch> {
  for (const { experts, k, tokens: count, index, got, counted } of reached()) {
    const found = resultsOf(counted);
    const most = Math.min(k, experts - 1);
    const own = [...got["counts"]!.slice(0, experts)];
    for (const me of [0, 1]) {
      const other = range(experts).map((e) => e + 1);
      yield {
        kernel: listRows({
          ...{ name, splits: [0, 1, experts], k, tokens, most },
        }),
        grid: elementwiseGrid(index.length),
        reads: {
          ...{ weight: waves(index.length), sendRow: got["sendRow"]! },
          tokenRow: found["tokenRow"]!.slice(0, index.length),
          counts: me === 0 ? [...own, ...other] : [...other, ...own],
          ...{ groupRank: [me], lengths: [count] },
        },
        stores: {
          rows: total([...found["destinationCounts"]!.slice(0, 2)]) * 2 * most,
        },
      };
    }
  }
}

/** All counts below three that two ranks have for one or two experts of each; of three experts, below two. */
function* regrouped(): Generator<
  Launch & { readonly me: number; readonly rows: number }
> {
  for (
    const { splits, experts, below } of [
      { splits: [0, 1, 2], below: 3 },
      { splits: [0, 1, 3], below: 2 },
      { splits: [0, 2, 4], experts: [[1, 2], [3, 4]] as const, below: 2 },
      { splits: [0, 3], below: 4 },
    ]
  ) {
    const [groupSize, all] = [splits.length - 1, splits.at(-1)!];
    const cells = groupSize * all;
    for (const n of range(below ** cells)) {
      const counts = range(cells).map((c) =>
        Math.floor(n / below ** c) % below
      );
      for (const me of range(groupSize)) {
        const [first, end] = experts?.[me] ?? [splits[me]!, splits[me + 1]!];
        const ofExpert = range(end - first).map((e) =>
          total(range(groupSize).map((s) => counts[s * all + first + e]!))
        );
        const rows = total(ofExpert);
        const tileRows = 1 + n % 3;
        yield {
          ...{ me, rows },
          kernel: regroup({
            ...{ name, splits, tileRows, ...experts ? { experts } : {} },
          }),
          grid: regroupGrid(rows),
          reads: { counts, groupRank: [me] },
          stores: {
            ...{ rowOf: rows, expertOf: rows, rowCount: 1 },
            tiles: 1 + 3 * total(ofExpert.map((n) => Math.ceil(n / tileRows))),
          },
        };
      }
    }
  }
}

export function* ofRegroup(): Generator<Launch> {
  for (const launch of regrouped()) yield launch;
}

export function* ofLocate(): Generator<Launch> {
  for (const { me, rows, ...launch } of regrouped()) {
    const counts = [...launch.reads["counts"]!];
    if (counts.length !== 6) continue;
    const got = resultsOf(launch);
    for (const chunks of [1, 2]) {
      yield {
        kernel: locate({ name, splits: [0, 1, 3], chunk: chunks - 1, chunks }),
        grid: elementwiseGrid(rows),
        reads: {
          ...{ counts, destinationCounts: range(4 * chunks), groupRank: [me] },
          rowOf: got["rowOf"]!.slice(0, rows),
          ...{ rowCount: [rows], places: range(rows) },
        },
        stores: { tokenOf: rows },
      };
    }
  }
}

export function* ofCountTokens(): Generator<Launch> {
  for (const groupSize of [1, 2, 5]) {
    for (const chunks of [1, 3]) {
      for (const me of range(groupSize)) {
        for (const chunk of range(chunks)) {
          yield {
            kernel: countTokens({ name, groupSize, chunk, chunks }),
            grid: [1, 1, 1],
            reads: {
              destinationCounts: range(groupSize ** 2 * chunks),
              groupRank: [me],
            },
            stores: { tokenCount: 1 },
          };
        }
      }
    }
  }
}
