/**
 * A machine file: devices, ranks and links. It is short, so a machine that does not exist can be described by hand.
 * `machine.md` explains the numbers.
 */

import { DataError } from "./errors.ts";
import type {
  Line,
  NonEmpty,
  NonNegative,
  PositiveNumber,
  Share,
} from "./values.ts";
import { machineErrors } from "./document/machine_validator.ts";
import { deepestError, errorText } from "./document/schema_error.ts";
import { MAX_RANKS } from "./limits.ts";
import { JsonError, parseJson } from "./parse_json.ts";

/**
 * A number of hosts, devices or ranks.
 *
 * @integer
 * @minimum 1
 * @maximum 1 << 20
 */
export type MachineCount = number;

/** Dtypes of operands of matrix units. */
const MATRIX_DTYPES = ["bf16", "fp8", "fp4", "int8"] as const;

/** Rates and overheads of a device. Times are seconds. */
export interface MachineDevice {
  /** Display name. */
  readonly name?: Line;
  /** A CPU device, or an adapter that computes on the CPU: plans use the kernel variants for it. Default: a GPU. */
  readonly computer?: "cpu" | "native" | "software";
  /** WebGPU limits for plans. Default: those that every device has. */
  readonly limits?: { readonly [limit: string]: NonNegative };
  /** Bytes of memory. Absent: unknown. */
  readonly memory?: PositiveNumber;
  /** Bytes of it that driver and context need. Default: 0. */
  readonly reserve?: NonNegative;
  /** Multiply-adds per second in a matmul (half the FLOP/s). */
  readonly multiplyAdds: PositiveNumber;
  /**
   * Multiply-adds per second of its matrix units by dtype, from a data sheet. Matmuls with f16 operands have the rate
   * of bf16; plans do not use the others.
   */
  readonly matrix?: {
    readonly [D in typeof MATRIX_DTYPES[number]]?: PositiveNumber;
  };
  /** Other operations per second: arithmetic, loads and stores of kernels other than matmuls. */
  readonly operations: PositiveNumber;
  /** Bytes per second between memory and kernels. */
  readonly bandwidth: PositiveNumber;
  /** Share of that bandwidth that long reads reach. Default: 1. */
  readonly efficiency?: Share;
  /** Cache size, and the bandwidth if all data of its ranks fit. */
  readonly cache?: {
    readonly bytes: PositiveNumber;
    readonly bandwidth: PositiveNumber;
  };
  /** Bandwidth for weights with little reuse, as in a matmul of a few rows. Default: `bandwidth`. */
  readonly reading?: PositiveNumber;
  /** Bandwidth for KV caches in attention of a few tokens. Default: `bandwidth`. */
  readonly attending?: PositiveNumber;
  /** Overhead of a launch. */
  readonly launch: NonNegative;
  /** Overhead of a run: writing inputs, reading outputs. Default: 0. */
  readonly run?: NonNegative;
  /** Concurrent workgroups; fewer leave a part of the device idle. Default: 1. */
  readonly parallel?: PositiveNumber;
  /** Minimum time of a launch on one workgroup's share of the device before it is split. Default: 0. */
  readonly grain?: NonNegative;
  /** Overhead of a split launch. Default: 0. */
  readonly join?: NonNegative;
  /** Host time at an exchange after launches, to detect their end and start the next ones. Default: 0. */
  readonly sync?: NonNegative;
  /** Overhead and rate of kernels that move rows between ranks of this device. Default: those of other kernels. */
  readonly exchange?: {
    readonly launch: NonNegative;
    readonly operations: PositiveNumber;
  };
  /** Bytes per second from a disk, for experts that a native CPU device streams. Absent: unknown. */
  readonly disk?: PositiveNumber;
  /** Copies between the device and its host, for exchanges through the host. Absent: links include them. */
  readonly staging?: {
    readonly latency: NonNegative;
    readonly bandwidth: PositiveNumber;
  };
}

/** Devices of one kind on a host. */
export interface MachineDevices {
  /** A name in `devices`. */
  readonly kind: Line;
  /** Number of devices. Default: 1. */
  readonly count?: MachineCount;
  /** Ranks per device. Default: 1. */
  readonly ranks?: MachineCount;
}

/** A host, or several equal ones. */
export interface MachineHost {
  /** Display name; a number is appended if there are several. */
  readonly name?: Line;
  /** Number of hosts of this kind. Default: 1. */
  readonly count?: MachineCount;
  readonly devices: NonEmpty<MachineDevices>;
  /** The kind of its native CPU device, for plans with experts on disk. Default: that of its devices, if native. */
  readonly processor?: Line;
  /** Devices of a host that can run at full rate at once, such as cores. Default: all. */
  readonly atOnce?: PositiveNumber;
}

/** A link between ranks. */
export interface MachineLink {
  /** Seconds until the first byte arrives. */
  readonly latency: NonNegative;
  /**
   * Seconds of a gather of some numbers between two ranks, and of each further one. Default: those of an exchange of
   * that size.
   */
  readonly gather?: {
    readonly latency: NonNegative;
    readonly peer: NonNegative;
  };
  /** Bytes per second, in each direction. */
  readonly bandwidth: PositiveNumber;
  /** Owner of that bandwidth: each pair of ranks, each rank (its port), or each host, for all its ranks together. */
  readonly per: "pair" | "rank" | "host";
  /**
   * Seconds for some byte counts beyond the latency, ascending: interpolated linearly between them, by `bandwidth`
   * after them. Default: none.
   */
  readonly short?: readonly {
    readonly bytes: PositiveNumber;
    readonly seconds: NonNegative;
  }[];
  /** Share of `bandwidth` that long exchanges reach. Default: 1, for measured bandwidths. */
  readonly efficiency?: Share;
  /** Seconds that each further rank of an exchange adds to the latency. Default: 0. */
  readonly peer?: NonNegative;
  /** Seconds that an adapter spends on each message, if software drives it. Default: 0. */
  readonly message?: NonNegative;
  /** Total bandwidth of the ranks below a switch as a multiple of its own. Default: 1. */
  readonly oversubscription?: PositiveNumber;
}

/** Link classes of two ranks: within a node, within a rack, or across the spine. */
export const LINK_CLASSES = ["sameHost", "otherHost", "otherRack"] as const;

/** One of `LINK_CLASSES`. */
export type LinkClass = (typeof LINK_CLASSES)[number];

/** Links by class. If all ranks of an exchange share a device, it consists of kernels instead. */
export type MachineLinks = { readonly [C in LinkClass]?: MachineLink };

/** Measurements between all ranks, [from][to]; 0 from a rank to itself. */
export interface MeasuredLinks {
  /** `local`, `host` or `mpi`. */
  readonly communicator: Line;
  /** Seconds of the shortest exchange between two ranks. */
  readonly latency: readonly (readonly NonNegative[])[];
  /** Bytes per second of a long exchange, in each direction. */
  readonly bandwidth: readonly (readonly NonNegative[])[];
}

/** The document. */
export interface Machine {
  readonly version: 1;
  readonly name: Line;
  /** Source of the numbers. */
  readonly source?: Line;
  readonly devices: { readonly [kind: string]: MachineDevice };
  readonly hosts: NonEmpty<MachineHost>;
  /** Hosts per rack, in order. Default: all are in one. */
  readonly rack?: MachineCount;
  readonly links: MachineLinks;
  readonly measured?: MeasuredLinks;
}

/** Location of a rank. */
export interface RankPlacement {
  /** A name in `devices`. */
  readonly kind: string;
  /** Number of its device among all devices of the machine. */
  readonly device: number;
  /** Number of its host, and of its rack. */
  readonly host: number;
  readonly rack: number;
  readonly hostName: string;
}

/** Parses a machine file. Throws a DataError with the position of a mistake. */
export function parseMachine(json: string, file = "machine"): Machine {
  const cannot = `Cannot read the machine file '${file}'`;
  let document: unknown;
  try {
    document = parseJson(json);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    const { state, cause } = error;
    const reason = cause instanceof Error ? ` (${cause.message})` : "";
    throw new DataError(
      `${cannot}: it ${state}${reason}. Write it as spec/machine.md says`,
    );
  }
  const version = (document as { version?: unknown } | null)?.version;
  if (typeof version === "number" && version !== 1) {
    throw new DataError(
      `${cannot}: it has version ${version}, and this program reads version 1. Measure the machine again`,
    );
  }
  const error = deepestError(machineErrors(document));
  if (error) {
    throw new DataError(`${cannot}: ${errorText(error)}. See spec/machine.md`);
  }
  const machine = document as Machine;
  checkHosts(machine, cannot);
  return machine;
}

function checkHosts(machine: Machine, cannot: string): void {
  for (const { devices, processor } of machine.hosts) {
    const kinds = devices.map(({ kind }) => kind);
    for (
      const kind of processor === undefined ? kinds : [...kinds, processor]
    ) {
      if (Object.hasOwn(machine.devices, kind)) continue;
      throw new DataError(
        `${cannot}: a host has a device of kind '${kind}', and 'devices' has only ${
          Object.keys(machine.devices).map((k) => `'${k}'`).join(", ") ||
          "nothing"
        }. Describe it there`,
      );
    }
  }
  const ranks = machineRanks(machine);
  if (ranks > MAX_RANKS) {
    throw new DataError(
      `${cannot}: it describes ${ranks} ranks, and a plan has at most ${MAX_RANKS}. Describe a part of it`,
    );
  }
  const { measured } = machine;
  for (const name of ["latency", "bandwidth"] as const) {
    const rows = measured?.[name];
    if (
      !rows ||
      rows.length === ranks && rows.every((row) => row.length === ranks)
    ) continue;
    throw new DataError(
      `${cannot}: '/measured/${name}' is not ${ranks} by ${ranks}, the number of its ranks. Measure the machine again`,
    );
  }
}

/** Bytes of a device's memory for plans; infinite if unknown. */
export function usableMemory(
  { memory = Infinity, reserve = 0 }: MachineDevice,
): number {
  return Math.max(0, memory - reserve);
}

/** Number of ranks of a machine. */
export function machineRanks(machine: Machine): number {
  return machine.hosts.reduce(
    (n, { count = 1, devices }) =>
      n + count * devices.reduce(
          (m, { count = 1, ranks = 1 }) => m + count * ranks,
          0,
        ),
    0,
  );
}

/** The location of each rank: hosts in order, their devices in order, the ranks of a device consecutively. */
export function placeRanks(machine: Machine): RankPlacement[] {
  const placements: RankPlacement[] = [];
  let device = 0;
  let host = 0;
  for (const { name = "host", count = 1, devices } of machine.hosts) {
    for (let h = 0; h < count; h++, host++) {
      const hostName = count > 1 ? `${name}${h}` : name;
      for (const { kind, count: many = 1, ranks = 1 } of devices) {
        for (let d = 0; d < many; d++, device++) {
          for (let r = 0; r < ranks; r++) {
            const rack = Math.floor(host / (machine.rack ?? Infinity));
            placements.push({ kind, device, host, hostName, rack });
          }
        }
      }
    }
  }
  return placements;
}

/** The machine with the native CPU device of each host in place of its devices. Undefined if a host has none. */
export function processorsOf(machine: Machine): Machine | undefined {
  const hosts = machine.hosts.flatMap((host) => {
    const kind = host.processor ?? host.devices[0]!.kind;
    return machine.devices[kind]?.computer !== "native"
      ? []
      : host.processor === undefined
      ? [host]
      : [{ ...host, devices: [{ kind }] as const }];
  });
  const [first, ...others] = hosts;
  return first && hosts.length === machine.hosts.length
    ? { ...machine, hosts: [first, ...others] }
    : undefined;
}

/** The link class of two ranks. */
export function linkClass(
  a: Pick<RankPlacement, "host" | "rack">,
  b: Pick<RankPlacement, "host" | "rack">,
): LinkClass {
  return a.host === b.host
    ? "sameHost"
    : a.rack === b.rack
    ? "otherHost"
    : "otherRack";
}

/** The JSON text of a machine, one device, host and link per line. */
export function stringifyMachine(machine: Machine): string {
  const fields = Object.entries(machine).map(([key, value]) => {
    const lines = typeof value === "object" && value !== null
      ? Object.entries(value).map(([name, item]) =>
        `    ${Array.isArray(value) ? "" : `${JSON.stringify(name)}: `}${
          JSON.stringify(item)
        }`
      )
      : undefined;
    const [open, close] = Array.isArray(value) ? "[]" : "{}";
    return `  ${JSON.stringify(key)}: ${
      !lines
        ? JSON.stringify(value)
        : lines.length === 0
        ? `${open}${close}`
        : `${open}\n${lines.join(",\n")}\n  ${close}`
    }`;
  });
  return `{\n${fields.join(",\n")}\n}\n`;
}
