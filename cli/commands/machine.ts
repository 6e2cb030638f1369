/** `switchyard devices --all`: the measured speed of a run's devices and of the exchanges between its ranks. */

import { hostname } from "node:os";
import { openMachineMeter } from "../../engine/mod.ts";
import {
  type Machine,
  type MachineDevice,
  placeRanks,
  stringifyMachine,
} from "../../spec/mod.ts";
import { timeText } from "../../spec/time_text.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags } from "../flags.ts";
import { joinAsRank } from "../rank.ts";
import { formatTable } from "../table.ts";
import { finishLine, UsageError } from "../values.ts";
import { deviceOptions } from "./options.ts";

/** Flags of `devices --all`. */
export interface MachineFlags extends DeviceFlags {
  readonly ranks?: number;
  /** Number of repetitions of each measurement. */
  readonly repetitions?: number;
  readonly out?: string;
  readonly json?: boolean;
}

/** Measures the machine, prints the result and saves it to a machine file. */
export async function machineCommand(
  io: CliIo,
  flags: MachineFlags,
): Promise<number> {
  if (flags.devices === "mpi") {
    if (flags.ranks !== undefined) {
      throw new UsageError(
        "Cannot use --ranks with --devices mpi: each process is a rank. Leave it out",
      );
    }
    await joinAsRank(io, flags);
  }
  const { first, world, measure, close } = await openMachineMeter({
    ...deviceOptions(io, flags),
    ...flags.ranks === undefined ? {} : { ranks: flags.ranks },
    ...flags.repetitions === undefined
      ? {}
      : { repetitions: flags.repetitions },
    host: hostname(),
    now: io.now,
  });
  const machine = await measure();
  if (first) {
    const text = stringifyMachine(machine);
    if (flags.out !== undefined) {
      await io.files.write(flags.out, [new TextEncoder().encode(text)]);
    }
    await io.out(flags.json ? text : formatMachine(machine));
  }
  await close();
  await world?.finish();
  if (first && flags.job !== undefined) {
    await io.out(`${finishLine(flags.job)}\n`);
  }
  return 0;
}

function formatMachine(machine: Machine): string {
  const placements = placeRanks(machine);
  const { measured } = machine;
  const matrix = (title: string, cell: (a: number, b: number) => string) => [
    "",
    ...formatTable([
      [title, ...placements.map((_, b) => `rank ${b}`)],
      ...placements.map((_, a) => [
        `rank ${a}`,
        ...placements.map((_, b) => a === b ? "-" : cell(a, b)),
      ]),
    ]),
  ];
  return [
    ...formatTable(
      [
        ["rank", "host", "device"],
        ...placements.map(({ hostName, kind }, rank) => [
          `${rank}`,
          hostName,
          kind,
        ]),
      ],
      "left",
    ),
    "",
    ...formatTable([
      [
        "device",
        "matmul",
        "other operations",
        "memory",
        "disk",
        "launch",
        "workgroups at once",
      ],
      ...Object.entries(machine.devices).map(deviceRow),
    ]),
    ...measured
      ? [
        ...matrix(
          `to (${measured.communicator}), GB/s`,
          (a, b) => (measured.bandwidth[a]![b]! / 1e9).toFixed(2),
        ),
        ...matrix("latency", (a, b) => timeText(measured.latency[a]![b]!)),
      ]
      : [],
    "",
  ].join("\n");
}

function deviceRow([kind, device]: [string, MachineDevice]): string[] {
  const { multiplyAdds, operations, bandwidth, launch, parallel = 1 } = device;
  const { disk } = device;
  return [
    kind,
    `${(2 * multiplyAdds / 1e9).toFixed(1)} GFLOP/s`,
    `${(operations / 1e9).toFixed(1)} G/s`,
    `${(bandwidth / 1e9).toFixed(1)} GB/s`,
    disk === undefined ? "-" : `${(disk / 1e9).toFixed(1)} GB/s`,
    timeText(launch),
    parallel.toFixed(1),
  ];
}
