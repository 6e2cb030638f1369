/** Loading of weights on a null device: any order of axes, pieces of any length. */

import t from "tap";
import fc from "fast-check";
import { perRank } from "../spec/per_rank.ts";
import type { Plan, PlanBuffer, PlanWeight } from "../spec/plan/plan.ts";
import {
  type Device,
  type DeviceBuffer,
  openSafetensors,
  RankMemory,
  weightForm,
} from "../runtime/mod.ts";
import { allocateRanks } from "../runtime/rank_memories.ts";
import { loadWeights } from "../runtime/weights/load.ts";
import "./helpers/seed.ts";
import { createNullDevice, type NullBuffer } from "./helpers/null_device.ts";

/** A safetensors file with one bf16 tensor whose elements have the bits 1, 2, 3, … */
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

t.test("loadWeights() gives the same bytes for any piece sizes", async (t) => {
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
            size: sizes[sliced]!,
            over: [],
            table: [taken[sliced]!],
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
            // Bytes at an odd offset of a larger array, as from a file cache.
            const target = new Uint8Array(length + 1);
            target.set(file.subarray(offset, offset + length), odd ? 1 : 0);
            return Promise.resolve(
              target.subarray(odd ? 1 : 0, length + (odd ? 1 : 0)),
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

/** Files by name, with their descriptors. */
const FILES = { w: 3, w0: 4, w1: 5, w2: 6, w3: 7 } as const;

/** Contents of the files, all different. */
const CONTENTS = new Map(
  Object.values(FILES).map((descriptor) => {
    const halves = Uint16Array.from(
      { length: (1 << 21) + 64 },
      (_, i) => (i * 31 + descriptor * 7919) % 0x7f00,
    );
    return [descriptor as number, new Uint8Array(halves.buffer)];
  }),
);

/** Shards of bf16 weights [e, n, k], at least 1 MiB per rank. */
const SHARDS: {
  readonly [title: string]: {
    readonly mapped: boolean;
    /** Axes of the buffer, outermost first. */
    readonly order?: readonly string[];
    readonly sharded: { readonly [axis: string]: readonly number[][] };
    readonly stack?: true;
    readonly rowStride?: number;
  };
} = {
  "contiguous experts": { mapped: true, sharded: { e: [[0, 1], [2, 3]] } },
  "experts round-robin": { mapped: false, sharded: { e: [[0, 2], [1, 3]] } },
  "the first axis, unequal": {
    mapped: true,
    sharded: { e: [[0], [1, 2, 3]] },
  },
  "an inner axis": {
    mapped: false,
    sharded: { n: [0, 512].map((from) => count(from, 512)) },
  },
  "an inner axis in another order": {
    mapped: false,
    sharded: { n: [0, 1].map(() => count(0, 1024).reverse()) },
  },
  "another order": {
    mapped: false,
    order: ["e", "k", "n"],
    sharded: { e: [[0, 1], [2, 3]] },
  },
  "padded rows": {
    mapped: false,
    sharded: { e: [[0, 1], [2, 3]] },
    rowStride: 516,
  },
  "a file for each expert": {
    mapped: true,
    sharded: { e: [[3, 0], [1, 2]] },
    stack: true,
  },
  "rows of a file for each expert": {
    mapped: true,
    sharded: { n: [0, 512].map((from) => count(from, 512)) },
    stack: true,
  },
};

function count(from: number, length: number): number[] {
  return Array.from({ length }, (_, i) => from + i);
}

for (
  const [title, { mapped, sharded, stack, ...layout }] of Object.entries(SHARDS)
) {
  t.test(`mapped weights equal read weights: ${title}`, async (t) => {
    const sizes: { readonly [axis: string]: number } = {
      e: 4,
      n: 1024,
      k: 512,
    };
    const order = layout.order ?? ["e", "n", "k"];
    const source = stack ? ["n", "k"] : ["e", "n", "k"];
    const shape = source.map((axis) => sizes[axis]!);
    const held = (axis: string, rank: number) =>
      sharded[axis]?.[rank]?.length ?? sizes[axis]!;
    const elements = (rank: number) =>
      order.slice(0, -1).reduce((n, axis) => n * held(axis, rank), 1) *
      (layout.rowStride ?? held(order.at(-1)!, rank));
    const bytes = perRank([0, 1].map((rank) => 2 * elements(rank)));
    const plan = {
      mesh: [{ name: "ep", size: 2 }],
      axes: Object.fromEntries(
        Object.entries(sizes).map(([axis, size]) => [
          axis,
          sharded[axis]
            ? { size, over: ["ep"], table: sharded[axis] }
            : { size },
        ]),
      ),
      allocations: [{ bytes }],
      buffers: {
        w: {
          name: "w",
          kind: "weight",
          dtype: "bf16",
          bytes,
          allocation: 0,
          offset: 0,
          ...layout,
          axes: order.map((axis) => ({
            axis,
            size: perRank([0, 1].map((rank) => held(axis, rank))),
          })),
        },
      },
      weights: [{
        buffer: "w",
        source: stack ? "w{e}" : "w",
        stored: "bf16",
        axes: source,
        shape,
        ...stack ? { stack: "e" } : {},
      }],
    } as unknown as Plan;
    const tensors = new Map(
      Object.entries(FILES).map(([name, descriptor]) => {
        const file = CONTENTS.get(descriptor)!;
        const offset = 8 * descriptor;
        const entry = {
          name,
          dtype: "BF16",
          shape,
          offset,
          bytes: 2 * shape.reduce((n, size) => n * size),
          source: {
            name,
            size: file.length,
            descriptor,
            read: (from: number, length: number) =>
              Promise.resolve(file.subarray(from, from + length)),
          },
        };
        return [name, entry] as const;
      }),
    );
    let maps = 0;
    const map: NonNullable<Device["map"]> = (runs) => {
      maps++;
      const data = Buffer.concat(
        runs.map(({ descriptor, offset, bytes }) =>
          CONTENTS.get(descriptor)!.subarray(offset, offset + bytes)
        ),
      );
      return { bytes: data.length, data } as DeviceBuffer;
    };
    const load = async (device: Device) => {
      const { ranks } = allocateRanks(plan, {
        devices: [device, device],
        tensors,
        source: undefined,
        slotBytes: undefined,
        rankOf: (i) => i,
      });
      let done = 0;
      await loadWeights(plan, ranks, tensors, {
        onProgress: (n) => done = n,
        areMapped: true,
      });
      t.equal(done, 2 * (elements(0) + elements(1)));
      return ranks.map((rank) => (rank.buffer("w") as NullBuffer).data);
    };
    const read = await load(createNullDevice());
    const found = await load({ ...createNullDevice(), map });
    t.equal(maps, mapped ? 2 : 0);
    for (const [rank, data] of found.entries()) {
      t.ok(Buffer.from(data).equals(read[rank]!), `rank ${rank}`);
    }
  });
}

t.test("weightForm() accepts bytes for words, one or four per word", (t) => {
  const weight = { source: "w", stored: "u32", shape: [2, 3] } as const;
  const form = (dtype: string, shape: number[]) =>
    weightForm(weight, { dtype, shape });
  t.equal(form("U32", [2, 3]), "elements");
  t.equal(form("U8", [2, 3]), "bytes");
  t.equal(form("U8", [2, 12]), "words");
  t.equal(form("U8", [2, 6]), undefined);
  t.equal(form("F32", [2, 3]), undefined);
  t.end();
});
