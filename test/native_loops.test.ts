/** Loops in C: stores through pointers that are checked once, and prefetches of later iterations. */
// needs: cpu

import t from "tap";
import {
  createNativeDevice,
  NativePool,
  whyNotNative,
} from "../runtime/native/mod.ts";
import { printKernel } from "../runtime/native/print.ts";
import {
  add,
  barrier,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  set,
  sharedStore,
  store,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Kernel, Stmt } from "../spec/kernel/tree.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

function kernelOf(body: readonly Stmt[]): Kernel {
  return {
    name: "loops",
    workgroupSize: 32,
    bindings: [
      { name: "x", type: "u32", access: "read" },
      { name: "y", type: "u32", access: "read_write" },
    ],
    shared: [],
    body,
  };
}

const [i, n] = [local("i", "u32"), local("n", "u32")];
/** Words between the rows that lanes store, and rows. */
const [APART, ROWS] = [40, 8];

/** Row i: 32 words, y = 1000 + y. */
const rows = kernelOf([
  for_("i", u32(0), u32(ROWS), [
    store(
      "y",
      add(mul(i, u32(APART)), id("local")),
      add(load("y", add(mul(i, u32(APART)), id("local")), "u32"), u32(1000)),
    ),
  ]),
]);

t.test("stores of a loop end with their binding", { skip }, async (t) => {
  t.match(printKernel(rows, { lanes: 8 })[0]!.text, /\*\(run_of_words \*\)\(p/);
  const pool = await NativePool.open(1);
  const device = await createNativeDevice({ pool });
  await device.prepare({ rows: { tree: rows } });
  const size = APART * ROWS;
  const all = APART * (ROWS - 1) + 32;
  // All rows, a part of the last vector less, the last row less, and a part of the first row.
  for (const length of [all, all - 3, all - 32, 17]) {
    const buffer = device.createBuffer(4 * size, "y");
    device.write(
      buffer,
      0,
      new Uint8Array(
        Uint32Array.from(
          { length: size },
          (_, at) => at,
        ).buffer,
      ),
    );
    const y = device.range(buffer, 0, 4 * length);
    device.launch("rows", [y, y], [1, 1, 1]);
    const words = new Uint32Array(
      (await device.read(buffer, 0, 4 * size)).buffer,
    );
    const wrong = words.findIndex((word, at) =>
      word !== (at < length && at % APART < 32 ? 1000 + at : at)
    );
    t.equal(wrong, -1, `${length} words`);
  }
  device.destroy();
  await pool.close();
});

/** Row n of y: the last word of row n of x plus 31, over rows of 32 words. */
function overRows(
  count: number,
  apart: number,
  around: (loop: Stmt) => Stmt = (loop) => loop,
): Kernel {
  const index = add(mul(n, u32(apart)), i);
  const row = for_("i", u32(0), u32(32), [
    store(
      "y",
      add(mul(n, u32(64)), id("local")),
      add(load("x", index, "u32"), i),
    ),
  ]);
  return kernelOf([for_("n", u32(0), u32(count), [around(row)])]);
}

t.test("a loop over rows prefetches two rows ahead", (t) => {
  const fetches = (kernel: Kernel) =>
    printKernel(kernel, { lanes: 8 })[0]!.text.match(
      /__builtin_prefetch\(.* \(uint64_t\)\d+u\)/g,
    ) ?? [];
  const ahead = (kernel: Kernel) =>
    fetches(kernel).map((text) => Number(/(\d+)u\)$/.exec(text)![1]));
  t.strictSame(ahead(overRows(10, 100)), [200, 216], "each line of a row");
  const some = overRows(10, 100, (row) => if_(lt(n, id("group.y")), [row]));
  t.strictSame(ahead(some), [200, 216], "a row in a branch");
  t.strictSame(fetches(overRows(2, 100)), [], "there is no such row");
  t.strictSame(fetches(overRows(10, 8)), [], "rows share lines");
  t.strictSame(fetches(overRows(10, 32)), [], "rows follow each other");
  t.end();
});

t.test("a repeated phase over rows prefetches later rows of complete blocks", (t) => {
  const sum = local("sum", "u32");
  /** Sums rows of `apart` words in blocks of 8, which a phase adds to. */
  const blocks = (apart: number): Kernel => ({
    ...kernelOf([
      for_("start", u32(0), u32(64), [
        sharedStore("s", id("local"), local("start", "u32")),
        barrier(),
        var_("sum", u32(0)),
        for_("i", u32(0), u32(8), [
          set(
            "sum",
            add(
              sum,
              load(
                "x",
                add(
                  mul(add(local("start", "u32"), i), u32(apart)),
                  id("local"),
                ),
                "u32",
              ),
            ),
          ),
        ]),
        store("y", add(local("start", "u32"), id("local")), sum),
        barrier(),
      ], u32(8)),
    ]),
    shared: [{ name: "s", type: "u32", length: 32 }],
  });
  const text = (apart: number) =>
    printKernel(blocks(apart), { lanes: 8 })[0]!.text;
  t.match(text(64), /u more_\d+ = .*start_\d+ \+ \(8u \* 2u\)\) <= /);
  t.match(text(64), /prefetch\(\(p_\d+ \+ .*more_\d+ \* 1024u.*STREAM_LEVEL/);
  t.notMatch(text(8), /STREAM_LEVEL/, "rows share lines");
  t.end();
});

t.test("floats with several uses are broadcast as words", (t) => {
  // `x[i]` times each of `count` factors.
  const products = (count: number) => {
    const factor = local("factor", "f32");
    return kernelOf([for_("i", u32(0), u32(32), [
      let_("factor", load("x", i, "f32")),
      ...Array.from({ length: count }, (_, at) =>
        store(
          "y",
          add(mul(i, u32(64)), add(u32(32 * at), id("local"))),
          mul(factor, load("y", add(u32(32 * at), id("local")), "f32")),
        )),
    ])]);
  };
  const text = (count: number) =>
    printKernel(products(count), { lanes: 8 })[0]!.text;
  t.match(text(1), /vf factor_\d+ = splatf\(number\(p/);
  t.match(text(2), /vf factor_\d+ = \(\(vf\)splat\(p/);
  t.end();
});
