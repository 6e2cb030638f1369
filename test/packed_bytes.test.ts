/** Products and lookup tables of packed bytes: the bits of the interpreter on every target. */
// needs: cpu, gpu
// rotates with: runtime/vector/byte, runtime/native/bytes.ts, runtime/native/vectors.ts, runtime/cpu/emit.ts, spec/kernel/

import t from "tap";
import { bindings, kernelOf } from "../compiler/kernels/mod.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import { printKernel } from "../runtime/native/print.ts";
import { ByteBounds } from "../runtime/vector/byte_bounds.ts";
import {
  binary,
  bitcast,
  call,
  let_,
  load,
  local,
  shared,
  sharedStore,
  store,
  u32,
} from "../spec/kernel/build.ts";
import { type KernelText, wgsl } from "../spec/kernel/text/text.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { readTree } from "../spec/kernel/verify/tree.ts";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { testKernels } from "./helpers/run_kernel.ts";
import { runNative } from "./helpers/run_native.ts";
import { runWasm } from "./helpers/run_wasm.ts";

const LENGTH = 48;

/** All operators, on words that differ between invocations and on uniform ones. */
function bytesKernel(workgroupSize: number): Kernel {
  return kernelOf({
    name: "bytes",
    workgroupSize,
    bindings: bindings({ a: "u32", b: "u32" }, { y: "i32", z: "u32" }),
    body: wgsl`
      var<workgroup> small: array<u32, ${workgroupSize}>;
      let i = group.x * ${workgroupSize} + lane;
      let word = a[i];
      y[i] = dot4U8I8(word, b[i]) - dot4U8I8(b[group.x], a[i]) + dot4I8Packed(word, b[i] | 0x01010101u) + dot4I8Packed(a[group.x], b[group.x] | 0x01010101u);
      z[i] = lookup16(word, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu) ^ lookup16(b[0] >> 4, 1, 2, 3, 0xff00ff00u);
      var sum = 0i;
      for (var k = 0u; k < 8; k++) {
        let nibbles = lookup16(a[i * 0 + k], 0xfbfaf9f8u, 0xfffefdfcu, 0x03020100u, 0x07060504u);
        sum += dot4I8Packed(nibbles, b[k * 4 + lane % 4] | 0x01010101u);
        sum += dot4U8I8(nibbles, b[k]);
      }
      // Products of bytes up to 63 are added in 16 bits, larger ones are not. The variable full has the largest bytes.
      for (var k = 0u; k < 8; k++) {
        small[lane] = a[i * 0 + k] & 0x3f3f3f3fu;
        let full = a[k] | 0x7f7f7f7fu;
        sum += dot4U8I8(small[lane], b[k]) + dot4I8Packed((b[k + lane % 4] >> 4) & 0x0f0f0f0fu, a[k]);
        sum += dot4U8I8(full & 0x3f3f3f3fu, b[k]) + dot4U8I8(full & 0x3f3f3f3fu, b[k * 5 % 8]) + sum;
        sum += dot4U8I8(full & 0x7f7f7f7fu, b[k]) + dot4U8I8(full & 0x7f7f7f7fu, b[k]);
        sum += dot4U8I8(full & 0x40404040u, b[k]) + dot4I8Packed(full & 0x40404040u, a[k]);
      }
      for (var k = 0u; k < 8; k++) {
        z[i] ^= bytesAt(a, lane * 9 + 4 * k + 1) * (k + 1) + bytesAt(a, 4 * k + 3);
      }
      for (var k = 0u; k < 3; k++) {
        z[i] += bytesAt(b, lane * 7 + 18 * k) ^ bytesAt(b, word % 189) ^ bytesAt(b, k * 5);
      }
      y[i] += sum * 3 + unpack4xI8(word).x - unpack4xI8(word).y * unpack4xI8(word).z * 5 - unpack4xI8(word).w;`,
  });
}

function data(): { [name: string]: Uint32Array } {
  // The product of the minimum i8 with itself is the largest.
  const word = (i: number) =>
    i % 5 === 0 ? 0x80808080 : Math.imul(i + 1, 0x9e3779b1) >>> 0;
  return {
    a: Uint32Array.from({ length: LENGTH }, (_, i) => word(i)),
    b: Uint32Array.from({ length: LENGTH }, (_, i) => word(i * 3)),
    y: new Uint32Array(LENGTH),
    z: new Uint32Array(LENGTH),
  };
}

function interpreted(kernel: Kernel): { [name: string]: Uint32Array } {
  const words = data();
  interpretKernel(kernel, words, [LENGTH / kernel.workgroupSize, 1, 1]);
  return words;
}

t.test("dot4I8 and lookup16 match their definition", (t) => {
  const words = {
    a: Uint32Array.of(0x80ff017f),
    b: Uint32Array.of(0x8002ff7f),
    y: new Uint32Array(1),
  };
  const [a, b] = [load("a", u32(0), "u32"), load("b", u32(0), "u32")];
  const result = (value: Parameters<typeof store>[2]) => {
    interpretKernel(
      {
        name: "one",
        workgroupSize: 1,
        bindings: [
          { name: "a", type: "u32", access: "read" },
          { name: "b", type: "u32", access: "read" },
          { name: "y", type: value.type as "u32", access: "write" },
        ],
        shared: [],
        body: [store("y", u32(0), value)],
      },
      words,
      [1, 1, 1],
    );
    return words.y[0]! | 0;
  };
  t.equal(result(call("dot4I8", a, b)), 127 * 127 - 1 - 2 + 128 * 128);
  t.equal(
    result(call("dot4U8I8", a, b)),
    127 * 127 - 1 + 255 * 2 - 128 * 128,
  );
  const table = [0x03020100, 0x07060504, 0x0b0a0908, 0x4f0e0d0c].map(u32);
  t.equal(result(call("lookup16", a, ...table)) >>> 0, 0x004f014f);
  t.end();
});

testKernels("packed bytes match the interpreter", async (t, target) => {
  const kernel = bytesKernel(16);
  const found = await target.run(kernel, data(), [LENGTH / 16, 1, 1]);
  const { y, z } = interpreted(kernel);
  t.strictSame(new Uint32Array(found["y"]!.buffer), y);
  t.strictSame(found["z"], z);
});

/** The four bytes that the upper halves of the bytes of a word find, as floats. */
const ENTRIES = kernelOf({
  name: "entries",
  workgroupSize: 16,
  bindings: bindings({ a: "u32" }, { y: "f32" }),
  body: wgsl`
    let i = group.x * 16 + lane;
    let entries = lookup16(a[i] >> 4, 0x03020100u, 0x0c080604u, 0x817f8000u, 0xf4f8fafcu);
    let low = f32(i32(entries << 24u) >> 24u) + f32(i32(entries << 16u) >> 24u) * 256;
    y[i] = low + f32(i32(entries << 8u) >> 24u) * 0.5 + f32(i32(entries << 0u) >> 24u) * 1024;`,
});

testKernels(
  "looked-up bytes as floats match the interpreter",
  async (t, target) => {
    const { a } = data();
    const words = () => ({ a: a!, y: new Uint32Array(LENGTH) });
    const found = await target.run(ENTRIES, words(), [LENGTH / 16, 1, 1]);
    const expected = words();
    interpretKernel(ENTRIES, expected, [LENGTH / 16, 1, 1]);
    t.strictSame(new Uint32Array(found["y"]!.buffer), expected.y);
  },
);

t.test("looked-up bytes as floats are entries of a table of floats", (t) => {
  const { text } = printKernel(ENTRIES, { lanes: 16 })[0]!;
  t.equal(text.match(/v_entry\(/g)?.length, 4);
  t.end();
});

t.test("bytes respect the bound of their word", (t) => {
  const any = load("a", u32(0), "u32");
  const nibbles = binary("and", any, u32(0x0f0f0f0f));
  const shifted = (n: number) => binary("shl", nibbles, u32(n));
  const word = (array: string) => shared(array, u32(0), "u32");
  const bounds = new ByteBounds([
    let_("nibbles", nibbles),
    sharedStore("small", u32(0), local("nibbles", "u32")),
    sharedStore("small", u32(1), u32(0x00200000)),
    sharedStore("grown", u32(0), u32(1)),
    sharedStore("grown", u32(0), binary("shl", word("grown"), u32(1))),
  ]);
  const cases = [
    [any, 255],
    [u32(0x3f10207f), 127],
    [u32(0x3f102007), 63],
    [nibbles, 15],
    [bitcast("i32", nibbles), 15],
    [local("nibbles", "u32"), 15],
    [local("unknown", "u32"), 255],
    [binary("or", nibbles, u32(0x10)), 31],
    [binary("xor", nibbles, u32(0x10)), 31],
    [binary("add", nibbles, nibbles), 255],
    [shifted(2), 60],
    [shifted(4), 240],
    [shifted(5), 255],
    [binary("shr", nibbles, u32(1)), 255],
    [call("lookup16", any, ...[1, 2, 0x0500, 3].map(u32)), 5],
    [call("dot4U8I8", nibbles, nibbles), 255],
    [word("small"), 32],
    [word("unwritten"), 0],
    [word("grown"), 255],
  ] as const;
  t.strictSame(cases.map(([e]) => bounds.of(e)), cases.map(([, n]) => n));
  t.end();
});

t.test("packed bytes one invocation at a time", (t) => {
  for (const size of [6, 16]) {
    const kernel = bytesKernel(size);
    const found = data();
    runWasm(kernel, found, [LENGTH / size, 1, 1], { lanes: 1 });
    t.strictSame(found, interpreted(kernel));
  }
  t.end();
});

const why = await whyNotNative();
const skip = skipUnasked("cpu") || (why ?? false);

t.test(
  "packed bytes in C, with vectors of every length",
  { skip },
  async (t) => {
    const pool = await NativePool.open(1);
    for (const size of [1, 6, 4, 8, 16]) {
      const kernel = { ...bytesKernel(size), name: `bytes${size}` };
      const found = data();
      const groups = [LENGTH / size, 1, 1] as const;
      await runNative(pool, kernel, { bindings: found, groups });
      t.strictSame(found, interpreted(kernel), `workgroups of ${size}`);
    }
    await pool.close();
  },
);

/** Lanes add products of rows of 16 words, with `bits` of each byte. `last`: a statement of the loop. */
function rowsKernel(last: KernelText, bits = 4): Kernel {
  const mask = (2 ** bits - 1) * 0x01010101;
  return kernelOf({
    name: "rows",
    workgroupSize: 8,
    bindings: bindings({ a: "u32", b: "u32" }, { y: "i32" }),
    body: wgsl`
      var low = 0i;
      var high = 1i;
      for (var k = 0u; k < 16; k++) {
        let word = a[lane * 16 + k];
        let upper = word >> 4;
        low += dot4U8I8(word & ${mask}u, b[k]);
        high += dot4U8I8(upper & ${mask}u, b[2 * k + 1] | k);
        ${last}
      }
      y[lane] = low + high * 3;`,
  });
}

t.test("small products of a sum are added in pairs or fours", async (t) => {
  const count = (name: string, kernel: Kernel, lanes = 8) =>
    printKernel(kernel, { lanes })[0]!.text.split(`${name}(`).length - 1;
  const [tiny, small, large] = [5, 6, 7].map((bits) =>
    rowsKernel(wgsl``, bits)
  ) as [Kernel, Kernel, Kernel];
  t.equal(count("v_dot16_tiny_add", tiny), 2, "one of each sum for four words");
  t.equal(count("v_dot16_tiny_add", tiny, 4), 0, "on vectors of 8 lanes only");
  t.equal(count("v_dot8_small_add", small), 4, "two of each sum");
  t.equal(count("v_dot8_small_add", large), 0);
  const others = [
    wgsl`high += low;`,
    wgsl`low += i32(word);`,
    wgsl`if (k > 3) { low += 1i; }`,
  ].map((last) => rowsKernel(last));
  for (const other of others) t.equal(count("v_dot16_tiny_add", other), 0);
  if (skip) return;
  const pool = await NativePool.open(1);
  const words = (length: number) =>
    Uint32Array.from({ length }, (_, i) => Math.imul(i + 1, 0x9e3779b1));
  const extremes = { a: words(128).fill(~0), b: words(32).fill(0x80808080) };
  for (const one of [tiny, small, large, ...others]) {
    for (const inputs of [{ a: words(128), b: words(32) }, extremes]) {
      const [found, wanted] = [new Uint32Array(8), new Uint32Array(8)];
      const on = {
        bindings: { ...inputs, y: found },
        groups: [1, 1, 1],
      } as const;
      await runNative(pool, one, on);
      interpretKernel(one, { ...inputs, y: wanted }, [1, 1, 1]);
      t.strictSame(found, wanted);
    }
  }
  await pool.close();
});

t.test("WGSL uses the packed dot product of devices that have it", (t) => {
  const kernel = bytesKernel(16);
  const packed = printWgsl(kernel, { packedDot: true });
  t.match(packed, /^requires packed_4x8_integer_dot_product;/);
  t.match(packed, "dot4I8Packed(");
  t.notMatch(packed, "fn dot4_i8");
  const plain = printWgsl(kernel);
  t.notMatch(plain, "dot4I8Packed");
  t.match(plain, "fn dot4_i8");
  t.end();
});

t.test("a table that is not constant is rejected", (t) => {
  const write = (value: ReturnType<typeof wgsl>) =>
    kernelOf({
      name: "table",
      workgroupSize: 4,
      bindings: bindings({ a: "u32" }, { z: "u32" }),
      body: wgsl`z[lane] = ${value};`,
    });
  t.throws(
    () => write(wgsl`lookup16(a[0], a[1], 2, 3, 4)`),
    /Cannot call 'lookup16' with a table that is not constant/,
  );
  const kernel = write(wgsl`lookup16(a[0], 1, 2, 3, 4)`);
  const word = load("a", u32(0), "u32");
  const body = [
    store("z", u32(0), call("lookup16", word, ...new Array(4).fill(word))),
  ];
  t.match(
    readTree({ ...kernel, body }).faults.join(),
    "the table of 'lookup16' is not constant",
  );
  t.end();
});
