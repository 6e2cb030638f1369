/** Finds the PCI addresses and driver files of Vulkan adapters. They distinguish adapters of the same name. */

import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import process from "node:process";
import type { AdapterSystemInfo } from "../engine/mod.ts";
import { packageFile } from "./package_file.ts";

/** The system's own information about adapters. Empty on systems other than Linux. */
export async function adapterSystemInfo(): Promise<AdapterSystemInfo> {
  if (process.platform !== "linux") return { pci: [], driverFiles: [] };
  return { pci: parseDeviceList(await listDevices()), driverFiles: drivers() };
}

/**
 * Returns the output of Mesa's device-select layer. The layer ends the process after printing, so it runs in a child
 * process.
 */
async function listDevices(): Promise<string> {
  const program = packageFile("cli/list_adapters.mjs");
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, MESA_VK_DEVICE_SELECT: "list" },
    stdio: ["ignore", "ignore", "pipe"],
    timeout: 20_000,
  });
  let text = "";
  child.stderr.setEncoding("utf8").on("data", (chunk) => text += chunk);
  return await new Promise((resolve) => {
    child.on("error", () => resolve(""));
    child.on("close", () => resolve(text));
  });
}

/**
 * Reads the adapters with a PCI address from the layer's list: `GPU 0: 10de:2330 "NVIDIA H100" discrete GPU
 * 0000:65:00.0`.
 */
export function parseDeviceList(text: string): AdapterSystemInfo["pci"] {
  const line =
    /GPU \d+: [0-9a-f]+:[0-9a-f]+ "(.*)".* ([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])\b/gi;
  return [...text.matchAll(line)].map(([, name, address]) => ({
    name: name!,
    address: address!.toLowerCase(),
  }));
}

/** Lists the driver files that the Vulkan loader would read. */
function drivers(): string[] {
  const { VK_DRIVER_FILES, VK_ICD_FILENAMES } = process.env;
  const given = VK_DRIVER_FILES ?? VK_ICD_FILENAMES;
  if (given) return given.split(":").filter((file) => file !== "");
  const folders = [
    path.join(homedir(), ".local/share"),
    "/usr/local/etc",
    "/etc",
    "/usr/local/share",
    "/usr/share",
  ].map((folder) => path.join(folder, "vulkan/icd.d"));
  return folders.flatMap((folder) => {
    try {
      return readdirSync(folder).filter((name) => name.endsWith(".json"))
        .sort().map((name) => path.join(folder, name));
    } catch {
      return [];
    }
  });
}
