/** Measures memory bandwidth by copies. */

import { compile } from "../../../compiler/mod.ts";
import type { MachineDevice } from "../../../spec/machine.ts";
import type { SelectedDevices } from "../../devices.ts";
import {
  isRepeated,
  type MeasureOptions,
  type Meter,
  reportedMedian,
} from "./meter.ts";
import { chainModel } from "./models.ts";

/** Bytes of the copies that locate the end of the cache. */
const COPIES = [1 << 20, 1 << 22, 1 << 24, 1 << 26] as const;

/** Memory rates of a device. */
export type MemoryRates = Pick<MachineDevice, "name" | "bandwidth" | "cache">;

/**
 * Opens a device and measures its memory: by the longest copies, and by the longest that fit a cache and are much
 * faster.
 */
export async function openMemoryMeter(
  selected: SelectedDevices,
  options: MeasureOptions,
): Promise<Meter<MemoryRates>> {
  const { now } = options;
  const plan = await compile(chainModel(1), { limits: selected.limits });
  const { devices: [opened], close } = await selected.open(plan);
  const device = opened!;
  const longest = COPIES.at(-1)!;
  const from = device.createBuffer(longest, "from");
  const to = device.createBuffer(longest, "to");
  const copy = async (bytes: number) => {
    await device.idle();
    const start = now();
    for (let done = 0; done < longest; done += bytes) {
      device.copy(from, 0, to, 0, bytes);
    }
    await device.idle();
    return (now() - start) / 1000;
  };
  for (const bytes of COPIES) await copy(bytes);
  return {
    measure: async () => {
      const rates: number[] = [];
      for (const bytes of COPIES) {
        const times: number[] = [];
        while (isRepeated(times.length, options)) times.push(await copy(bytes));
        // Every byte is read and written.
        rates.push(2 * longest / reportedMedian(times, "memory", options));
      }
      const bandwidth = rates.at(-1)!;
      const cached = rates.findLastIndex((rate) => rate > 1.5 * bandwidth);
      return {
        name: device.name,
        bandwidth,
        ...cached < 0 ? {} : {
          cache: { bytes: 2 * COPIES[cached]!, bandwidth: rates[cached]! },
        },
      };
    },
    close: async () => {
      device.destroy();
      await close();
    },
  };
}
