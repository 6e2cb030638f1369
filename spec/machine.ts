/**
 * A machine as a file: what computes, where ranks live, and how they reach each other. It is small enough to be written
 * by hand for a machine that nobody has. `machine.md` says what the numbers mean.
 */

import { DataError } from "./errors.ts";
import type { Line, NonEmpty, NonNegative, PositiveNumber } from "./values.ts";
import { machineErrors } from "./document/machine_validator.ts";
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

/** What a device does in a second, and what it takes besides. Times are seconds. */
export interface MachineDevice {
  /** Name for people. */
  readonly name?: Line;
  /** A CPU device, or an adapter that computes on the CPU: plans have the kernel variants for it. Default: a GPU. */
  readonly computer?: "cpu" | "native" | "software";
  /** WebGPU limits that a plan for it may use. Default: those that every device has. */
  readonly limits?: { readonly [limit: string]: NonNegative };
  /** Bytes of memory. Absent: nobody counted. */
  readonly memory?: PositiveNumber;
  /** Multiply-adds a second in a matmul (half of what is called FLOP/s). */
  readonly multiplyAdds: PositiveNumber;
  /** Other operations a second: arithmetic, loads and stores of kernels that are no matmul. */
  readonly operations: PositiveNumber;
  /** Bytes a second between its memory and its kernels. */
  readonly bandwidth: PositiveNumber;
  /** Where everything that its ranks hold fits into so many bytes, this bandwidth holds instead. */
  readonly cache?: {
    readonly bytes: PositiveNumber;
    readonly bandwidth: PositiveNumber;
  };
  /** Bytes a second of weights that a kernel reads and hardly uses again, as a matmul of a few rows does. Default: `bandwidth`. */
  readonly reading?: PositiveNumber;
  /** Bytes a second of states, as attention of a few tokens reads their keys and values. Default: `bandwidth`. */
  readonly attending?: PositiveNumber;
  /** Time that every launch takes, however little it does. */
  readonly launch: NonNegative;
  /** Time that every run of a program takes besides its steps: inputs written, outputs read. Default: 0. */
  readonly run?: NonNegative;
  /** Workgroups that it works on at a time; fewer leave a part of it idle. Default: 1. */
  readonly parallel?: PositiveNumber;
  /** What a launch has to take on one workgroup's share of the device before the rest joins in. Default: 0. */
  readonly grain?: NonNegative;
  /** What a launch takes besides where the rest does join in. Default: 0. */
  readonly join?: NonNegative;
  /** What the host takes at an exchange that comes after launches, to learn that they are done and to start the next. Default: 0. */
  readonly sync?: NonNegative;
  /** What kernels take that move rows between ranks of this device, for a launch and in a second. Default: as others do. */
  readonly exchange?: {
    readonly launch: NonNegative;
    readonly operations: PositiveNumber;
  };
  /** Copies between the device and its host, where an exchange goes through the host. Absent: links include them. */
  readonly staging?: {
    readonly latency: NonNegative;
    readonly bandwidth: PositiveNumber;
  };
}

/** Devices of one kind on a host. */
export interface MachinePlace {
  /** A name in `devices`. */
  readonly kind: Line;
  /** Devices. Default: 1. */
  readonly count?: MachineCount;
  /** Ranks that share each of them. Default: 1. */
  readonly ranks?: MachineCount;
}

/** A host, or several equal ones. */
export interface MachineHost {
  /** Name for people; a number is appended where there are several. */
  readonly name?: Line;
  /** Hosts of this kind. Default: 1. */
  readonly count?: MachineCount;
  readonly devices: NonEmpty<MachinePlace>;
  /** Devices of a host that can run at full rate at once, such as cores. Default: all. */
  readonly atOnce?: PositiveNumber;
}

/** How bytes get from one rank to another. */
export interface MachineLink {
  /** Seconds until the first byte is there. */
  readonly latency: NonNegative;
  /** Seconds of a gather of some numbers of two ranks, and what each further one adds. Default: as an exchange of so many bytes. */
  readonly gather?: {
    readonly latency: NonNegative;
    readonly peer: NonNegative;
  };
  /** Bytes a second, in each direction. */
  readonly bandwidth: PositiveNumber;
  /** What has that bandwidth: each pair of ranks, each rank (its port), or each host, all its ranks together. */
  readonly per: "pair" | "rank" | "host";
  /** How long so many bytes take beyond the latency, the fewest first: between them time grows evenly, and after them by `bandwidth`. Default: none. */
  readonly short?: readonly {
    readonly bytes: PositiveNumber;
    readonly seconds: NonNegative;
  }[];
  /** Seconds that each further rank of an exchange adds to the latency. Default: 0. */
  readonly peer?: NonNegative;
  /** How many times its bandwidth the ranks below a switch can ask for at once. Default: 1. */
  readonly oversubscription?: PositiveNumber;
}

/** Which link two ranks use: inside of a node, of a rack, or across the spine. */
export const LINK_CLASSES = ["sameHost", "otherHost", "otherRack"] as const;

/** One of `LINK_CLASSES`. */
export type LinkClass = (typeof LINK_CLASSES)[number];

/** Links by where the two ranks are. Where all ranks of an exchange share a device, it is kernels of the plan. */
export type MachineLinks = { readonly [C in LinkClass]?: MachineLink };

/** What was measured between all ranks, in the order of ranks, [from][to]; 0 from a rank to itself. */
export interface MeasuredLinks {
  /** `local`, `host` or `mpi`. */
  readonly communicator: Line;
  /** Seconds of the shortest exchange between two ranks. */
  readonly latency: readonly (readonly NonNegative[])[];
  /** Bytes a second of a long one, in each direction. */
  readonly bandwidth: readonly (readonly NonNegative[])[];
}

/** The document. */
export interface Machine {
  readonly version: 1;
  readonly name: Line;
  /** Where the numbers come from. */
  readonly source?: Line;
  readonly devices: { readonly [kind: string]: MachineDevice };
  readonly hosts: NonEmpty<MachineHost>;
  /** Hosts of a rack, in order. Default: all are in one. */
  readonly rack?: MachineCount;
  readonly links: MachineLinks;
  readonly measured?: MeasuredLinks;
}

/** Where a rank lives. */
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

/** Read a machine file. Throws a DataError that names the place of a mistake. */
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
  const [first] = machineErrors(document);
  if (first !== undefined) {
    const { instancePath, keyword, params, message } = first;
    const state = keyword === "additionalProperties"
      ? `has an unknown field '${params["additionalProperty"]}'`
      : keyword === "required"
      ? `has no field '${params["missingProperty"]}'`
      : keyword === "enum"
      ? `must be one of ${(params["allowedValues"] as string[]).join(", ")}`
      : message ?? keyword;
    throw new DataError(
      `${cannot}: '${instancePath || "/"}' ${state}. See spec/machine.md`,
    );
  }
  const machine = document as Machine;
  checkPlaces(machine, cannot);
  return machine;
}

function checkPlaces(machine: Machine, cannot: string): void {
  for (const { devices } of machine.hosts) {
    for (const { kind } of devices) {
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
      `${cannot}: it has places for ${ranks} ranks, and a plan has at most ${MAX_RANKS}. Describe a part of it`,
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
      `${cannot}: '/measured/${name}' is not ${ranks} by ${ranks}, as many as there are places for ranks. Measure the machine again`,
    );
  }
}

/** How many ranks a machine has places for. */
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

/** Where each rank lives: hosts in order, their devices in order, the ranks of a device one after the other. */
export function placeRanks(machine: Machine): RankPlacement[] {
  const places: RankPlacement[] = [];
  let device = 0;
  let host = 0;
  for (const { name = "host", count = 1, devices } of machine.hosts) {
    for (let h = 0; h < count; h++, host++) {
      const hostName = count > 1 ? `${name}${h}` : name;
      for (const { kind, count: many = 1, ranks = 1 } of devices) {
        for (let d = 0; d < many; d++, device++) {
          for (let r = 0; r < ranks; r++) {
            const rack = Math.floor(host / (machine.rack ?? Infinity));
            places.push({ kind, device, host, hostName, rack });
          }
        }
      }
    }
  }
  return places;
}

/** Which link two ranks use. */
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

/** The JSON text of a machine, one device, host and link a line. */
export function stringifyMachine(machine: Machine): string {
  const fields = Object.entries(machine).map(([key, value]) => {
    const spread = typeof value === "object" && value !== null
      ? Object.entries(value).map(([name, item]) =>
        `    ${Array.isArray(value) ? "" : `${JSON.stringify(name)}: `}${
          JSON.stringify(item)
        }`
      )
      : undefined;
    const [open, close] = Array.isArray(value) ? "[]" : "{}";
    return `  ${JSON.stringify(key)}: ${
      !spread
        ? JSON.stringify(value)
        : spread.length === 0
        ? `${open}${close}`
        : `${open}\n${spread.join(",\n")}\n  ${close}`
    }`;
  });
  return `{\n${fields.join(",\n")}\n}\n`;
}
