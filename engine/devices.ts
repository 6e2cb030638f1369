/** Adapters: listing, selection with a reason, and one device per rank. */

import {
  type AdapterSystemInfo,
  createGpuDevice,
  type Device,
  type GpuAdapter,
  listAdapters,
  withoutAdapter,
} from "../runtime/mod.ts";
import { MAX_NATIVE_THREADS } from "../runtime/available_cores.ts";
import { MAX_THREADS } from "../runtime/cpu/control.ts";
import { CPU_LIMITS, openCpuPool, SHARE_FROM_MS } from "../runtime/cpu/mod.ts";
import {
  findCompiler,
  NATIVE_LIMITS,
  NativePool,
  SHARE_FROM_NS,
  whyNotNative,
} from "../runtime/native/mod.ts";
import { HostDevice, type HostPool } from "../runtime/host/device.ts";
import { type MpiWorld, openWorld } from "../runtime/mpi/mod.ts";
import { MachineError } from "../spec/errors.ts";
import type { MachineDevice } from "../spec/machine.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { expertBytesFor, rankBytes, ranksHere } from "./expert_bytes.ts";

/** Device selection: the best, the CPU by WebAssembly or by compiled C, or adapters by number. */
export type AdapterChoice = "auto" | HostKind | readonly number[];

/** Kinds of CPU devices. */
export type HostKind = "cpu" | "native";

/** Name and functions of a kind of CPU device. */
interface HostRule {
  /** Key of tunings. */
  readonly computer: string;
  readonly maxThreads: number;
  readonly limits: {
    readonly [limit: string]: number;
    readonly memory: number;
  };
  /** Seconds of a launch below which it is not split over threads. */
  readonly grain: number;
  open(
    threads: number,
    options:
      & Pick<
        SelectDevicesOptions,
        "deadlineMs" | "untrusted" | "notice"
      >
      & { readonly expertBytes?: number | undefined },
  ): Promise<HostPool>;
  /** Why there is none on this machine. Undefined if there is one. */
  whyNot(): Promise<string | undefined>;
}

/** CPU devices by name. */
export const HOSTS: { readonly [K in HostKind]: HostRule } = {
  cpu: {
    computer: "CPU device",
    maxThreads: MAX_THREADS,
    limits: CPU_LIMITS,
    grain: SHARE_FROM_MS / 1e3,
    open: (threads, options) => openCpuPool(threads, options),
    whyNot: () => Promise.resolve(undefined),
  },
  native: {
    computer: "native CPU device",
    maxThreads: MAX_NATIVE_THREADS,
    limits: NATIVE_LIMITS,
    grain: SHARE_FROM_NS / 1e9,
    open: (threads, options) => NativePool.open(threads, options),
    whyNot: whyNotNative,
  },
};

/** Limits of a device of a machine file. Undefined: those that every WebGPU device guarantees. */
export function deviceLimits(
  { limits, computer }: Pick<MachineDevice, "limits" | "computer">,
): { readonly [limit: string]: number } | undefined {
  if (limits || computer === undefined || computer === "software") {
    return limits;
  }
  return HOSTS[computer].limits;
}

/** Devices of ranks: one shared device, one device per rank, or one process of an MPI job per rank. */
export type DeviceSharing = "shared" | "separate" | "mpi";

/** The device that `auto` selects on this machine. */
export interface ChosenAdapter {
  readonly adapter: GpuAdapter | HostKind;
  readonly why: string;
}

/**
 * A hardware GPU if there is one, else the native CPU device unless `missing` gives a reason, else the CPU device.
 * Software adapters are used only if named.
 */
export function chooseAdapter(
  adapters: readonly GpuAdapter[],
  missing: string | undefined,
): ChosenAdapter {
  const hardware = adapters.find(({ type }) => type === "hardware");
  if (hardware) return { adapter: hardware, why: "it is a hardware GPU" };
  return missing === undefined
    ? { adapter: "native", why: "there is no hardware GPU" }
    : { adapter: "cpu", why: `there is no hardware GPU, and ${missing}` };
}

/** Options of device selection. */
export interface SelectDevicesOptions {
  /** Whether ranks share a device, have one each, or are processes. Default: shared. */
  readonly sharing?: DeviceSharing;
  /** Kind of device, or adapter numbers. Default: auto. */
  readonly adapter?: AdapterChoice;
  /** Receives a notice for the user. */
  readonly notice?: (text: string) => void;
  /** Whether launches are timed, if the adapter supports it. */
  readonly timestamps?: boolean;
  /** `navigator.gpu` of a browser or Deno. */
  readonly gpu?: GPU;
  /** False: the system has no graphics device, so `auto` skips WebGPU, which is slow and prints warnings there. */
  readonly graphics?: boolean;
  /** Looks up the addresses of adapters with equal names. */
  readonly systemInfo?: () => Promise<AdapterSystemInfo>;
  /** Number of CPU threads; processes of one host divide them. Default: 1. */
  readonly threads?: number;
  /** Deadline in milliseconds for the work submitted to a device at once, at most a run. */
  readonly deadlineMs?: number;
  /** Whether the plan is a file, so that its kernels may be untrusted. */
  readonly untrusted?: boolean;
  /**
   * Maximum memory of experts in this process in bytes. On the native CPU device, they are streamed from their files;
   * other devices have slots for the experts in use. `auto`: the memory that the system has left besides the rest of
   * the plan, unless all experts fit; not on GPUs, whose memory is unknown. On the CPU, more is reduced to it.
   */
  readonly expertMemory?: number | "auto";
}

/** Selected adapters, before the requirements of a plan are known. */
export interface SelectedDevices {
  readonly kind: Device["kind"];
  /** The kind of CPU device. Undefined for adapters. */
  readonly host?: HostKind;
  /** Limits of all of them, which a plan may use. */
  readonly limits: { readonly [limit: string]: number };
  /** Numbers of the adapters assigned to ranks round-robin. Undefined on the CPU. */
  readonly adapters?: readonly number[];
  /** Whether they compute on the CPU. */
  readonly software?: boolean;
  /** Whether the CPU of a native device adds pairs of products of bytes in 16 bits. Default: false. */
  readonly pairs?: boolean | undefined;
  /** Number of CPU threads, on the CPU device and on a software adapter. */
  readonly threads?: number;
  /** Lanes of the vectors of a native device. */
  readonly lanes?: number | undefined;
  /** The adapters with their drivers, or the CPU device: the key of tunings. */
  readonly computer: string;
  /** The job of this process, if ranks are processes. */
  readonly world: MpiWorld | undefined;
  open(plan: Plan): Promise<OpenedDevices>;
}

/** Devices of a session. */
export interface OpenedDevices {
  /** One per rank of this process; the same one for all if shared. */
  readonly devices: readonly Device[];
  /** Bytes of expert slots on each device. Undefined: devices have all experts, or stream them. */
  readonly slotBytes?: number | undefined;
  /** Frees what the devices shared, after all are destroyed. */
  close(): Promise<void>;
}

/** Selects devices. Throws MachineError if an adapter does not exist. */
export async function selectDevices(
  { sharing = "shared", adapter: choice = "auto", ...others }:
    SelectDevicesOptions,
): Promise<SelectedDevices> {
  const options = { ...others, sharing, adapter: choice };
  const world = sharing === "mpi" ? await openWorld() : undefined;
  if (choice === "cpu" || choice === "native") {
    return await selectHost(choice, { ...options, world });
  }
  if (choice === "auto" && options.graphics === false) {
    return await selectHost(await bestHost(), { ...options, world });
  }
  const adapters = await listAdapters({
    ...options.gpu ? { gpu: options.gpu } : {},
    ...options.systemInfo ? { systemInfo: options.systemInfo } : {},
  });
  const list: GpuAdapter[] = [];
  if (choice === "auto") {
    const { adapter } = chooseAdapter(adapters, await HOSTS.native.whyNot());
    if (typeof adapter === "string") {
      return await selectHost(adapter, { ...options, world });
    }
    // Ranks on separate devices are assigned hardware adapters round-robin.
    list.push(
      ...sharing === "shared"
        ? [adapter]
        : adapters.filter(({ type }) => type === "hardware"),
    );
  } else {
    for (const number of choice) list.push(await adapterOf(adapters, number));
  }
  if (sharing === "shared" && list.length > 1) {
    throw new MachineError(
      `Cannot share ${list.length} adapters: with 'shared' all ranks are on one device. Name one adapter, or use separate devices`,
    );
  }
  const software = list.some(({ type }) => type === "software");
  return {
    kind: "gpu",
    adapters: list.map(({ number }) => number),
    software,
    ...software ? { threads: options.threads ?? 1 } : {},
    computer: [...new Set(list.map(driverOf))].join(" + "),
    limits: commonLimits(list),
    world,
    open: async (plan) => {
      const bytes = expertBytesFor(plan, {
        ranks: ranksHere(plan, world),
        expertMemory: options.expertMemory,
      });
      const devices = world
        ? [await openOfRank(plan, list, options, world)]
        : sharing === "shared"
        ? await openShared(plan, list[0]!, options)
        : await openSeparate(plan, list, options);
      return {
        devices,
        slotBytes: slotBytesOf(bytes, devices),
        close: () => Promise.resolve(),
      };
    },
  };
}

async function bestHost(): Promise<HostKind> {
  return await HOSTS.native.whyNot() === undefined ? "native" : "cpu";
}

// Ranks on separate devices of one CPU share the threads and the memory of one pool. Processes have separate pools.
async function selectHost(
  kind: HostKind,
  options: SelectDevicesOptions & { readonly world: MpiWorld | undefined },
): Promise<SelectedDevices> {
  const { sharing, threads = 1, timestamps = false, world } = options;
  const { deadlineMs, untrusted = false, notice, expertMemory } = options;
  const rule = HOSTS[kind];
  const why = await rule.whyNot();
  if (why !== undefined) {
    throw new MachineError(
      `Cannot use --adapter ${kind}: ${why}. Install it, or use --adapter cpu`,
    );
  }
  const compiler = kind === "native" ? await findCompiler() : undefined;
  const share = Math.min(
    rule.maxThreads,
    Math.max(1, Math.floor(threads / (world?.localSize ?? 1))),
  );
  return {
    kind: "cpu",
    host: kind,
    computer: `${rule.computer}, ${share} thread${share === 1 ? "" : "s"}`,
    threads: share,
    pairs: compiler?.pairs,
    lanes: compiler?.lanes,
    limits: rule.limits,
    world,
    open: async (plan) => {
      const ranks = ranksHere(plan, world);
      const expertBytes = expertBytesFor(plan, {
        kind,
        ranks,
        expertMemory,
        sharing: world?.localSize,
        notice: (world?.localRank ?? 0) === 0 ? notice : undefined,
      });
      checkMemory(plan, { ranks, rule, expertBytes });
      const pool = await rule.open(share, {
        expertBytes,
        ...deadlineMs === undefined ? {} : { deadlineMs },
        untrusted,
        ...notice && (world?.localRank ?? 0) === 0 ? { notice } : {},
      });
      const one = new HostDevice(pool, { timestamps });
      const devices = ranks.map((_, n) =>
        n === 0 || sharing === "shared"
          ? one
          : new HostDevice(pool, { timestamps })
      );
      return {
        devices,
        ...pool.streams ? {} : { slotBytes: slotBytesOf(expertBytes, devices) },
        close: () => pool.close(),
      };
    },
  };
}

/** The share of each device in a memory limit of experts. */
function slotBytesOf(
  expertBytes: number | undefined,
  devices: readonly Device[],
): number | undefined {
  return expertBytes && Math.floor(expertBytes / new Set(devices).size);
}

function checkMemory(
  plan: Plan,
  at: {
    readonly ranks: readonly number[];
    readonly rule: HostRule;
    readonly expertBytes: number | undefined;
  },
): void {
  const { memory } = at.rule.limits;
  const { all, experts } = rankBytes(plan, at.ranks);
  const bytes = at.expertBytes === undefined
    ? all
    : all - experts + Math.min(experts, at.expertBytes);
  if (bytes <= memory) return;
  const limits = at.expertBytes === undefined && experts > bytes - memory;
  throw new MachineError(
    `Cannot run the plan on the CPU: its ranks need ${bytes} bytes, and the ${at.rule.computer} has ${memory}. ${
      limits
        ? "Limit the memory of experts with --expert-memory auto, use a GPU"
        : "Use a GPU"
    }, or smaller bounds`,
  );
}

// The device of this process: adapters are assigned to the processes of a host round-robin.
async function openOfRank(
  plan: Plan,
  list: readonly GpuAdapter[],
  options: SelectDevicesOptions,
  { rank, localRank, localSize }: MpiWorld,
): Promise<Device> {
  const { notice, ...rest } = options;
  checkSharing(list, localSize, {
    ...rest,
    ...notice && localRank === 0 ? { notice } : {},
  });
  return await openDevice(plan, list[localRank % list.length]!, {
    ...options,
    label: `rank ${rank}`,
  });
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
    ...options.deadlineMs === undefined
      ? {}
      : { deadlineMs: options.deadlineMs },
  });
}

function driverOf(adapter: GpuAdapter): string {
  const { name, vendor, architecture, description } = adapter;
  return [name, vendor, architecture, description].filter((text) => text)
    .join(", ");
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

async function adapterOf(
  adapters: readonly GpuAdapter[],
  number: number,
): Promise<GpuAdapter> {
  const adapter = adapters[number];
  if (adapter) return adapter;
  const twins = adapters.find(({ twins }) => twins !== undefined);
  if (twins) {
    throw new MachineError(
      `Cannot use adapter ${number}: it is not in the list. ${
        cannotTell(twins)
      }`,
    );
  }
  throw new MachineError(
    `Cannot use adapter ${number}: this machine has ${
      adapters.length === 0
        ? await withoutAdapter()
        : `${adapters.length}, numbered from 0. See 'switchyard devices'`
    }`,
  );
}

/**
 * Reports ranks that share an adapter, because they are slower than expected. It is an error if the user named as many
 * adapters as ranks, or if there are more that cannot be distinguished.
 */
export function checkSharing(
  list: readonly GpuAdapter[],
  ranks: number,
  options: Pick<SelectDevicesOptions, "adapter" | "notice">,
): void {
  const used = list.slice(0, ranks);
  const different = new Set(used.map(({ number }) => number)).size;
  if (different >= ranks) return;
  if (list.length >= ranks) {
    throw new MachineError(
      `Cannot give ${ranks} ranks an adapter each: the list names only ${different} different. Name ${ranks} different adapters, or fewer to share them`,
    );
  }
  const twins = used.find(({ twins }) => twins !== undefined);
  if (twins && options.adapter === "auto") {
    throw new MachineError(
      `Cannot give ${ranks} ranks an adapter each: only ${different} can be opened. ${
        cannotTell(twins)
      }, or share it by --adapter ${twins.number}`,
    );
  }
  options.notice?.(
    `${ranks} ranks share ${different} adapter${different === 1 ? "" : "s"}: ${
      used.map(({ name }) => name).join(", ")
    }${twins ? `. ${cannotTell(twins)}` : ""}`,
  );
}

/** Why existing adapters are not in the list. */
function cannotTell({ name, twins }: GpuAdapter): string {
  return `There are ${twins} adapters named '${name}', and they cannot be distinguished. Install Mesa's device-select layer (Debian package mesa-vulkan-drivers), or start a process for each with only one visible`;
}
