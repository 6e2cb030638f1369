/** Needs a null device only: weights in any order of axes, in pieces of any length. */

import t from "tap";
import fc from "fast-check";
import type { Plan, PlanBuffer, PlanWeight } from "../spec/plan.ts";
import {
  createNullDevice,
  type NullBuffer,
  openSafetensors,
  RankMemory,
  weightForm,
} from "../runtime/mod.ts";
import { loadWeights } from "../runtime/weights.ts";
import "./helpers/seed.ts";

/** A safetensors file of one bf16 tensor whose elements are 1, 2, 3, … as bits. */
function bf16File(shape: readonly number[]): Uint8Array {
  const count = shape.reduce((n, size) => n * size, 1);
  const header = new TextEncoder().encode(JSON.stringify({
    w: { dtype: "BF16", shape, data_offsets: [0, 2 * count] },
  }));
  const file = new Uint8Array(8 + header.length + 2 * count);
  new DataView(file.buffer).setBigUint64(0, BigInt(header.length), true);
  file.set(header, 8);
  const bits = Uint16Array.from({ length: count }, (_, i) => i + 1);
  file.set(new Uint8Array(bits.buffer), 8 + header.length);
  return file;
}

t.test("loadWeights() gives the same bytes for any pieces", async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        sizes: fc.tuple(
          fc.integer({ min: 1, max: 4 }),
          fc.integer({ min: 1, max: 5 }),
          fc.integer({ min: 1, max: 5 }),
        ),
        order: fc.shuffledSubarray([0, 1, 2], { minLength: 3 }),
        sliced: fc.option(fc.nat(2)),
        padding: fc.nat(3),
        pieceBytes: fc.integer({ min: 1, max: 100 }),
        readBytes: fc.integer({ min: 1, max: 100 }),
        odd: fc.boolean(),
      }),
      async ({ sizes, order, sliced, padding, pieceBytes, readBytes, odd }) => {
        const names = ["a", "b", "c"];
        const held = sizes.map((size, i) =>
          Array.from({ length: size }, (_, j) => size - 1 - j)
            .filter((j) => i !== sliced || size === 1 || j % 2 === 0)
        );
        const taken = held.map((list, i) =>
          i === sliced ? list : list.toReversed()
        );
        const axes = order.map((i) => ({
          axis: names[i]!,
          size: taken[i]!.length,
        }));
        const rowStride = axes[2]!.size + padding;
        const elements = axes[0]!.size * axes[1]!.size * rowStride;
        const bytes = Math.ceil(elements / 2) * 4;
        const buffer: PlanBuffer = {
          name: "w",
          kind: "weight",
          dtype: "bf16",
          axes,
          rowStride,
          bytes,
          allocation: 0,
          offset: 0,
        };
        const weight: PlanWeight = {
          buffer: "w",
          source: "w",
          stored: "bf16",
          axes: names,
          shape: sizes,
          ...(sliced === null ? {} : {
            pick: {
              axis: names[sliced]!,
              stacked: false,
              placed: true,
            },
          }),
        };
        const axis = sliced === null ? {} : {
          [names[sliced]!]: {
            ...{ size: sizes[sliced]!, over: [], table: [taken[sliced]!] },
          },
        };
        const plan = {
          mesh: [],
          axes: axis,
          allocations: [{ bytes }],
          buffers: { w: buffer },
          weights: [weight],
        } as unknown as Plan;
        const device = createNullDevice();
        const memory = new RankMemory(plan, device, 0);
        const file = bf16File(sizes);
        const tensors = await openSafetensors([{
          name: "w",
          size: file.length,
          read: (offset, length) => {
            // Bytes at an odd place of a larger array, as a file cache may give them.
            const place = new Uint8Array(length + 1);
            place.set(file.subarray(offset, offset + length), odd ? 1 : 0);
            return Promise.resolve(
              place.subarray(odd ? 1 : 0, length + (odd ? 1 : 0)),
            );
          },
        }]);
        let done = 0;
        await loadWeights(plan, [memory], tensors, {
          pieceBytes,
          readBytes,
          onProgress: (n) => done = n,
        });
        const got = new Uint16Array(
          (memory.buffer("w") as NullBuffer).data.buffer,
        );
        const expected = new Uint16Array(bytes / 2);
        taken[0]!.forEach((i, x) =>
          taken[1]!.forEach((j, y) =>
            taken[2]!.forEach((k, z) => {
              const at = [x, y, z];
              const [p, q, r] = order.map((o) => at[o]!);
              expected[(p! * axes[1]!.size + q!) * rowStride + r!] =
                (i * sizes[1] + j) * sizes[2] + k + 1;
            })
          )
        );
        return done === bytes && got.join() === expected.join();
      },
    ),
    { numRuns: 300 },
  );
  t.pass();
});

t.test("weightForm() takes bytes for words, one or four to a word", (t) => {
  const weight = { stored: "u32", shape: [2, 3] } as const;
  const form = (dtype: string, shape: number[]) =>
    weightForm(weight, { dtype, shape });
  t.equal(form("U32", [2, 3]), "elements");
  t.equal(form("U8", [2, 3]), "bytes");
  t.equal(form("U8", [2, 12]), "words");
  t.equal(form("U8", [2, 6]), undefined);
  t.equal(form("F32", [2, 3]), undefined);
  t.end();
});
