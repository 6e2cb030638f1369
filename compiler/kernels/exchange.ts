/** Collectives between ranks that share a device: they are launches, and nothing waits for the host. */

import { columnsOf } from "../../spec/bytes.ts";
import { invariant } from "../../spec/errors.ts";
import {
  add,
  and,
  eq,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  select,
  set,
  store,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { elementwise } from "./elementwise.ts";
import { type Grid, kernelOf, reads, writes } from "./kernel.ts";

/** Sources of one launch: with the other bindings they stay within the eight that every device has. */
export const EXCHANGE_SOURCES = 4;

/** Workgroups of an exchange; each takes every 64th row. */
const EXCHANGE_GROUPS = 64;
const LANES = 64;

function u(name: string): Expr {
  return local(name, "u32");
}

/**
 * A part of an all-gather. Bindings: `dst`, written, and `src0`, `src1`, … of the group positions `sources`.
 * Its grid is `elementwiseGrid(words)`.
 */
export interface GatherOptions {
  readonly name: string;
  /** Words of each source. */
  readonly words: number;
  /** Group positions of the sources, at most four. */
  readonly sources: readonly number[];
  /** Type that the buffers are seen as. Default u32. */
  readonly type?: Binding["type"];
  /** Sources have a block of `words` for each position, of which the rank's own is taken; binding `position`, u32 [1]. */
  readonly blocks?: boolean;
}

/** dst[sources[f]] = src f, or its block for this position */
export function gather(o: GatherOptions): Kernel {
  const type = o.type ?? "u32";
  invariant(o.sources.length <= EXCHANGE_SOURCES, "at most four sources");
  return elementwise({
    name: o.name,
    count: u32(o.words),
    bindings: [
      reads("position", "u32"),
      ...o.sources.map((_, f) => reads(`src${f}`, type)),
      writes("dst", type),
    ],
    body(i) {
      const start = mul(load("position", u32(0), "u32"), u32(o.words));
      const from = o.blocks ? add(start, i) : i;
      return o.sources.map((source, f) =>
        store("dst", add(u32(source * o.words), i), load(`src${f}`, from, type))
      );
    },
  });
}

/**
 * A part of an all-to-all, as the plan's `AllToAllStep` defines it. Bindings: `counts` u32 [position, column], `position`
 * u32 [1], `dst` and `moved` u32 [position], both written, and `src0`, `src1`, … of the group positions `sources`.
 * Its grid is `exchangeGrid(rows)`.
 */
export interface ExchangeOptions {
  readonly name: string;
  readonly direction: "forward" | "back";
  /** Columns splits[p] to splits[p + 1] belong to position p. */
  readonly splits: readonly number[];
  /** Only these columns of each position; default all. */
  readonly columns?: readonly (readonly [first: number, end: number])[];
  /** Group positions of the sources, at most four. */
  readonly sources: readonly number[];
  readonly rowWords: number;
  /** Type that the buffers are seen as. Default u32. */
  readonly type?: Binding["type"];
}

/** The grid of `exchange` when at most `rows` rows arrive. There is always a workgroup, to write `moved`. */
export function exchangeGrid(rows: Size): Grid {
  return [{ min: [EXCHANGE_GROUPS, { add: [rows, 1] }] }, 1, 1];
}

/** values[at], from constants: a line where they lie on one, else a search. */
export function pick(values: readonly number[], at: Expr): Expr {
  const step = values.length > 1 ? values[1]! - values[0]! : 0;
  if (step >= 0 && values.every((v, i) => v === values[0]! + i * step)) {
    return add(u32(values[0]!), mul(at, u32(step)));
  }
  const choose = (from: number, to: number): Expr => {
    if (to - from === 1) return u32(values[from]!);
    const middle = (from + to) >> 1;
    return select(
      lt(at, u32(middle)),
      choose(from, middle),
      choose(middle, to),
    );
  };
  return choose(0, values.length);
}

/** Rows from several positions, in blocks that follow from the counts alone. */
export function exchange(o: ExchangeOptions): Kernel {
  const type = o.type ?? "u32";
  invariant(o.sources.length <= EXCHANGE_SOURCES, "at most four sources");
  const columns = o.splits.at(-1)!;
  const parts = columnsOf(o);
  const numbers = o.sources.map((_, f) => f);

  /** `name` += counts of `sender` in columns from `first` below `end`. */
  const addColumns = (name: string, sender: Expr, first: Expr, end: Expr) =>
    for_("c", first, end, [
      set(
        name,
        add(
          u(name),
          load("counts", add(mul(sender, u32(columns)), u("c")), "u32"),
        ),
      ),
    ]);
  /** `name` += rows that the senders before `sender` have for the columns from `first` below `end`. */
  const addSenders = (name: string, sender: Expr, first: Expr, end: Expr) =>
    for_("s", u32(0), sender, [addColumns(name, u("s"), first, end)]);

  const blockOf = (f: number): Stmt[] => {
    const source = u32(o.sources[f]!);
    const forward = o.direction === "forward";
    const [sender, first, end] = forward
      ? [source, u("my_first"), u("my_end")]
      : [
        u("me"),
        u32(parts[o.sources[f]!]![0]),
        u32(parts[o.sources[f]!]![1]),
      ];
    const inSender = forward ? `from${f}` : `to${f}`;
    const inReceiver = forward ? `to${f}` : `from${f}`;
    return [
      ...[`rows${f}`, `from${f}`, `to${f}`].map((name) => var_(name, u32(0))),
      addColumns(`rows${f}`, sender, first, end),
      addColumns(inSender, sender, u32(0), first),
      addSenders(inReceiver, sender, first, end),
    ];
  };
  const copyRows = (f: number): Stmt =>
    for_("row", id("group.x"), u(`rows${f}`), [
      let_("read_at", mul(add(u(`from${f}`), u("row")), u32(o.rowWords))),
      let_("write_at", mul(add(u(`to${f}`), u("row")), u32(o.rowWords))),
      for_("word", id("local"), u32(o.rowWords), [
        store(
          "dst",
          add(u("write_at"), u("word")),
          load(`src${f}`, add(u("read_at"), u("word")), type),
        ),
      ], u32(LANES)),
    ], u32(EXCHANGE_GROUPS));
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: [
      reads("counts", "u32"),
      reads("position", "u32"),
      ...numbers.map((f) => reads(`src${f}`, type)),
      writes("dst", type),
      writes("moved", "u32"),
    ],
    body: [
      let_("me", load("position", u32(0), "u32")),
      let_("my_first", pick(parts.map(([first]) => first), u("me"))),
      let_("my_end", pick(parts.map(([, end]) => end), u("me"))),
      ...numbers.flatMap(blockOf),
      ...numbers.map(copyRows),
      if_(
        and(eq(id("group.x"), u32(0)), lt(id("local"), u32(1))),
        numbers.map((f) => store("moved", u32(o.sources[f]!), u(`rows${f}`))),
      ),
    ],
  });
}
