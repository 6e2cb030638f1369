/** Measures the disk by streaming experts from a file, as runs do. */

import { scratchFile } from "../../../runtime/cache/scratch_file.ts";
import type { FileRun } from "../../../runtime/device.ts";
import { HostDevice } from "../../../runtime/host/device.ts";
import { NativePool } from "../../../runtime/native/mod.ts";
import { invariant } from "../../../spec/errors.ts";
import { load, store, u32 } from "../../../spec/kernel/build.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import { range } from "../../../spec/range.ts";
import { uniformsFrom } from "../simulate/loads.ts";
import {
  isRepeated,
  type MeasureOptions,
  type Meter,
  reportedMedian,
} from "./meter.ts";

/**
 * Bytes of an expert, their number in the file, the number of them in memory, and those that a launch reads: a few, as
 * in a decode step.
 */
const BYTES = 1 << 23, EXPERTS = 32, RESIDENT = 16, READ_AT_ONCE = 4;

/** Reads a value of the first expert. */
export const READ_EXPERTS: Kernel = {
  name: "read_experts",
  workgroupSize: 1,
  bindings: [
    { name: "tiles", type: "u32", access: "read" },
    { name: "weight", type: "u32", access: "read" },
    { name: "y", type: "u32", access: "write" },
  ],
  shared: [],
  body: [store("y", u32(0), load("weight", u32(0), "u32"))],
};

/** A file that is read, and its bytes. */
export type DiskFile = Pick<FileRun, "name" | "descriptor" | "bytes">;

/** Options of a measurement of the disk. */
export interface DiskOptions extends MeasureOptions {
  /**
   * A file of at least 256 MiB whose random parts are read. Without it, or if it is smaller: a temporary file, which a
   * virtual disk may cache.
   */
  readonly file?: DiskFile | undefined;
}

/**
 * Prepares to stream experts: bytes per second in the time of the reads. A temporary file is in the cache folder of
 * this user. Undefined if the folder accepts no file of this size, or the system cannot stream it.
 */
export async function openDiskMeter(
  { file: asked, ...options }: DiskOptions,
): Promise<Meter<number> | undefined> {
  const given = asked && asked.bytes >= EXPERTS * BYTES ? asked : undefined;
  const scratch = given ? undefined : await scratchFile(BYTES, EXPERTS);
  const file = given ?? scratch;
  if (file === undefined) return undefined;
  const { name, descriptor } = file;
  const experts = given ? Math.floor(given.bytes / BYTES) : EXPERTS;
  const pool = await NativePool.open(1, { expertBytes: RESIDENT * BYTES });
  const device = new HostDevice(pool, { closesPool: true });
  const close = async () => {
    await device.idle();
    device.destroy();
    await scratch?.close();
  };
  const weight = device.stream?.(
    range(experts).map((e) => ({
      name,
      descriptor,
      offset: e * BYTES,
      bytes: BYTES,
    })),
  );
  if (weight === undefined) {
    await close();
    return undefined;
  }
  await device.prepare({ [READ_EXPERTS.name]: { tree: READ_EXPERTS } });
  const order = scattered(experts);
  let next = 0;
  const tiles = device.createBuffer(4 * (1 + 3 * READ_AT_ONCE), "tiles");
  const buffers = Object.freeze([tiles, weight, device.createBuffer(4, "y")]);
  device.streamFor(buffers, 0);
  const launch = () => {
    const list = range(READ_AT_ONCE).flatMap(() => [
      order[next++ % experts]!,
      0,
      0,
    ]);
    const words = Uint32Array.of(READ_AT_ONCE, ...list);
    device.write(tiles, 0, new Uint8Array(words.buffer));
    device.launch(READ_EXPERTS.name, buffers, [1, 1, 1]);
  };
  const statistics = () => {
    const { streaming } = device;
    invariant(streaming, "a device that streams has statistics");
    return streaming();
  };
  const rate = async () => {
    const before = statistics();
    for (let read = 0; read < EXPERTS; read += READ_AT_ONCE) launch();
    await device.idle();
    const { bytesRead, readMs } = statistics();
    return (bytesRead - before.bytesRead) / (readMs - before.readMs) * 1000;
  };
  return {
    measure: async () => {
      const rates: number[] = [];
      while (isRepeated(rates.length, options)) rates.push(await rate());
      return reportedMedian(rates, "disk", options);
    },
    close,
  };
}

/** The numbers below `count` in random order. */
function scattered(count: number): number[] {
  const random = uniformsFrom(count);
  return range(count).map((e) => ({ e, at: random() }))
    .sort((a, b) => a.at - b.at).map(({ e }) => e);
}
