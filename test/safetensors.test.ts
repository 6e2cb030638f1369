/** Headers of safetensors files, and files written and read back. */

import t from "tap";
import fc from "fast-check";
import {
  type FileSource,
  openSafetensors,
  readTensor,
  writeSafetensors,
} from "../runtime/mod.ts";

function source(data: Uint8Array, name = "a.safetensors"): FileSource {
  return {
    name,
    size: data.length,
    read: (offset, length) =>
      Promise.resolve(data.slice(offset, offset + length)),
  };
}

function file(header: unknown, dataBytes: number, claim?: bigint): Uint8Array {
  const text = new TextEncoder().encode(
    typeof header === "string" ? header : JSON.stringify(header),
  );
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(
    0,
    claim ?? BigInt(text.length),
    true,
  );
  bytes.set(text, 8);
  return bytes;
}

function f32(begin: number, end: number, shape = [(end - begin) / 4]) {
  return { dtype: "F32", shape, data_offsets: [begin, end] };
}

const BAD: readonly [string, Uint8Array, string][] = [
  [
    "a file of 3 bytes",
    new Uint8Array(3),
    "it has 3 bytes and a safetensors file begins with 8 bytes of header length",
  ],
  [
    "a file of one byte",
    new Uint8Array(1),
    "it has 1 byte and a safetensors file begins with 8 bytes of header length",
  ],
  [
    "a header longer than the file",
    file({}, 0, 99n),
    "its header claims 99 bytes and the file has 10",
  ],
  [
    "an absurd header length",
    file({}, 0, 1n << 60n),
    "its header claims 1152921504606847000 bytes, more than the 100000000 that the format allows",
  ],
  ["a header that is not JSON", file("{a", 0), "its header is not JSON"],
  [
    "a header that is not an object",
    file("[1]", 0),
    "its header is not a JSON object",
  ],
  [
    "a name twice",
    file(
      `{"a":${JSON.stringify(f32(0, 4))},"a":${JSON.stringify(f32(0, 4))}}`,
      4,
    ),
    "its header names 'a' twice",
  ],
  [
    "an entry that is not an object",
    file({ a: 3 }, 0),
    "its tensor 'a' is not a JSON object",
  ],
  [
    "an unknown dtype",
    file({ a: { ...f32(0, 4), dtype: "F33" } }, 4),
    `its tensor 'a' has the unknown dtype "F33"`,
  ],
  [
    "a dtype from the prototype",
    file({ a: { ...f32(0, 4), dtype: "constructor" } }, 4),
    `its tensor 'a' has the unknown dtype "constructor"`,
  ],
  [
    "a negative size",
    file({ a: f32(0, 4, [-1]) }, 4),
    "its tensor 'a' has the shape [-1], which is not a list of sizes",
  ],
  [
    "offsets that run backwards",
    file({ a: f32(4, 0, [1]) }, 4),
    "its tensor 'a' has the offsets [4,0], which are not a begin and an end",
  ],
  [
    "a tensor past the end",
    file({ a: f32(0, 8) }, 4),
    "its tensor 'a' ends at byte 8 of the data and the file has 4",
  ],
  [
    "a shape that differs from the span",
    file({ a: f32(0, 8, [3]) }, 8),
    "its tensor 'a' is F32 [3], which is 12 bytes, and its offsets span 8",
  ],
  [
    "a shape whose product overflows",
    file({ a: f32(0, 8, [2 ** 40, 2 ** 40]) }, 8),
    "its tensor 'a' is F32 [1099511627776, 1099511627776], which is 4.835703278458517e+24 bytes, and its offsets span 8",
  ],
  [
    "overlapping tensors",
    file({ a: f32(0, 8), b: f32(4, 12) }, 12),
    "its tensors 'a' and 'b' overlap",
  ],
  [
    "a hole",
    file({ a: f32(0, 4), b: f32(8, 12) }, 12),
    "bytes 4 to 8 of the data, before tensor 'b', belong to no tensor",
  ],
  [
    "bytes after the last tensor",
    file({ a: f32(0, 4) }, 8),
    "its tensors end at byte 4 of the data and the file has 8",
  ],
];

for (const [title, data, state] of BAD) {
  t.test(`openSafetensors() rejects ${title}`, async (t) => {
    await t.rejects(openSafetensors([source(data)]), {
      name: "DataError",
      message: `Cannot open 'a.safetensors': ${state}. Get the file again`,
    });
  });
}

t.test("openSafetensors() rejects a name in two shards", async (t) => {
  const data = file({ a: f32(0, 4) }, 4);
  await t.rejects(openSafetensors([source(data), source(data, "b")]), {
    message:
      "Cannot open 'b': its tensor 'a' is also in 'a.safetensors'. Remove one of them",
  });
});

t.test("openSafetensors() throws only DataError", async (t) => {
  const good = file({ a: f32(0, 8), b: f32(8, 16) }, 16);
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), {
        minLength: 1,
        maxLength: 4,
      }),
      fc.nat(good.length),
      async (edits, length) => {
        const data = good.slice(0, length);
        for (const [at, value] of edits) if (at < length) data[at] = value;
        try {
          await openSafetensors([source(data)]);
        } catch (error) {
          return error instanceof Error && error.name === "DataError";
        }
        return true;
      },
    ),
    { numRuns: 300 },
  );
  t.pass();
});

t.test("readTensor() inverts writeSafetensors()", async (t) => {
  const tensors = {
    "x.y": {
      dtype: "f32" as const,
      shape: [2, 2],
      data: Float32Array.of(1, -0, NaN, Infinity),
    },
    "n": { dtype: "i32" as const, shape: [1], data: Int32Array.of(-7) },
    "empty": { dtype: "u32" as const, shape: [0, 3], data: new Uint32Array(0) },
    "scalar": { dtype: "u32" as const, shape: [], data: Uint32Array.of(9) },
  };
  const data = writeSafetensors(tensors, { made: "here" });
  const directory = await openSafetensors([source(data)]);
  t.same([...directory.keys()], Object.keys(tensors));
  for (const [name, tensor] of Object.entries(tensors)) {
    t.same(await readTensor(directory.get(name)!), tensor);
  }
});

t.test("readTensor() widens 16-bit floats and narrows integers", async (t) => {
  const entry = (dtype: string, data: ArrayBufferView, n: number) => {
    const bytes = file(
      { a: { dtype, shape: [n], data_offsets: [0, data.byteLength] } },
      data.byteLength,
    );
    bytes.set(
      new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
      bytes.length - data.byteLength,
    );
    return openSafetensors([source(bytes)]).then((d) =>
      readTensor(d.get("a")!)
    );
  };
  t.same(
    [
      ...(await entry("F16", Uint16Array.of(0x3c00, 0xc000, 1, 0x7c00), 4))
        .data,
    ],
    [1, -2, 2 ** -24, Infinity],
  );
  t.same(
    [...(await entry("BF16", Uint16Array.of(0x3f80, 0xc000), 2)).data],
    [1, -2],
  );
  t.same([...(await entry("I64", BigInt64Array.of(-5n, 9n), 2)).data], [-5, 9]);
  await t.rejects(entry("I64", BigInt64Array.of(1n << 40n), 1), {
    message:
      "Cannot read tensor 'a' of 'a.safetensors': element 0 is 1099511627776, which does not fit in 32 bits. Store it as I32",
  });
  await t.rejects(entry("F64", Float64Array.of(1), 1), {
    message:
      "Cannot read tensor 'a' of 'a.safetensors': its dtype is F64. Store it as F32, F16, BF16, I32 or I64",
  });
});

t.test("readTensor() reports a truncated file", async (t) => {
  const data = file({ a: f32(0, 8) }, 8);
  const directory = await openSafetensors([{
    name: "a",
    size: data.length,
    read: (offset, length) =>
      Promise.resolve(
        data.slice(offset, Math.min(offset + length, data.length - 4)),
      ),
  }]);
  await t.rejects(readTensor(directory.get("a")!), {
    name: "DataError",
    message:
      /^Cannot read 'a': 4 of 8 bytes at \d+ are there\. Get the file again$/,
  });
});
