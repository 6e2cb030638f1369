/** Ranges of nested loops: loads are checked once, before the outermost loop, and never leave their binding. */
// needs: cpu
// rotates with: runtime/native/, runtime/cpu/, runtime/vector/

import t from "tap";
import fc from "fast-check";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import type { Device } from "../runtime/device.ts";
import {
  createNativeDevice,
  NativePool,
  whyNotNative,
} from "../runtime/native/mod.ts";
import { printKernel } from "../runtime/native/print.ts";
import {
  add,
  binary,
  bitcast,
  for_,
  i32,
  id,
  let_,
  load,
  loadBytes,
  local,
  mul,
  set,
  store,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../spec/kernel/tree.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { RUNS, SEED } from "./helpers/seed.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

const u = (name: string) => local(name, "u32");
/** Words of x in memory, and invocations, each of which stores a word for each nest. */
const [SIZE, INVOCATIONS] = [256, 32];
/** Nests of one kernel. */
const TOGETHER = 50;
/** Loaded numbers that indices add: sums with some of them wrap. */
const OFFSETS = Uint32Array.of(0, 5, 2 ** 32 - 4, 2 ** 31, 2 ** 32 - 1);

function kernelOf(name: string, body: readonly Stmt[]): Kernel {
  return {
    name,
    workgroupSize: INVOCATIONS,
    bindings: [
      { name: "x", type: "u32", access: "read" },
      { name: "offsets", type: "u32", access: "read" },
      { name: "y", type: "u32", access: "read_write" },
    ],
    shared: [],
    body: [
      ...Array.from(
        OFFSETS,
        (_, at) => let_(`m${at}`, load("offsets", u32(at), "u32")),
      ),
      ...body,
    ],
  };
}

const constants = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: 1, max: 9 }).map(u32) },
  fc.constantFrom(
    ...[40, 2 ** 28, 2 ** 31, 2 ** 32 - 4].map(u32),
    bitcast("u32", i32(-1)),
  ),
);

/** Indices of names. */
function indexOf(names: readonly string[]): fc.Arbitrary<Expr> {
  const leaf = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom(...names.map(u)) },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        ...[...OFFSETS.keys()].map((at) => u(`m${at}`)),
      ),
    },
    { weight: 2, arbitrary: constants },
  );
  const { index } = fc.letrec<{ index: Expr }>((tie) => ({
    index: fc.oneof(
      { maxDepth: 3, withCrossShrink: true },
      leaf,
      fc.tuple(tie("index"), tie("index")).map(([a, b]) => add(a, b)),
      fc.tuple(
        fc.constantFrom("mul", "shl", "div", "rem", "and", "min", "sub"),
        tie("index"),
        constants,
      ).map(([fn, a, b]) => binary(fn, a, b)),
    ),
  }));
  return index;
}

interface Nest {
  readonly from: Expr;
  readonly count: number;
  readonly step: number;
  /** The end of the inner loop. */
  readonly end: Expr;
  readonly outer: Expr;
  readonly defined: Expr;
  readonly inner: Expr;
  readonly bytes: boolean;
}

const nests = fc.record<Nest>({
  from: fc.constantFrom(u32(0), u32(3), u("m1"), u("m2")),
  count: fc.integer({ min: 2, max: 16 }),
  step: fc.integer({ min: 1, max: 3 }),
  end: fc.oneof(
    fc.constant(u32(4)),
    indexOf(["n"]).map((index) => binary("rem", index, u32(7))),
  ),
  outer: indexOf(["n"]),
  defined: indexOf(["n"]),
  inner: indexOf(["n", "i", "d"]),
  bytes: fc.boolean(),
});

/** Its loads reach words 24 to 39: a bound of a remainder by an i32 of -1 as a u32 is not negative. */
const negative: Nest = {
  from: u32(0),
  count: 16,
  step: 1,
  end: u32(4),
  outer: add(binary("rem", u("n"), bitcast("u32", i32(-1))), u32(24)),
  defined: u("n"),
  inner: u("i"),
  bytes: false,
};

/** A nest that stores words of y from `at` on: loads of one word, or of words that lanes have 4 bytes apart. */
function loopsOf(nest: Nest, at: number): readonly Stmt[] {
  const [n, i, d, sum] = ["n", "i", "d", "sum"].map((name) =>
    `${name}_${at}`
  ) as [string, string, string, string];
  const rename = (e: Expr): Expr =>
    e.op === "local" && !e.name.startsWith("m")
      ? u(`${e.name}_${at}`)
      : e.op === "binary"
      ? binary(e.fn, rename(e.a), rename(e.b))
      : e;
  const from = (index: Expr) =>
    nest.bytes
      ? loadBytes(
        "x",
        add(mul(rename(index), u32(4)), mul(id("local"), u32(4))),
      )
      : load("x", rename(index), "u32");
  return [
    var_(sum, u32(0)),
    for_(n, nest.from, add(nest.from, u32(nest.count)), [
      let_(d, rename(nest.defined)),
      set(sum, add(mul(u(sum), u32(31)), from(nest.outer))),
      for_(i, u32(0), rename(nest.end), [
        set(sum, add(mul(u(sum), u32(31)), from(nest.inner))),
      ]),
    ], u32(nest.step)),
    store("y", add(u32(at * INVOCATIONS), id("local")), u(sum)),
  ];
}

/** Launches a kernel for the first words of x, for each length. Returns the words that each launch stores. */
async function storedBy(
  device: Device,
  kernel: Kernel,
  { data, lengths }: {
    readonly data: Uint32Array;
    readonly lengths: readonly number[];
  },
): Promise<readonly Uint32Array[]> {
  const { name } = kernel;
  await device.prepare({ [name]: { tree: kernel } });
  const bufferOf = (words: Uint32Array, label: string) => {
    const buffer = device.createBuffer(words.byteLength, label);
    device.write(buffer, 0, new Uint8Array(words.buffer));
    return buffer;
  };
  const x = bufferOf(data, "x");
  const offsets = bufferOf(OFFSETS, "offsets");
  const y = bufferOf(wordsOfY(), "y");
  const found: Uint32Array[] = [];
  for (const length of lengths) {
    device.launch(name, [device.range(x, 0, 4 * length), offsets, y], [
      1,
      1,
      1,
    ]);
    const bytes = await device.read(y, 0, wordsOfY().byteLength);
    found.push(new Uint32Array(bytes.buffer));
  }
  return found;
}

function wordsOfY(): Uint32Array {
  return new Uint32Array(TOGETHER * INVOCATIONS);
}

t.test("loads of nested loops stay in their binding", { skip }, async (t) => {
  const pool = await NativePool.open(1);
  const devices = {
    native: await createNativeDevice({ pool }),
    WebAssembly: await createCpuDevice({ threads: 1 }),
  };
  const data = Uint32Array.from({ length: SIZE }, (_, at) => 1 + at * 40503);
  const lengths = [1, 2, 7, 12, 20, 33, 39, 47, 64, 100, 150, SIZE];
  const cases = [
    negative,
    ...fc.sample(nests, { numRuns: 200 * RUNS - 1, seed: SEED }),
  ];
  for (let first = 0; first < cases.length; first += TOGETHER) {
    const some = cases.slice(first, first + TOGETHER);
    const kernel = kernelOf(`nests${first}`, some.flatMap(loopsOf));
    t.match(
      printKernel(kernel, { lanes: 8 })[0]!.text,
      /\bx_\d+\[/,
      "loads without checks",
    );
    const wanted = lengths.map((length) => {
      const y = wordsOfY();
      const x = data.slice(0, length);
      interpretKernel(kernel, { x, offsets: OFFSETS, y }, [1, 1, 1]);
      return y;
    });
    for (const [kind, device] of Object.entries(devices)) {
      const found = await storedBy(device, kernel, { data, lengths });
      lengths.forEach((length, i) => {
        const wrong = found[i]!.findIndex((word, at) =>
          word !== wanted[i]![at]
        );
        const nest = JSON.stringify(some[Math.floor(wrong / INVOCATIONS)]);
        t.equal(
          wrong,
          -1,
          `${kind}, ${length} words of x, seed ${SEED}: ${nest}`,
        );
      });
    }
  }
  for (const device of Object.values(devices)) device.destroy();
  await pool.close();
});
