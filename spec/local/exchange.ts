/** An all-to-all between ranks that share a device: launches that read the rows of up to four ranks each. */

import { columnsOf } from "../bytes.ts";
import { invariant } from "../errors.ts";
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
  set,
  store,
  u32,
  var_,
} from "../kernel/build.ts";
import { type Grid, kernelOf, reads, writes } from "../kernel/make.ts";
import { pick } from "../kernel/pick.ts";
import type { Expr, Kernel, Stmt } from "../kernel/tree.ts";
import type { Size } from "../size.ts";

/** Sources of one launch: with the other bindings they stay within the eight that every device has. */
export const SOURCES = 4;

/** Workgroups of an exchange; each takes every 64th row. */
const EXCHANGE_GROUPS = 64;
const LANES = 64;

function u(name: string): Expr {
  return local(name, "u32");
}

/**
 * A part of an all-to-all, as the plan's `AllToAllStep` defines it. Bindings: `counts` u32 [group rank, column], `position`
 * u32 [1], `dst` and `moved` u32 [group rank], both written, and `src0`, `src1`, … of the group ranks `sources`.
 * Its grid is `exchangeGrid(rows)`.
 */
export interface ExchangeOptions {
  readonly name: string;
  readonly direction: "forward" | "back";
  /** Columns splits[p] to splits[p + 1] belong to group rank p. */
  readonly splits: readonly number[];
  /** Only these columns of each group rank; default all. */
  readonly columns?: readonly (readonly [first: number, end: number])[];
  /** Group ranks of the sources, at most four. */
  readonly sources: readonly number[];
  readonly rowWords: number;
}

/** The grid of `exchange` when at most `rows` rows arrive. There is always a workgroup, to write `moved`. */
export function exchangeGrid(rows: Size): Grid {
  return [{ min: [EXCHANGE_GROUPS, { add: [rows, 1] }] }, 1, 1];
}

/** Rows from several positions, in blocks that follow from the counts alone. */
export function exchange(o: ExchangeOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
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
          load(`src${f}`, add(u("read_at"), u("word")), "u32"),
        ),
      ], u32(LANES)),
    ], u32(EXCHANGE_GROUPS));
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: [
      reads("counts", "u32"),
      reads("position", "u32"),
      ...numbers.map((f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
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
