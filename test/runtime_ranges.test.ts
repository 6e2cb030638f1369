// Ranges of a device's memory are bound, written, copied and read like buffers, on both kinds of devices.

import t from "tap";
import { add, id, load, mul, store, u32 } from "../spec/kernel/build.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { closeDevices, deviceOf, skip } from "./helpers/run_model.ts";

t.teardown(closeDevices);

const GROUPS = 3;

/** y[i] = x[i] * 3 + 1, from one range of an allocation to another. */
const tree: Kernel = {
  name: "triple",
  workgroupSize: 64,
  bindings: [
    { name: "x", type: "u32", access: "read", writable: true },
    { name: "y", type: "u32", access: "write" },
  ],
  shared: [],
  body: [
    store(
      "y",
      index(),
      add(mul(load("x", index(), "u32"), u32(3)), u32(1)),
    ),
  ],
};

function index() {
  return add(mul(id("group.x"), u32(64)), id("local"));
}

const words = (bytes: Uint8Array) => [...new Uint32Array(bytes.slice().buffer)];

for (const kind of ["cpu", "gpu"] as const) {
  t.test(`ranges of memory, ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    const device = await deviceOf(kind);
    await device.prepare({ triple: { tree } });
    const bytes = 4 * 64 * GROUPS;
    const all = device.createBuffer(4 * bytes, "all");
    const x = device.range(all, bytes, bytes);
    const y = device.range(device.range(all, bytes, 2 * bytes), bytes, bytes);
    const count = bytes / 4;
    const values = Uint32Array.from({ length: count }, (_, i) => i + 7);
    const wanted = [...values].map((v) => 3 * v + 1);
    t.equal(y.bytes, bytes);
    device.write(x, 0, new Uint8Array(values.buffer));
    device.launch("triple", Object.freeze([x, y]), [GROUPS, 1, 1]);
    t.same(words(await device.read(y, 0, bytes)), wanted);
    t.same(words(await device.read(all, 0, 4 * bytes)), [
      ...new Array<number>(count).fill(0),
      ...values,
      ...wanted,
      ...new Array<number>(count).fill(0),
    ], "nothing else is written");

    const other = device.createBuffer(bytes, "other");
    device.copy(y, 8, other, 16, 8);
    t.same(words(await device.read(other, 12, 16)), [
      ...[0, wanted[2], wanted[3], 0],
    ]);
    const staging = device.createStaging("read", bytes);
    const [lent] = await staging.open(y, [{ offset: 4, bytes: 8 }]);
    t.same(words(lent!), wanted.slice(1, 3));
    staging.close();
    const filling = device.createStaging("write", bytes);
    const [room] = await filling.open(y, [{ offset: 0, bytes: 4 }]);
    room!.set([1, 2, 0, 0]);
    filling.close();
    t.same(words(await device.read(all, 2 * bytes, 8)), [513, wanted[1]]);

    const outside = /bytes .* of a buffer of/;
    t.throws(() => device.write(x, bytes - 4, new Uint8Array(8)), outside);
    t.throws(() => device.copy(x, 0, other, 4, bytes), outside);
    t.throws(() => device.range(x, 256, bytes), outside);
    await t.rejects(device.read(x, 4, bytes), outside);
  });
}
