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
import type { DeviceFlags } from "../flags/flags.ts";
import { joinAsRank } from "../launch/rank.ts";
import { formatTable } from "../table.ts";
import { finishLine, UsageError } from "../flags/values.ts";
import { deviceOptions } from "./options.ts";

/** Flags of `devices --all`. */
export interface MachineFlags extends DeviceFlags {
  readonly ranks?: number;
  /** Number of repetitions of each measurement. */
  readonly repetitions?: number;
  readonly out?: string;
  readonly json?: boolean;
}

/** Milliseconds after which measurements are repeated less often, so that all take at most about 30 s. */
const ENOUGH_MS = 15_000;

/** Spread above which a machine is busy: the range of the middle half of the times over their median. */
const NOISY = 0.5;

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
  const spreads = new Map<string, number>();
  const { first, world, measure, close } = await openMachineMeter({
    ...deviceOptions(io, flags),
    ...flags.ranks === undefined ? {} : { ranks: flags.ranks },
    ...flags.repetitions === undefined
      ? {}
      : { repetitions: flags.repetitions },
    host: hostname(),
    now: io.now,
    // Processes repeat equally often.
    ...flags.devices === "mpi" ? {} : { deadline: io.now() + ENOUGH_MS },
    onSpread: (what, spread) =>
      spreads.set(what, Math.max(spread, spreads.get(what) ?? 0)),
  });
  const machine = await measure();
  if (first) {
    const text = stringifyMachine(machine);
    if (flags.out !== undefined) {
      await io.files.write(flags.out, [new TextEncoder().encode(text)]);
    }
    await io.out(flags.json ? text : formatMachine(machine, spreads));
    const noisy = flags.repetitions === 1
      ? []
      : [...spreads].filter(([, spread]) => spread > NOISY);
    if (noisy.length > 0) {
      io.err(
        `the machine is busy: times vary by ${
          spreadsText(noisy)
        }. Measure again when it is idle`,
      );
    }
  }
  await close();
  await world?.finish();
  if (first && flags.job !== undefined) {
    await io.out(`${finishLine(flags.job)}\n`);
  }
  return 0;
}

/** `12 % (memory), 8 % (matmul)` */
function spreadsText(spreads: Iterable<readonly [string, number]>): string {
  return [...spreads].map(([what, spread]) =>
    `${Math.round(100 * spread)} % (${what})`
  ).join(", ");
}

function formatMachine(
  machine: Machine,
  spreads: ReadonlyMap<string, number>,
): string {
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
    ...Object.values(machine.devices).some(({ disk }) => disk !== undefined)
      ? [
        "",
        "disk: a temporary file. Weights may be read at another rate: measure theirs by 'plan MODEL --target this'",
      ]
      : [],
    "",
    `spread of the middle half of the times: ${spreadsText(spreads)}`,
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
