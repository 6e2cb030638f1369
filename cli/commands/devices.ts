/** `switchyard devices`: the adapters of this machine, and which would be used. */

import {
  chooseAdapter,
  type GpuAdapter,
  listAdapters,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";

/** Limits that decide whether a plan fits. */
const SHOWN = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupStorageSize",
];

/** List the adapters. */
export async function devicesCommand(
  io: CliIo,
  flags: { readonly json?: boolean },
): Promise<number> {
  const adapters = await listAdapters();
  const chosen = adapters.length > 0 ? chooseAdapter(adapters) : undefined;
  if (flags.json) {
    const document = {
      adapters: adapters.map(
        ({ number, name, vendor, architecture, description, ...rest }) => ({
          ...{ number, name, vendor, architecture, description },
          ...{ type: rest.type, limits: rest.limits, features: rest.features },
        }),
      ),
      chosen: chosen
        ? { adapter: chosen.adapter.number, why: chosen.why }
        : null,
    };
    await io.out(`${JSON.stringify(document, null, 2)}\n`);
    return 0;
  }
  await io.out(
    chosen
      ? [
        ...adapters.map(formatAdapter),
        `auto uses adapter ${chosen.adapter.number}: ${chosen.why}`,
        "",
      ].join("\n")
      : "There are no adapters. Install a Vulkan driver\n",
  );
  return 0;
}

function formatAdapter(adapter: GpuAdapter): string {
  const { number, name, type, limits, features } = adapter;
  return [
    `${number}  ${name} (${type})`,
    `   limits: ${SHOWN.map((key) => `${key} ${limits[key]}`).join(", ")}`,
    `   features: ${features.join(", ") || "none"}`,
  ].join("\n");
}
