/** A machine file from measurements: every rank's place, what each kind of device can do, and the links between ranks. */

import type {
  Machine,
  MachineDevice,
  MachineHost,
  MachineLink,
  MachineLinks,
} from "../../spec/machine.ts";
import { linkClass, placeRanks } from "../../spec/machine.ts";
import {
  selectDevices,
  type SelectDevicesOptions,
  type SelectedDevices,
} from "../devices.ts";
import type { MpiWorld } from "../../runtime/mpi/mod.ts";
import { type LinkTimes, measureLinks } from "./measure_links.ts";
import {
  measureDevice,
  type MeasureOptions,
  median,
} from "./measure_device.ts";

/** How a machine is measured. */
export interface MeasureMachineOptions
  extends SelectDevicesOptions, MeasureOptions {
  /** Ranks in this process; default: 1, or as many as there are adapters in the list. Processes of a job are one each. */
  readonly ranks?: number;
  /** This host's name. */
  readonly host: string;
}

/** What was measured. */
export interface MeasuredMachine {
  readonly machine: Machine;
  /** Whether this process is the one to print it. */
  readonly first: boolean;
  /** Say that this process is done. */
  finish(): Promise<void>;
}

/** What a rank tells the others of itself. */
interface RankReport {
  readonly host: string;
  /** The name of its device. */
  readonly name: string;
  readonly measured?: MachineDevice;
  /** Devices of its host that can run at full rate at once. */
  readonly atOnce?: number;
  readonly links: LinkTimes | undefined;
}

/** Measure the devices and links that a run with the same options would use. Ranks that are processes must all call it. */
export async function measureMachine(
  options: MeasureMachineOptions,
): Promise<MeasuredMachine> {
  const selected = await selectDevices(options);
  const { world, kind } = selected;
  const ranks = world?.size ?? options.ranks ?? selected.adapters?.length ?? 1;
  const host = world?.hosts[world.rank] ?? options.host;
  const own = world
    ? [await measureInTurn(selected, world, options)]
    : await measureEach(selected, ranks, options);
  const links = ranks > 1
    ? await measureLinks(selected, ranks, options)
    : undefined;
  const adapters = new Set(selected.adapters).size;
  const atOnce = kind === "cpu"
    ? Math.max(1, Math.floor((options.threads ?? 1) / (selected.threads ?? 1)))
    : selected.software
    ? 1
    : adapters < (world?.localSize ?? ranks)
    ? adapters
    : undefined;
  const here = own.map((measured): RankReport => ({
    ...{ host, name: measured.name ?? kind, measured, links },
    ...atOnce === undefined ? {} : { atOnce },
  }));
  const reports: RankReport[] = world
    ? (await world.gatherTexts(JSON.stringify(here), { what: "measuring" }))
      .flatMap((text) => JSON.parse(text) as RankReport[])
    : here;
  const communicator = world
    ? "mpi"
    : options.sharing === "shared"
    ? "local"
    : "host";
  return {
    machine: rounded(describe(reports, communicator)),
    first: (world?.rank ?? 0) === 0,
    finish: async () => {
      await world?.finish();
    },
  };
}

/** No measurement is good for more than four digits. */
function rounded(machine: Machine): Machine {
  return JSON.parse(
    JSON.stringify(
      machine,
      (_, value: unknown) =>
        typeof value === "number" && !Number.isInteger(value)
          ? Number(value.toPrecision(4))
          : value,
    ),
  ) as Machine;
}

/** Measure the device of every rank of this process: each adapter once, by itself. */
async function measureEach(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureMachineOptions,
): Promise<MachineDevice[]> {
  const { adapters = [] } = selected;
  if (new Set(adapters).size < 2) {
    const one = await measureDevice(selected, options);
    return new Array<MachineDevice>(ranks).fill(one);
  }
  const measured = new Map<number, MachineDevice>();
  for (const number of new Set(adapters.slice(0, ranks))) {
    const alone = await selectDevices({ ...options, adapter: [number] });
    measured.set(number, await measureDevice(alone, options));
  }
  return Array.from(
    { length: ranks },
    (_, rank) => measured.get(adapters[rank % adapters.length]!)!,
  );
}

/** Measure this rank's device while no other rank of its host measures. */
async function measureInTurn(
  selected: SelectedDevices,
  world: MpiWorld,
  options: MeasureMachineOptions,
): Promise<MachineDevice> {
  let own: MachineDevice | undefined;
  const turns = Math.max(
    ...(await world.gatherTexts(String(world.localSize), {
      what: "measuring",
    })).map(Number),
  );
  for (let turn = 0; turn < turns; turn++) {
    if (turn === world.localRank) own = await measureDevice(selected, options);
    await world.barrier(world, { what: "measuring", deadlineMs: 600_000 });
  }
  return own!;
}

function describe(
  reports: readonly RankReport[],
  communicator: "local" | "host" | "mpi",
): Machine {
  const devices: { [kind: string]: MachineDevice } = {};
  for (const { name, measured } of reports) {
    if (measured) devices[name] ??= measured;
  }
  const hosts: MachineHost[] = [];
  const names = [...new Set(reports.map(({ host }) => host))];
  for (const name of names) {
    const here = reports.filter(({ host }) => host === name);
    const { atOnce } = here[0]!;
    const shared = communicator === "local";
    hosts.push({
      name,
      devices: shared
        ? [{ kind: here[0]!.name, ranks: here.length }]
        : here.map((rank) => ({ kind: rank.name })),
      ...atOnce === undefined ? {} : { atOnce },
    });
  }
  const first = slowest(reports.flatMap(({ links }) => links ?? []));
  const machine: Machine = {
    version: 1,
    name: names.length === 1 ? names[0]! : `${names.length} hosts`,
    source: `Measured with ${reports.length} rank${
      reports.length === 1 ? "" : "s"
    } by 'switchyard devices --all'.`,
    ...{ devices, hosts, links: {} },
  };
  if (!first) return machine;
  const links = communicator === "local" ? {} : linksOf(machine, first);
  const bytes = (first.rows - 1) * first.rowBytes;
  return {
    ...machine,
    links,
    measured: {
      communicator,
      latency: first.short,
      bandwidth: first.short.map((row, a) =>
        row.map((short, b) =>
          a === b ? 0 : bytes / transferTime(first.long[a]![b]!, short)
        )
      ),
    },
  };
}

/** What every rank measured: an exchange is over when its slowest rank is done. */
function slowest(all: readonly LinkTimes[]): LinkTimes | undefined {
  const [first] = all;
  if (!first) return undefined;
  const most = (name: "short" | "long") =>
    first[name].map((row, a) =>
      row.map((_, b) => Math.max(...all.map((links) => links[name][a]![b]!)))
    );
  return {
    ...first,
    ...{ short: most("short"), long: most("long") },
    allShort: Math.max(...all.map(({ allShort }) => allShort)),
    allLong: Math.max(...all.map(({ allLong }) => allLong)),
  };
}

/** The middle of the pairs of each class; what all ranks at once take says what shares the bandwidth. */
function linksOf(machine: Machine, times: LinkTimes): MachineLinks {
  const places = placeRanks(machine);
  const ranks = places.length;
  const links: { -readonly [C in keyof MachineLinks]: MachineLink } = {};
  const pairs = places.flatMap((a, i) =>
    places.flatMap((b, j) => i < j ? [{ i, j, class: linkClass(a, b) }] : [])
  );
  const bytes = (times.rows - 1) * times.rowBytes;
  const oneClass = new Set(pairs.map((pair) => pair.class)).size === 1;
  for (const name of new Set(pairs.map((pair) => pair.class))) {
    const here = pairs.filter((pair) => pair.class === name);
    const latency = median(here.map(({ i, j }) => times.short[i]![j]!));
    const long = median(here.map(({ i, j }) => times.long[i]![j]!));
    const pairTime = transferTime(long, latency);
    const allTime = transferTime(times.allLong, times.allShort);
    const peer = oneClass && ranks > 2
      ? Math.max(0, (times.allShort - latency) / (ranks - 2))
      : 0;
    // Twice as long as a pair: each pair's own; as long as its peers: a rank's; as long as all pairs: the host's.
    const shares = { pair: 1, rank: ranks - 1, host: ranks * (ranks - 1) / 2 };
    const measured = allTime / pairTime;
    const per = oneClass && ranks > 2
      ? (["pair", "rank", "host"] as const).reduce((best, next) =>
        distance(measured, shares[next]) < distance(measured, shares[best])
          ? next
          : best
      )
      : "host";
    const volume = { pair: 1, rank: ranks - 1, host: ranks * (ranks - 1) };
    const bandwidth = oneClass && ranks > 2
      ? volume[per] * bytes / allTime
      : (per === "host" ? 2 : 1) * bytes / pairTime;
    links[name] = { latency, bandwidth, per, peer };
  }
  return links;
}

/** What the bytes of a long exchange take, beyond a short one. Where noise hides that, a part of it at least. */
function transferTime(long: number, short: number): number {
  return Math.max(1e-9, long - short, long / 4);
}

function distance(a: number, b: number): number {
  return Math.abs(Math.log(a / b));
}
