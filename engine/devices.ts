/** Which adapters there are, which is used and why, and one device for each rank. */

import {
  createGpuDevice,
  type Device,
  type GpuAdapter,
  listAdapters,
} from "../runtime/mod.ts";
import { MachineError } from "../spec/errors.ts";
import type { Plan } from "../spec/plan.ts";

/** What computes: the best there is, the CPU device, or adapters by number. */
export type AdapterChoice = "auto" | "cpu" | readonly number[];

/** Where ranks live: all on one device, or each on its own. */
export type DeviceSharing = "shared" | "separate";

/** What `auto` takes on this machine. */
export interface ChosenAdapter {
  readonly adapter: GpuAdapter;
  readonly why: string;
}

/** A hardware GPU if there is one, else a software adapter. */
export function chooseAdapter(
  adapters: readonly GpuAdapter[],
): ChosenAdapter {
  const hardware = adapters.find(({ type }) => type === "hardware");
  if (hardware) return { adapter: hardware, why: "it is a hardware GPU" };
  const [software] = adapters;
  if (software) {
    return {
      adapter: software,
      why: "there is no hardware GPU, and it computes in software",
    };
  }
  throw new MachineError(
    "Cannot choose an adapter: this machine has none. Install a Vulkan driver, on Debian with 'apt-get install mesa-vulkan-drivers'",
  );
}

/** How devices are chosen. */
export interface SelectDevicesOptions {
  readonly sharing: DeviceSharing;
  readonly adapter: AdapterChoice;
  /** Takes a remark for the user. */
  readonly notice?: (text: string) => void;
  /** Time launches, where the adapter can. */
  readonly timestamps?: boolean;
  /** A browser's or Deno's `navigator.gpu`. */
  readonly gpu?: GPU;
}

/** Adapters that were chosen, before a plan says what it needs of them. */
export interface SelectedDevices {
  /** Limits that all of them have; a plan for them may ask for as much. */
  readonly limits: { readonly [limit: string]: number };
  /** One device per rank of the plan; if shared, the same one for all. */
  open(plan: Plan): Promise<Device[]>;
}

/** Choose the adapters to compute on. Throws MachineError where there are none, or too few. */
export async function selectDevices(
  options: SelectDevicesOptions,
): Promise<SelectedDevices> {
  const { sharing, adapter: choice } = options;
  if (choice === "cpu") {
    throw new MachineError(
      "Cannot use adapter 'cpu': the CPU device is not part of this version. Use auto or a number from 'switchyard devices'",
    );
  }
  const adapters = await listAdapters(options.gpu ? { gpu: options.gpu } : {});
  const list = choice === "auto"
    ? [chooseAdapter(adapters).adapter]
    : choice.map((number) => adapterOf(adapters, number));
  if (sharing === "shared" && list.length > 1) {
    throw new MachineError(
      `Cannot share ${list.length} adapters: with 'shared' all ranks are on one device. Name one adapter, or use separate devices`,
    );
  }
  return {
    limits: commonLimits(list),
    open: (plan) =>
      sharing === "shared"
        ? openShared(plan, list[0]!, options)
        : openSeparate(plan, list, options),
  };
}

async function openShared(
  plan: Plan,
  adapter: GpuAdapter,
  options: SelectDevicesOptions,
): Promise<Device[]> {
  const device = await openDevice(plan, adapter, {
    ...options,
    label: "all ranks",
  });
  return new Array<Device>(plan.ranks).fill(device);
}

async function openSeparate(
  plan: Plan,
  list: readonly GpuAdapter[],
  options: SelectDevicesOptions,
): Promise<Device[]> {
  checkSharing(list, plan.ranks, options);
  const devices: Device[] = [];
  for (let rank = 0; rank < plan.ranks; rank++) {
    const adapter = list[rank % list.length]!;
    devices.push(
      await openDevice(plan, adapter, { ...options, label: `rank ${rank}` }),
    );
  }
  return devices;
}

async function openDevice(
  plan: Plan,
  adapter: GpuAdapter,
  options: SelectDevicesOptions & { readonly label: string },
): Promise<Device> {
  return await createGpuDevice(adapter, {
    limits: plan.requiredLimits,
    features: plan.requiredFeatures,
    label: options.label,
    timestamps: options.timestamps ?? false,
  });
}

function commonLimits(
  adapters: readonly GpuAdapter[],
): { readonly [limit: string]: number } {
  const [first, ...rest] = adapters;
  return Object.fromEntries(
    Object.entries(first!.limits).map(([name, limit]) => [
      name,
      Math.min(limit, ...rest.map(({ limits }) => limits[name] ?? 0)),
    ]),
  );
}

function adapterOf(
  adapters: readonly GpuAdapter[],
  number: number,
): GpuAdapter {
  const adapter = adapters[number];
  if (adapter) return adapter;
  throw new MachineError(
    `Cannot use adapter ${number}: this machine has ${
      adapters.length === 0
        ? "none. Install a Vulkan driver"
        : `${adapters.length}, numbered from 0. See 'switchyard devices'`
    }`,
  );
}

// Ranks that share an adapter are slower than they look; where as many were named as there are ranks it is a mistake.
function checkSharing(
  list: readonly GpuAdapter[],
  ranks: number,
  options: SelectDevicesOptions,
): void {
  const used = list.slice(0, ranks);
  const different = new Set(used.map(({ number }) => number)).size;
  if (different >= ranks) return;
  if (list.length >= ranks) {
    throw new MachineError(
      `Cannot give ${ranks} ranks an adapter each: the list names only ${different} different. Name ${ranks} different adapters, or fewer to share them`,
    );
  }
  options.notice?.(
    `${ranks} ranks share ${different} adapter${different === 1 ? "" : "s"}: ${
      used.map(({ name }) => name).join(", ")
    }`,
  );
}
