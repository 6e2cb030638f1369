// The native CPU device: compiled C has the bits of WebAssembly and the interpreter, and stays within bounds.
// needs: cpu
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import t from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import { matmulGrid, type MatmulTile } from "../compiler/tuning/mod.ts";
import { DeadlineError } from "../runtime/device.ts";
import {
  createNativeDevice,
  findCompiler,
  NativePool,
  printKernel,
  whyNotNative,
} from "../runtime/native/mod.ts";
import {
  add,
  barrier,
  call,
  f32,
  for_,
  gt,
  id,
  if_,
  load,
  local,
  lt,
  mul,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import { GROUP_XZ } from "../spec/kernel/make.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { evaluateSize } from "../spec/size.ts";
import { FUNCTIONS, functions, INPUTS } from "./helpers/functions_kernel.ts";
import { runNative } from "./helpers/run_native.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { runWasm } from "./helpers/run_wasm.ts";
import { inWords } from "./helpers/halves.ts";
import { weights4 } from "./helpers/stored_weights.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { LENGTH, randomKernel } from "./fuzz/random_kernel.ts";
import { isInTurn, repeatWith } from "./helpers/seed.ts";

const why = await whyNotNative();
const skip = skipUnasked("cpu") || (why ?? false);

const pool = skip ? undefined : await NativePool.open(2);
t.teardown(() => pool?.close());

type Words = { [binding: string]: Uint32Array };

/** Stores and loads far outside its bindings. */
const outside: Kernel = {
  name: "outside",
  workgroupSize: 32,
  bindings: [
    { name: "x", type: "u32", access: "read" },
    { name: "y", type: "u32", access: "read_write" },
  ],
  shared: [],
  body: [4, 2 ** 20, 2 ** 31, 2 ** 32 - 8].flatMap((far) => [
    store("y", add(id("local"), u32(far)), u32(7)),
    store("y", u32(far + 4), load("x", add(id("local"), u32(far)), "u32")),
    store(
      "y",
      mul(id("local"), u32(far + 1)),
      load("x", mul(id("local"), u32(far + 1)), "u32"),
    ),
  ]),
};

/** Runs for x[0] squared iterations. */
const long: Kernel = {
  name: "long",
  workgroupSize: 1,
  bindings: [
    { name: "x", type: "u32", access: "read" },
    { name: "y", type: "u32", access: "write" },
  ],
  shared: [],
  body: [
    var_("n", u32(1)),
    for_("i", u32(0), load("x", u32(0), "u32"), [
      for_("j", u32(0), load("x", u32(0), "u32"), [
        set(
          "n",
          add(mul({ op: "local", type: "u32", name: "n" }, u32(3)), u32(1)),
        ),
      ]),
    ]),
    store("y", u32(0), { op: "local", type: "u32", name: "n" }),
  ],
};

/** Each workgroup runs three rounds with barriers, then increments its shared memory, which starts at 0. */
const rounds: Kernel = {
  name: "rounds",
  workgroupSize: 32,
  bindings: [{ name: "y", type: "u32", access: "write" }],
  shared: [{ name: "s", type: "u32", length: 32 }],
  body: [
    var_("round", f32(0)),
    for_("i", u32(0), u32(3), [
      set("round", add(local("round", "f32"), f32(1))),
      barrier(),
    ]),
    if_(gt(local("round", "f32"), f32(2)), [
      sharedStore(
        "s",
        id("local"),
        add(shared("s", id("local"), "u32"), u32(1)),
      ),
      barrier(),
      store(
        "y",
        add(mul(id("group.x"), u32(32)), id("local")),
        shared("s", sub(u32(31), id("local")), "u32"),
      ),
    ]),
  ],
};

/** Each lane computes y[i + 1] = y[i] + 1 in its own range of y. */
const chain: Kernel = {
  name: "chain",
  workgroupSize: 16,
  bindings: [{ name: "y", type: "u32", access: "read_write" }],
  shared: [],
  body: [for_("i", u32(0), u32(16), [
    store(
      "y",
      add(add(mul(id("local"), u32(17)), local("i", "u32")), u32(1)),
      add(
        load("y", add(mul(id("local"), u32(17)), local("i", "u32")), "u32"),
        u32(1),
      ),
    ),
  ])],
};

const groups = [2, 1, 1] as const;

t.test("compiled C and WebAssembly give the same bits", { skip }, async (t) => {
  const special = [0, -0, 1, -1, Infinity, -Infinity, NaN, 1e-40, 3e38, -1e30];
  const x = Float32Array.from(
    { length: INPUTS },
    (_, i) => special[i] ?? Math.fround(Math.tan(i) * 10 ** (i % 5)),
  );
  const data = () => ({
    x: new Uint32Array(x.slice().buffer),
    y: new Uint32Array(INPUTS * FUNCTIONS.length),
  });
  const [found, wanted] = [data(), data()];
  await runNative(pool!, functions, { bindings: found, groups });
  runWasm(functions, wanted, groups);
  const [a, b] = [found, wanted].map(({ y }) => new Float32Array(y.buffer));
  const wrong = b!.findIndex((value, i) => !Object.is(value, a![i]));
  const fn = FUNCTIONS[Math.floor(wrong / INPUTS)];
  t.equal(wrong, -1, `${fn}(${x[wrong % INPUTS]}) is ${a![wrong]}`);
  t.ok(
    b!.some((value) => value > 0 && value < 1),
    "some values are between 0 and 1",
  );
});

t.test("fast numerics fuse a product and a sum", {
  skip,
}, async (t) => {
  const x = load("x", id("local"));
  const kernel: Kernel = {
    ...functions,
    body: [store("y", id("local"), call("fma", x, x, f32(-1)))],
  };
  // (1 + e)^2 - 1 = 2 e + e^2; the last term is lost if the product is rounded.
  const e = 2 ** -12;
  const fill = (value: number) =>
    new Uint32Array(new Float32Array(32).fill(value).buffer);
  const { fused: can } = (await findCompiler())!;
  for (const fused of [false, true]) {
    const bindings = { x: fill(1 + e), y: fill(0) };
    await runNative(pool!, kernel, { bindings, groups: [1, 1, 1], fused });
    t.strictSame(bindings.y, fill(2 * e + (fused && can ? e * e : 0)));
  }
});

t.test("random kernels match the interpreter", { skip }, async (t) => {
  const numbers = fc.array(fc.nat(2 ** 20), {
    ...{ minLength: 1, maxLength: 250, size: "max" } as const,
  });
  const data = (): Words => ({
    a: new Uint32Array(
      Float32Array.from({ length: LENGTH }, (_, i) => (i - 40) * 0.75).buffer,
    ),
    n: Uint32Array.from({ length: LENGTH }, (_, i) => (i * 7919) % 101),
    y: new Uint32Array(LENGTH),
    z: new Uint32Array(LENGTH),
  });
  for (const kernel of fc.sample(numbers, 16).map((n) => randomKernel(n))) {
    const [found, wanted] = [data(), data()];
    await runNative(pool!, kernel, { bindings: found, groups });
    interpretKernel(kernel, wanted, groups);
    const [y, right] = [found, wanted].map((w) =>
      new Float32Array(w["y"]!.buffer)
    );
    const wrong = y!.findIndex((value, i) => !Object.is(value, right![i]));
    t.equal(wrong, -1, `y of ${JSON.stringify(kernel)}. ${repeatWith()}`);
    t.strictSame([...found["z"]!], [...wanted["z"]!], "z");
  }
});

t.test("no index is out of bounds", { skip }, async (t) => {
  const words = {
    x: new Uint32Array(4).fill(9),
    y: new Uint32Array(4).fill(5),
  };
  await runNative(pool!, outside, { bindings: words, groups });
  t.ok([...words.y].every((word) => [0, 5, 7, 9].includes(word)), `${words.y}`);
});

t.test(
  "workgroups start with zeroed memory, and iterations see earlier stores",
  {
    skip,
  },
  async (t) => {
    const counted = { y: new Uint32Array(8 * 32) };
    await runNative(pool!, rounds, { bindings: counted, groups: [8, 1, 1] });
    t.ok(counted.y.every((n) => n === 1), `${counted.y}`);
    const chained = { y: new Uint32Array(16 * 17) };
    await runNative(pool!, chain, { bindings: chained, groups: [1, 1, 1] });
    t.ok(chained.y.every((n, i) => n === i % 17), `${chained.y}`);
  },
);

t.test(
  "a kernel that exceeds the deadline is terminated",
  { skip },
  async (t) => {
    // Compiled in advance, since the deadline also applies to the compiler.
    const patient = await NativePool.open(1, { untrusted: true });
    const short = { x: Uint32Array.of(1), y: new Uint32Array(1) };
    await runNative(patient, long, { bindings: short, groups: [1, 1, 1] });
    await patient.close();
    const own = await NativePool.open(1, { deadlineMs: 50, untrusted: true });
    const bindings = { x: Uint32Array.of(2 ** 32 - 1), y: new Uint32Array(1) };
    await t.rejects(
      runNative(own, long, { bindings, groups: [1, 1, 1] }),
      new DeadlineError(["long"], 50),
    );
    await own.close();
  },
);

t.test("buffers may be larger than 4 GiB", { skip }, async (t) => {
  const device = await createNativeDevice({ pool: pool! });
  const bytes = 5 * 2 ** 30;
  const buffer = device.createBuffer(bytes, "large");
  device.write(buffer, bytes - 4, Uint8Array.of(1, 2, 3, 4));
  device.copy(buffer, bytes - 4, buffer, 2 ** 32, 4);
  t.strictSame(
    await device.read(buffer, 2 ** 32, 4),
    Uint8Array.of(1, 2, 3, 4),
  );
  device.destroy();
});

const K = 512, COLUMNS = 80, ROWS = 8;

/** y = x · w with 8 rows by default; w is [k, n] or [n, k] in memory. */
function product(
  stored: "f32" | "bf16" | "mxfp4",
  inside: "n" | "k",
  tile: MatmulTile = { rows: 3, columns: 2, lanes: 16 },
  { k = K, rows = ROWS } = {},
): { kernel: Kernel; groups: [number, number, number] } {
  const shape = {
    name: "product",
    k,
    segments: 8,
    columns: COLUMNS,
    bindings: [
      { name: "x", type: "f32", access: "read" },
      {
        name: "w",
        type: stored === "f32" ? "f32" : "u32",
        access: "read",
      },
      { name: "scales", type: "u32", access: "read" },
      { name: "y", type: "f32", access: "write" },
    ] as const,
    weights: [{
      binding: "w",
      stored,
      inside,
      rowStride: inside === "k" ? k : COLUMNS,
      ...stored === "mxfp4" ? { scales: "scales" } : {},
    }],
    tile,
    rows: u32(rows),
  };
  return {
    kernel: matmul({
      ...shape,
      leftRow: (row) => mul(row, u32(k)),
      left: (base, k) => load("x", add(base, k)),
      epilogue: ({ row, column }, [sum]) => [
        store("y", add(mul(row, u32(COLUMNS)), column), sum!),
      ],
    }),
    groups: matmulGrid(shape, rows).map((size) =>
      evaluateSize(size, () => NaN)
    ) as [number, number, number],
  };
}

t.test("sums of products respect the error bounds of both numerics classes", {
  skip,
}, async (t) => {
  const values = (n: number, from: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin((i + from) * 1.37));
  const [x, w] = [values(ROWS * K, 7), values(K * COLUMNS, 0)];
  const { kernel, groups } = product("f32", "n");
  const sums = async (fused: boolean) => {
    const bindings = {
      x: new Uint32Array(x.buffer),
      w: new Uint32Array(w.buffer),
      y: new Uint32Array(ROWS * COLUMNS),
    };
    await runNative(pool!, kernel, { bindings, groups, fused });
    return new Float32Array(bindings.y.buffer);
  };
  const [exact, fast] = [await sums(false), await sums(true)];
  let differ = 0;
  for (const [i, y] of exact.entries()) {
    const terms = Array.from(
      { length: K },
      (_, k) =>
        x[Math.floor(i / COLUMNS) * K + k]! * w[k * COLUMNS + i % COLUMNS]!,
    );
    const sum = terms.reduce((a, b) => a + b);
    const bound = terms.reduce((a, b) => a + Math.abs(b), 0) / 2 ** 24;
    // Rounding errors: within a block, once for each of two, and in a tree of 8 segments.
    t.ok(Math.abs(y - sum) <= (33 + 2 + 3) * bound, `exact ${y}`);
    t.ok(Math.abs(fast[i]! - sum) <= (32 + 2 + 3) * bound, `fast ${fast[i]}`);
    if (y !== fast[i]) differ++;
  }
  const { fused } = (await findCompiler())!;
  t.equal(differ > 0, fused, "products are not rounded");
});

const FILED_TILES: readonly MatmulTile[] = [
  { rows: 3, columns: 2, lanes: 16 },
  { rows: 1, columns: 2, lanes: 64, split: 4, right: "workgroup" },
  { rows: 2, columns: 1, lanes: 32, split: 2, right: "workgroup" },
  {
    rows: 8,
    columns: 2,
    lanes: 64,
    split: 4,
    right: "workgroup",
    vector: 8,
  },
];

/** Transposes [k, n] to [n, k]. */
function transposed<A extends Uint8Array | Uint16Array | Uint32Array>(
  matrix: A,
  k: number,
): A {
  return matrix.map((_, i) =>
    matrix[i % k * COLUMNS + Math.floor(i / k)]!
  ) as A;
}

/** A matrix in memory as [k, n], and as [n, k] like in files. */
function stores(stored: "f32" | "bf16" | "mxfp4", k: number) {
  if (stored === "mxfp4") {
    const { words, scales } = weights4([k, COLUMNS], 3);
    const bytes = Uint8Array.from(scales!);
    // The smallest scales: 0, and powers of two that are subnormal if halved.
    bytes.set([0, 1, 2]);
    return {
      n: { w: words, scales: inWords(bytes) },
      k: {
        w: transposed(words, k / 8),
        scales: inWords(transposed(bytes, k / 32)),
      },
    };
  }
  const values = Float32Array.from(
    { length: k * COLUMNS },
    (_, i) => Math.sin(i * 1.37),
  );
  const bits = new Uint32Array(values.buffer);
  const halves = Uint16Array.from(bits, (word) => word >>> 16);
  return stored === "f32"
    ? { n: { w: bits }, k: { w: transposed(bits, k) } }
    : {
      n: { w: new Uint32Array(halves.buffer) },
      k: { w: new Uint32Array(transposed(halves, k).buffer) },
    };
}

// Segments of 1408 end within a block; those of 320 end in a word of MXFP4 after the first block.
for (
  const [stored, k] of [
    ["f32", K],
    ["bf16", K],
    ["bf16", 1408],
    ["mxfp4", K],
    ["mxfp4", 320],
  ] as const
) {
  t.test(`${k} weights in ${stored} in file order give the same bits`, {
    skip,
  }, async (t) => {
    const x = Float32Array.from(
      { length: ROWS * k },
      (_, i) => Math.sin((i + 7) * 1.37),
    );
    const data = (weights: { readonly w: Uint32Array }, rows = ROWS) => ({
      x: new Uint32Array(x.buffer),
      ...weights,
      y: new Uint32Array(rows * COLUMNS),
    });
    const both = stores(stored, k);
    const wanted = data(both.n);
    const usual = product(stored, "n", undefined, { k });
    runWasm(usual.kernel, wanted, usual.groups);
    t.ok(wanted.y.every((word) => word !== 0));
    // Each run compiles each tile for one of three numbers of rows.
    const tiles = FILED_TILES.flatMap((tile, i) =>
      [1, 4, ROWS].filter((_, at) => isInTurn(i + at, 3))
        .map((rows) => ({ tile, rows }))
    );
    for (const { tile, rows } of tiles) {
      const found = data(both.k, rows);
      const { kernel, groups } = product(stored, "k", tile, { k, rows });
      await runNative(pool!, kernel, { bindings: found, groups });
      t.strictSame(found.y, wanted.y.slice(0, rows * COLUMNS));
      t.match(
        printKernel(kernel, { lanes: 16 })[0]!.text,
        /turn\d+\(tile/,
        "vectorized, not per lane",
      );
    }
  });
}

t.test(
  "vectors along k do not read beyond their binding",
  { skip },
  async (t) => {
    const { kernel, groups } = product("f32", "k");
    t.match(printKernel(kernel, { lanes: 16 })[0]!.text, /turn\d+\(tile/);
    const device = await createNativeDevice({ pool: pool! });
    await device.prepare({ product: { tree: kernel } });
    const filled = (label: string, values: Float32Array) => {
      const buffer = device.createBuffer(values.byteLength, label);
      device.write(buffer, 0, new Uint8Array(values.buffer));
      return buffer;
    };
    // The binding ends within the columns of a tile's second vector; other data follows.
    const bound = K * 56;
    const w = new Float32Array(K * COLUMNS).fill(1, 0, bound).fill(1e30, bound);
    const buffers = {
      x: filled("x", new Float32Array(ROWS * K).fill(1)),
      w: device.range(filled("w", w), 0, 4 * bound),
      y: filled("y", new Float32Array(ROWS * COLUMNS)),
    };
    device.launch(
      "product",
      kernel.bindings.map(({ name }) => buffers[name as keyof typeof buffers]),
      groups,
    );
    const y = await device.read(buffers.y, 0, buffers.y.bytes);
    t.ok(new Float32Array(y.buffer).every((sum) => sum === K));
    device.destroy();
  },
);

t.test(
  "parts of files are mapped if their pages align",
  { skip },
  async (t) => {
    const page = 65536;
    const file = path.join(t.testdir(), "file");
    const bytes = Uint8Array.from({ length: 64 * page }, (_, i) => i * 31 >> 8);
    writeFileSync(file, bytes);
    const handle = await open(file);
    const descriptor = handle.fd;
    const device = await createNativeDevice({ pool: pool! });
    const runs = [
      { name: file, descriptor, offset: 4 * page + 12, bytes: 2 * page },
      { name: file, descriptor, offset: 12, bytes: page },
    ];
    const buffer = device.map!(runs)!;
    const wanted = runs.flatMap(({ offset, bytes: n }) => [
      ...bytes.subarray(offset, offset + n),
    ]);
    const found = await device.read(buffer, 0, buffer.bytes);
    t.ok(Buffer.from(wanted).equals(found));
    device.write(buffer, 8, Uint8Array.of(1, 2, 3, 4));
    await device.idle();
    t.ok(
      Buffer.from(bytes).equals(readFileSync(file)),
      "the file is unchanged",
    );
    t.equal(device.map!([runs[0]!, { ...runs[1]!, offset: 16 }]), undefined);
    const large = [
      [{ name: file, descriptor, offset: 12, bytes: bytes.length - 12 }],
      [
        { name: file, descriptor, offset: 3 * page + 8, bytes: page },
        { name: file, descriptor, offset: 8 * page + 8, bytes: 40 * page },
        { name: file, descriptor, offset: 4 * page + 8, bytes: 36 * page },
      ],
    ];
    for (const runs of large) {
      const mapped = device.map!(runs)!;
      const found = await device.read(mapped, 0, mapped.bytes);
      const wanted = runs.map(({ offset, bytes: n }) =>
        bytes.subarray(offset, offset + n)
      );
      t.ok(
        Buffer.concat(wanted).equals(found),
        "surrounding bytes are not included",
      );
    }
    await handle.close();
    if (!existsSync("/proc/self/maps")) return device.destroy();
    const isMapped = () =>
      readFileSync("/proc/self/maps", "utf8").includes(file);
    t.ok(isMapped(), "mapped, also after the file is closed");
    device.destroy();
    await pool!.settle();
    await setImmediate();
    t.notOk(isMapped(), "unmapped after the device is destroyed");
  },
);

t.test(
  "workgroups after the listed tiles are skipped",
  { skip },
  async (t) => {
    const [tiles, groups] = [5, 3];
    const at = add(mul(id("group.x"), u32(groups)), id("group.y"));
    const kernel: Kernel = {
      name: "listed",
      workgroupSize: 1,
      bindings: [
        { name: "list", type: "u32", access: "read" },
        { name: "y", type: "u32", access: "read_write" },
      ],
      shared: [],
      body: [
        if_(lt(GROUP_XZ, load("list", u32(0), "u32")), [
          store("y", at, add(load("y", at, "u32"), add(id("group.x"), u32(1)))),
        ]),
      ],
    };
    const traits = "{ { 0, 0, 0 }, 1 }";
    const textOf = (one: Kernel) => printKernel(one, { lanes: 4 })[0]!.text;
    t.match(textOf(kernel), traits);
    // Not skipped: workgroups may change the list, or work after the last tile.
    const bindings = kernel.bindings.map((binding) => ({
      ...binding,
      access: "read_write" as const,
    }));
    const more = [store("y", at, u32(0))];
    const [first] = kernel.body;
    const body = first?.op === "if" ? [{ ...first, else: more }] : [];
    for (const change of [{ bindings }, { body }]) {
      t.notMatch(textOf({ ...kernel, ...change }), traits);
    }
    // The last count times 3 has 33 bits.
    for (const listed of [0, 1, 4, tiles, 0x55555556]) {
      const y = new Uint32Array(tiles * groups);
      const list = Uint32Array.of(listed);
      await runNative(pool!, kernel, {
        bindings: { list, y },
        groups: [tiles, groups, 1],
      });
      const wanted = y.map((_, at) => {
        const tile = Math.floor(at / groups);
        return tile < listed ? tile + 1 : 0;
      });
      t.same(y, wanted, `${listed} tiles`);
    }
  },
);

t.test("a kernel with branches by group.y is one function per branch", {
  skip,
}, async (t) => {
  // Word [x, y] = 1 + the sum of a row of the input, staged once per x, plus the number of the branch and y.
  const branch = (number: number) => [
    sharedStore(
      "row",
      id("local"),
      load("x", add(mul(id("group.x"), u32(32)), id("local")), "u32"),
    ),
    barrier(),
    var_("sum", u32(1000 * number + 1)),
    for_("i", u32(0), u32(32), [
      set(
        "sum",
        add(local("sum", "u32"), shared("row", local("i", "u32"), "u32")),
      ),
    ]),
    store(
      "y",
      add(mul(id("group.x"), u32(8)), id("group.y")),
      add(local("sum", "u32"), mul(id("group.y"), u32(100))),
    ),
  ];
  const isBefore = (end: number) => lt(id("group.y"), u32(end));
  const kernel: Kernel = {
    name: "branches",
    workgroupSize: 32,
    bindings: [
      { name: "x", type: "u32", access: "read" },
      { name: "y", type: "u32", access: "write" },
    ],
    shared: [{ name: "row", type: "u32", length: 32 }],
    body: [
      if_(isBefore(2), branch(1), [if_(isBefore(5), branch(2), branch(3))]),
    ],
  };
  const printed = printKernel(kernel, { lanes: 8 });
  t.same(printed.map(({ end }) => end), [2, 5, undefined]);
  t.ok(printed.every(({ text }) => /if \(saved != /.test(text)), "staged once");
  const rows = 300;
  const x = Uint32Array.from({ length: 32 * rows }, (_, i) => i * i);
  // A grid may end in each branch.
  for (const height of [8, 4, 1]) {
    const [found, wanted] = [0, 0].map(() => ({
      x,
      y: new Uint32Array(8 * rows),
    }));
    const groups = [rows, height, 1] as const;
    await runNative(pool!, kernel, { bindings: found!, groups });
    interpretKernel(kernel, wanted!, groups);
    t.same(found, wanted, `${height} workgroups along y`);
  }
});

t.test("names of a plan are not C code", { skip }, async (t) => {
  const [printed] = printKernel({
    ...functions,
    bindings: [
      { name: 'x; system("ls"); //', type: "f32", access: "read" },
      ...functions.bindings,
    ],
  }, { lanes: 4 });
  t.notMatch(printed!.text, "system(");
  t.ok(await findCompiler());
});
