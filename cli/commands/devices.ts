/** `switchyard devices`: the adapters of this machine, and those that a run would use. */

import {
  chooseAdapter,
  CPU_LIMITS,
  type GpuAdapter,
  listAdapters,
  NATIVE_LIMITS,
  nativeCompiler,
  withoutAdapter,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import { refuseFlags } from "../flags/values.ts";
import { machineCommand, type MachineFlags } from "./machine.ts";

/** The limits that decide whether a plan fits. */
const SHOWN = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupStorageSize",
];

/** Flags of `devices`. */
export interface DevicesFlags extends MachineFlags {
  readonly all?: boolean;
}

/** Lists the adapters. With `--all`, measures the adapters that a run would use. */
export async function devicesCommand(
  io: CliIo,
  flags: DevicesFlags,
): Promise<number> {
  if (flags.all) return await machineCommand(io, flags);
  const { devices, adapter: only } = flags;
  refuseFlags(
    {
      "--out": flags.out,
      "--ranks": flags.ranks,
      "--repetitions": flags.repetitions,
      "--threads": flags.threads,
      "--deadline": flags.deadline,
      "--expert-memory": flags.expertMemory,
      "--preload": flags.preload,
      "--devices": devices === "shared" ? undefined : devices,
      "--adapter": only === "auto" ? undefined : only,
    },
    "without --all: the list has every adapter. Add --all to measure",
  );
  const adapters = await listAdapters({ systemInfo: io.systemInfo });
  const native = await nativeCompiler();
  const { adapter, why } = chooseAdapter(adapters, native.missing);
  const chosen = typeof adapter === "string" ? adapter : adapter.number;
  if (flags.json) {
    const document = {
      adapters: adapters.map(
        ({ number, name, vendor, architecture, description, ...rest }) => ({
          number,
          name,
          vendor,
          architecture,
          description,
          type: rest.type,
          address: rest.address,
          twins: rest.twins,
          limits: rest.limits,
          features: rest.features,
        }),
      ),
      cpu: { limits: CPU_LIMITS },
      native: native.compiler
        ? { ...native.compiler, limits: NATIVE_LIMITS }
        : { missing: native.missing },
      chosen: { adapter: chosen, why },
    };
    await io.out(`${JSON.stringify(document, null, 2)}\n`);
    return 0;
  }
  await io.out([
    ...adapters.length > 0
      ? adapters.map(formatAdapter)
      : [`adapters: ${await withoutAdapter()}`],
    `cpu  the CPU device (WebAssembly SIMD)\n   limits: memory ${CPU_LIMITS.memory} of all ranks together`,
    native.compiler
      ? `native  the CPU device by C (${native.compiler.version} as '${native.compiler.command}', vectors of ${native.compiler.lanes} f32)\n   limits: memory ${NATIVE_LIMITS.memory} of all ranks together`
      : `native  not on this machine: ${native.missing}`,
    `auto uses ${
      typeof chosen === "string" ? chosen : `adapter ${chosen}`
    }: ${why}. Software adapters are only used by number`,
    "",
  ].join("\n"));
  return 0;
}

function formatAdapter(adapter: GpuAdapter): string {
  const { number, name, type, address, twins, limits, features } = adapter;
  const where = address === undefined ? "" : `, ${address}`;
  const one = twins === undefined
    ? ""
    : `, one of ${twins} that nothing tells apart`;
  return [
    `${number}  ${name} (${type}${where}${one})`,
    `   limits: ${SHOWN.map((key) => `${key} ${limits[key]}`).join(", ")}`,
    `   features: ${features.join(", ") || "none"}`,
  ].join("\n");
}
