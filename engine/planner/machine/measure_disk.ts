/** Measures the disk by streaming experts from a file, as runs do. */

import { scratchFile } from "../../../runtime/cache/scratch_file.ts";
import { HostDevice } from "../../../runtime/host/device.ts";
import { NativePool } from "../../../runtime/native/mod.ts";
import { invariant } from "../../../spec/errors.ts";
import { load, store, u32 } from "../../../spec/kernel/build.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import {
  isRepeated,
  type MeasureOptions,
  type Meter,
  reportedMedian,
} from "./meter.ts";

/**
 * Bytes of an expert, their number in the file, and the number of them in memory. Readers of few experts wait for the
 * last one of each round; those of a run continue with experts of the next launch.
 */
const BYTES = 1 << 23, EXPERTS = 32, RESIDENT = 16;

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

/**
 * Writes a file of experts to the cache folder of this user and prepares to stream it: bytes per second. Undefined if
 * the folder accepts no file of this size, or the system cannot stream it.
 */
export async function openDiskMeter(
  options: MeasureOptions,
): Promise<Meter<number> | undefined> {
  const { now } = options;
  const file = await scratchFile(BYTES, EXPERTS);
  if (file === undefined) return undefined;
  const { name, descriptor } = file;
  const pool = await NativePool.open(1, { expertBytes: RESIDENT * BYTES });
  const device = new HostDevice(pool, { closesPool: true });
  const close = async () => {
    await device.idle();
    device.destroy();
    await file.close();
  };
  const weight = device.stream?.(
    Array.from({ length: EXPERTS }, (_, e) => ({
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
  const list = Uint32Array.from([
    EXPERTS,
    ...Array.from({ length: EXPERTS }, (_, e) => [e, 0, 0]).flat(),
  ]);
  const tiles = device.createBuffer(list.byteLength, "tiles");
  device.write(tiles, 0, new Uint8Array(list.buffer));
  const buffers = Object.freeze([tiles, weight, device.createBuffer(4, "y")]);
  device.streamFor(buffers, 0);
  const bytesRead = () => {
    const { streaming } = device;
    invariant(streaming, "a device that streams has statistics");
    return streaming().bytesRead;
  };
  const rate = async () => {
    const [start, before] = [now(), bytesRead()];
    device.launch(READ_EXPERTS.name, buffers, [1, 1, 1]);
    await device.idle();
    return (bytesRead() - before) / (now() - start) * 1000;
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
