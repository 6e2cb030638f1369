/**
 * Creates a machine file from measurements: every rank's location, the rates of each kind of device, and the links
 * between ranks.
 */

import type {
  Machine,
  MachineDevice,
  MachineHost,
  MachineLink,
  MachineLinks,
} from "../../../spec/machine.ts";
import { linkClass, placeRanks } from "../../../spec/machine.ts";
import {
  selectDevices,
  type SelectDevicesOptions,
  type SelectedDevices,
} from "../../devices.ts";
import type { MpiWorld } from "../../../runtime/mpi/mod.ts";
import { openDeviceMeter } from "./measure_device.ts";
import type { DiskOptions } from "./measure_disk.ts";
import {
  exchangeRates,
  type ExchangeWorks,
  exchangeWorks,
} from "./exchange_rates.ts";
import {
  forSizes,
  type LinkTimes,
  openLinkMeter,
  SIZES,
} from "./measure_links.ts";
import { openSyncMeter, type SyncMeter } from "./measure_sync.ts";
import { median, type Meter, withDevices } from "./meter.ts";

/** Options of measuring a machine. */
export interface MeasureMachineOptions
  extends SelectDevicesOptions, DiskOptions {
  /** Ranks in this process. Default: 1, or the number of listed adapters. In a job, one per process. */
  readonly ranks?: number;
  /** Name of this host. */
  readonly host: string;
}

/** A machine that can be measured repeatedly. */
export interface MachineMeter extends Meter<Machine> {
  /** Whether this process reports the result. */
  readonly first: boolean;
  /** The job, if ranks are processes. The caller finishes it. */
  readonly world: MpiWorld | undefined;
}

/** Report of a rank to the others. */
interface RankReport {
  readonly host: string;
  /** Name of its device. Absent: that of the first of its host. */
  readonly name?: string;
  readonly measured?: MachineDevice;
  /** Number of devices of its host that run at full rate at once. */
  readonly atOnce?: number;
  readonly links: LinkTimes | undefined;
  /** For a process with two ranks. */
  readonly two: LinkTimes | undefined;
  /** Seconds. */
  readonly sync: number | undefined;
}

/** Opens the devices of a run with the same options. All processes must call it, and all returned functions. */
export async function openMachineMeter(
  options: MeasureMachineOptions,
): Promise<MachineMeter> {
  const selected = await selectDevices(options);
  const { world, kind } = selected;
  const ranks = world?.size ?? options.ranks ?? selected.adapters?.length ?? 1;
  const host = world?.hosts[world.rank] ?? options.host;
  const communicator = world
    ? "mpi"
    : options.sharing === "shared"
    ? "local"
    : "host";
  const devices = world
    ? await openInTurn(selected, world, options)
    : await openEach(selected, ranks, options);
  const links = ranks > 1
    ? await openLinkMeter(selected, ranks, options)
    : undefined;
  // A process executes the exchanges of its ranks one after another: the times of two ranks, and of all, give the cost
  // of each.
  const two = ranks > 2 && communicator === "host"
    ? await openLinkMeter(selected, 2, options)
    : links;
  const sync = ranks > 1 && communicator !== "local"
    ? await openSyncMeter(selected, ranks, options)
    : undefined;
  const works = links && communicator === "local"
    ? exchangeWorks(links)
    : undefined;
  const adapters = new Set(selected.adapters).size;
  const atOnce = kind === "cpu"
    ? Math.max(1, Math.floor((options.threads ?? 1) / (selected.threads ?? 1)))
    : selected.software
    ? 1
    : adapters < (world?.localSize ?? ranks)
    ? adapters
    : undefined;
  return {
    first: (world?.rank ?? 0) === 0,
    world,
    measure: async () => {
      const local = await devices.measure();
      const all = await links?.measure();
      const times = {
        links: all,
        two: two === links ? all : await two?.measure(),
        sync: await sync?.measure(),
      };
      const here = local.map((measured): RankReport => ({
        host,
        ...times,
        ...measured === undefined
          ? {}
          : { name: measured.name ?? kind, measured },
        ...atOnce === undefined ? {} : { atOnce },
      }));
      const reports: RankReport[] = world
        ? (await world.gatherTexts(JSON.stringify(here), { what: "measuring" }))
          .flatMap((text) => JSON.parse(text) as RankReport[])
        : here;
      const machine = describe(reports, communicator);
      return rounded(
        communicator === "local"
          ? withExchange(machine, works, all?.all)
          : withSync(machine, reports, sync),
      );
    },
    close: async () => {
      await devices.close();
      await links?.close();
      if (two !== links) await two?.close();
      await sync?.close();
    },
  };
}

/** Measurements are accurate to at most four digits. */
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

/** Devices of ranks. Devices equal to another one of their host are not measured. */
type DevicesMeter = Meter<(MachineDevice | undefined)[]>;

/** The device of every rank of this process: each adapter once, alone. */
async function openEach(
  selected: SelectedDevices,
  ranks: number,
  options: MeasureMachineOptions,
): Promise<DevicesMeter> {
  const { adapters = [] } = selected;
  const meters = new Map<number | undefined, Meter<MachineDevice>>();
  if (new Set(adapters).size < 2) {
    meters.set(adapters[0], await openDeviceMeter(selected, options));
  } else {
    for (const number of new Set(adapters.slice(0, ranks))) {
      const alone = await selectDevices({ ...options, adapter: [number] });
      meters.set(number, await openDeviceMeter(alone, options));
    }
  }
  return {
    measure: async () => {
      const measured = new Map<number | undefined, MachineDevice>();
      for (const [number, meter] of meters) {
        measured.set(number, await meter.measure());
      }
      return Array.from(
        { length: ranks },
        (_, rank) => measured.get(adapters[rank % adapters.length]),
      );
    },
    close: async () => {
      for (const { close } of meters.values()) await close();
    },
  };
}

/** This rank's device, opened and measured while no other rank of its host measures. */
async function openInTurn(
  selected: SelectedDevices,
  world: MpiWorld,
  options: MeasureMachineOptions,
): Promise<DevicesMeter> {
  const sizes = await world.gatherTexts(String(world.localSize), {
    what: "measuring",
  });
  // The cores of a host are equal; its adapters may differ.
  const perHost = selected.kind === "cpu" ? 1 : Math.max(...sizes.map(Number));
  const oneAtATime = async <T>(
    work: () => Promise<T>,
  ): Promise<T | undefined> => {
    let result: T | undefined;
    for (let localRank = 0; localRank < perHost; localRank++) {
      if (localRank === world.localRank) result = await work();
      await world.barrier(world, { what: "measuring", deadlineMs: 600_000 });
    }
    return result;
  };
  const meter = await oneAtATime(() => openDeviceMeter(selected, options));
  return {
    measure: async () => [await oneAtATime(async () => await meter!.measure())],
    close: async () => {
      await meter?.close();
    },
  };
}

/** The machine with the exchange rates between ranks of its device. */
function withExchange(
  machine: Machine,
  works: ExchangeWorks | undefined,
  times: LinkTimes["all"] | undefined,
): Machine {
  if (!works || !times) return machine;
  return withDevices(machine, (device) => ({
    ...device,
    exchange: exchangeRates(works, times, device),
  }));
}

/** The machine with the time of its devices between exchanges. */
function withSync(
  machine: Machine,
  reports: readonly RankReport[],
  meter: SyncMeter | undefined,
): Machine {
  const times = reports.flatMap(({ sync }) => sync ?? []);
  if (!meter || times.length === 0) return machine;
  const sync = meter.sync(Math.max(...times), machine);
  return withDevices(machine, (device) => ({ ...device, sync }));
}

function describe(
  reports: readonly RankReport[],
  communicator: "local" | "host" | "mpi",
): Machine {
  const devices: { [kind: string]: MachineDevice } = {};
  for (const { name, measured } of reports) {
    if (name !== undefined && measured) devices[name] ??= measured;
  }
  const hosts: MachineHost[] = [];
  const names = [...new Set(reports.map(({ host }) => host))];
  for (const name of names) {
    const here = reports.filter(({ host }) => host === name);
    const { atOnce } = here[0]!;
    const kindOf = (rank: RankReport) => rank.name ?? here[0]!.name!;
    const shared = communicator === "local";
    hosts.push({
      name,
      devices: shared
        ? [{ kind: kindOf(here[0]!), ranks: here.length }]
        : here.map((rank) => ({ kind: kindOf(rank) })),
      ...atOnce === undefined ? {} : { atOnce },
    });
  }
  const times = slowest(reports.flatMap(({ links }) => links ?? []));
  const { two } = reports[0]!;
  const machine: Machine = {
    version: 1,
    name: names.length === 1 ? names[0]! : `${names.length} hosts`,
    source: `Measured with ${reports.length} rank${
      reports.length === 1 ? "" : "s"
    } by 'switchyard devices --all'.`,
    devices,
    hosts,
    links: {},
  };
  if (!times) return machine;
  const { pairs, rows, rowBytes } = times;
  const bytes = (rows.many - 1) * rowBytes;
  return {
    ...machine,
    links: communicator === "local"
      ? {}
      : linksOf(machine, times, communicator === "mpi" ? undefined : two),
    measured: {
      communicator,
      latency: pairs.one,
      bandwidth: pairs.one.map((row, a) =>
        row.map((one, b) =>
          a === b ? 0 : bytes / transferTime(pairs.many[a]![b]!, one)
        )
      ),
    },
  };
}

/** Measurements of every rank: an exchange ends when its slowest rank is done. */
function slowest(all: readonly LinkTimes[]): LinkTimes | undefined {
  const [first] = all;
  if (!first) return undefined;
  type Size = keyof LinkTimes["all"];
  const pairs = (size: Size) =>
    first.pairs[size].map((row, a) =>
      row.map((_, b) =>
        Math.max(...all.map(({ pairs }) => pairs[size][a]![b]!))
      )
    );
  const every = (size: Size) => Math.max(...all.map(({ all }) => all[size]));
  return {
    ...first,
    pairs: forSizes(pairs),
    all: forSizes(every),
    gather: Math.max(...all.map(({ gather }) => gather)),
  };
}

/** The median of the pairs of each class. Exchanges of all ranks show how bandwidth is shared: `per`. */
function linksOf(
  machine: Machine,
  times: LinkTimes,
  two: LinkTimes | undefined,
): MachineLinks {
  const placements = placeRanks(machine);
  const ranks = placements.length;
  const links: { -readonly [C in keyof MachineLinks]: MachineLink } = {};
  const pairs = placements.flatMap((a, i) =>
    placements.flatMap((b, j) =>
      i < j ? [{ i, j, class: linkClass(a, b) }] : []
    )
  );
  const oneClass = new Set(pairs.map((pair) => pair.class)).size === 1;
  // Exchanges of all ranks resemble a run most, but are usable only if all their links are equal.
  const together = oneClass && ranks > 2;
  for (const name of new Set(pairs.map((pair) => pair.class))) {
    const here = pairs.filter((pair) => pair.class === name);
    const pair = (size: keyof LinkTimes["all"]) =>
      median(here.map(({ i, j }) => times.pairs[size][i]![j]!));
    const latency = two?.all.one ?? pair("one");
    const peer = together
      ? Math.max(0, (times.all.one - latency) / (ranks - 2))
      : 0;
    const per = two || !together ? "host" : sharedBy(times, pair, ranks);
    const volume = oneClass
      ? { pair: 1, rank: ranks - 1, host: ranks * ranks }[per]
      : 2;
    const both = two && together ? two.gather : times.gather;
    const gather = {
      latency: both,
      peer: together ? Math.max(0, (times.gather - both) / (ranks - 2)) : 0,
    };
    const size = oneClass ? (n: keyof LinkTimes["all"]) => times.all[n] : pair;
    links[name] = {
      latency,
      gather,
      per,
      peer,
      ...rates(
        SIZES.slice(1).map((n) => ({
          bytes: volume * (times.rows[n] - 1) * times.rowBytes,
          seconds: transferTime(size(n), size("one")),
        })),
      ),
    };
  }
  return links;
}

/** Moves by duration: the longest determines the bandwidth; the others precede it. */
function rates(
  moves: readonly { readonly bytes: number; readonly seconds: number }[],
): Pick<MachineLink, "bandwidth" | "short"> {
  const longest = moves.at(-1)!;
  // Times that decrease with more bytes are noise and are dropped.
  const short = moves.filter(({ bytes, seconds }, i) =>
    bytes > 0 &&
    moves.slice(i + 1).every((next) =>
      bytes < next.bytes && seconds < next.seconds
    )
  ).slice(0, -1);
  const last = short.at(-1);
  return {
    bandwidth: (longest.bytes - (last?.bytes ?? 0)) /
      (longest.seconds - (last?.seconds ?? 0)),
    ...last ? { short } : {},
  };
}

/**
 * Twice as long as a pair: each pair has its own bandwidth; as long as its peers: a rank's; as long as all pairs: the
 * host's.
 */
function sharedBy(
  { all }: LinkTimes,
  pair: (size: keyof LinkTimes["all"]) => number,
  ranks: number,
): MachineLink["per"] {
  const measured = transferTime(all.many, all.one) /
    transferTime(pair("many"), pair("one"));
  const shares = { pair: 1, rank: ranks - 1, host: ranks * (ranks - 1) / 2 };
  const away = (per: MachineLink["per"]) =>
    Math.abs(Math.log(measured / shares[per]));
  return (["pair", "rank", "host"] as const).reduce((best, next) =>
    away(next) < away(best) ? next : best
  );
}

/** The transfer time of a long exchange relative to a short one. If noise hides it, a fraction of the measured time. */
function transferTime(long: number, short: number): number {
  return Math.max(1e-9, long - short, long / 4);
}
