/**
 * Expert slots in the memory of a device that does not stream experts itself, such as a GPU. Host memory has all
 * experts, usually in files that the system caches. Before a launch, its experts are written to slots.
 */

import { MachineError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import type { Device, DeviceBuffer, Launch, Streaming } from "../device.ts";
import { ExpertCache } from "./expert_cache.ts";
import { type FileSource, readExactly } from "./file_source.ts";
import { wordsOf } from "../host_tensor.ts";

/** Bytes of an expert in a file. */
export interface FilePart {
  readonly source: FileSource;
  readonly offset: number;
  readonly bytes: number;
}

/** A weight of experts in host memory. Only launches of `ExpertSlots` can bind it. */
export class HostExperts implements DeviceBuffer {
  readonly bytes: number;
  readonly experts: number;
  #parts: readonly FilePart[] | undefined;
  #written: Uint8Array = new Uint8Array();
  #version = 0;

  constructor(bytes: number, experts: number) {
    this.bytes = bytes;
    this.experts = experts;
  }

  /** Bytes of an expert. */
  get each(): number {
    return this.bytes / this.experts;
  }

  /** Number of changes. Slots of earlier versions are not used. */
  get version(): number {
    return this.#version;
  }

  /**
   * Sets the experts in files. Returns false if they must be written instead: they are not in files, or this is a later
   * load, whose files may be closed.
   */
  load(parts: readonly FilePart[] | undefined): boolean {
    const areFiled = parts !== undefined && this.#version++ === 0;
    this.#parts = areFiled ? parts : undefined;
    this.#written = new Uint8Array(areFiled ? 0 : this.bytes);
    return areFiled;
  }

  write(offset: number, data: Uint8Array): void {
    this.#version++;
    this.#written.set(data, offset);
  }

  async read(expert: number): Promise<Uint8Array> {
    const part = this.#parts?.[expert];
    return part
      ? await readExactly(part.source, part.offset, part.bytes)
      : this.#written.subarray(expert * this.each, (expert + 1) * this.each);
  }
}

/** The weights of experts of a launch, in the order of its bindings. */
interface Group {
  readonly weights: readonly HostExperts[];
  /** Number of the first expert in caches. */
  readonly first: number;
  /** Version of the weights whose experts are in slots. */
  version: number;
  launches: number;
  pool?: Pool;
}

/** Slots of groups with equal sizes of experts: a buffer for each weight of a launch. */
interface Pool {
  readonly cache: ExpertCache;
  readonly buffers: readonly DeviceBuffer[];
}

/** Launches a kernel after its experts are in slots. */
export type SlottedLaunch = (
  kernel: string,
  workgroups: Launch["workgroups"],
  label?: string,
) => Promise<void>;

/** The slots of a device, shared by all layers. */
export class ExpertSlots {
  readonly #device: Device;
  readonly #groups = new Map<string, Group>();
  readonly #numbers = new Map<HostExperts, number>();
  /** Lists of tiles with slots, by their bytes. */
  readonly #lists = new Map<number, DeviceBuffer>();
  /** Number of experts in caches so far. */
  #experts = 0;
  #left: number;
  #allocated = 0;
  #statistics = { bytesRead: 0, hits: 0, misses: 0, readMs: 0 };
  /** The last launch. Launches run one after another: ranks and pipeline stages share the slots. */
  #last: Promise<void> = Promise.resolve();

  /** `bytes`: maximum memory of all slots. */
  constructor(device: Device, bytes: number) {
    this.#device = device;
    this.#left = bytes;
  }

  /**
   * Binds buffers of a launch. `buffers[tiles]` lists its experts. Undefined if none of them has experts in
   * host memory.
   */
  bind(
    buffers: readonly DeviceBuffer[],
    tiles: number,
  ): SlottedLaunch | undefined {
    const weights = buffers.filter((buffer) => buffer instanceof HostExperts);
    if (weights.length === 0) return undefined;
    const group = this.#groupOf(weights);
    const device = this.#device;
    const { bytes } = buffers[tiles]!;
    const list = this.#lists.get(bytes) ??
      device.createBuffer(bytes, "tiles of slots");
    this.#lists.set(bytes, list);
    let bound: readonly DeviceBuffer[] | undefined;
    return (kernel, workgroups, label) => {
      const launch = async () => {
        const pool = group.pool ?? this.#allocate(group);
        bound ??= Object.freeze(
          buffers.map((buffer, i) =>
            i === tiles
              ? list
              : buffer instanceof HostExperts
              ? pool.buffers[weights.indexOf(buffer)]!
              : buffer
          ),
        );
        const all = wordsOf(await device.read(buffers[tiles]!, 0, bytes));
        for await (const words of this.#rounds(group, pool, all)) {
          device.write(list, 0, new Uint8Array(words.buffer));
          device.launch(kernel, bound, workgroups, label);
          device.submit();
        }
      };
      // A failed launch ends its run; others continue.
      return this.#last = this.#last.catch(() => {}).then(launch);
    };
  }

  /** Statistics so far. */
  statistics(): Streaming {
    // Launches wait for all reads.
    const waitedMs = this.#statistics.readMs;
    return { ...this.#statistics, waitedMs, residentBytes: this.#allocated };
  }

  #groupOf(weights: readonly HostExperts[]): Group {
    for (const weight of weights) {
      if (this.#numbers.has(weight)) continue;
      this.#numbers.set(weight, this.#numbers.size);
    }
    const key = weights.map((weight) => this.#numbers.get(weight)).join();
    const known = this.#groups.get(key);
    if (known) return known;
    const group = { weights, first: this.#experts, version: 0, launches: 0 };
    this.#experts += weights[0]!.experts;
    this.#groups.set(key, group);
    return group;
  }

  /** Allocates slots for all groups without any, by their share of the bytes. Returns those of a group. */
  #allocate(group: Group): Pool {
    const classes = new Map<string, Group[]>();
    for (const other of this.#groups.values()) {
      if (other.pool) continue;
      const key = other.weights.map(({ each }) => each).join();
      classes.set(key, [...classes.get(key) ?? [], other]);
    }
    const all = sum([...classes.values()].flat().map(groupBytes));
    const bytes = this.#left;
    for (const groups of classes.values()) {
      const share = Math.min(1, bytes / all) * sum(groups.map(groupBytes));
      this.#allocatePools(groups, share);
    }
    return group.pool!;
  }

  /** Allocates slots for groups with equal experts, in as few buffers as the device allows. */
  #allocatePools(groups: readonly Group[], share: number): void {
    const { maxStorageBufferBindingSize: limit = Infinity } =
      this.#device.limits;
    const sizes = groups[0]!.weights.map(({ each }) => each);
    const slots = Math.floor(share / sum(sizes));
    const pools = Math.ceil(slots / Math.floor(limit / Math.max(...sizes)));
    const each = Math.floor(slots / pools);
    if (!(each > 0)) {
      throw new MachineError(
        `Cannot keep experts in ${
          Math.floor(share)
        } bytes of device memory: one of a layer needs ${
          sum(sizes)
        }. Give more with --expert-memory`,
      );
    }
    const made = Array.from({ length: pools }, (): Pool => ({
      cache: new ExpertCache(each),
      buffers: sizes.map((bytes) =>
        this.#device.createBuffer(bytes * each, "slots of experts")
      ),
    }));
    groups.forEach((group, i) => group.pool = made[i % pools]!);
    const bytes = pools * each * sum(sizes);
    this.#allocated += bytes;
    this.#left -= bytes;
  }

  /**
   * Lists of tiles with slots instead of experts: first the resident experts, then others, as many as there are slots.
   */
  async *#rounds(
    group: Group,
    { cache, buffers }: Pool,
    all: Uint32Array,
  ): AsyncGenerator<Uint32Array<ArrayBuffer>> {
    const version = sum(group.weights.map((weight) => weight.version));
    if (group.version !== version) {
      group.version = version;
      for (let e = 0; e < group.weights[0]!.experts; e++) {
        cache.forget(group.first + e);
      }
    }
    const byExpert = new Map<number, number[]>();
    for (let tile = 0; tile < all[0]!; tile++) {
      const expert = group.first + all[1 + 3 * tile]!;
      byExpert.set(expert, [...byExpert.get(expert) ?? [], tile]);
    }
    const step = group.launches++;
    for (const expert of byExpert.keys()) cache.use(expert, step);
    const resident = (expert: number) => cache.slot(expert) !== undefined;
    const hits = [...byExpert.keys()].filter(resident);
    let missing = [...byExpert.keys()].filter((expert) => !resident(expert));
    this.#statistics.hits += hits.length;
    this.#statistics.misses += missing.length;
    const listed = (experts: readonly number[]) => {
      const tiles = experts.flatMap((expert) =>
        byExpert.get(expert)!.flatMap((tile) => [
          cache.slot(expert)!,
          all[2 + 3 * tile]!,
          all[3 + 3 * tile]!,
        ])
      );
      return Uint32Array.from([tiles.length / 3, ...tiles]);
    };
    if (hits.length > 0) yield listed(hits);
    while (missing.length > 0) {
      const round = new Set<number>();
      const start = performance.now();
      for (const expert of missing.slice(0, cache.slots)) {
        // A slot has an expert only if all of it was read.
        const read = await Promise.all(
          group.weights.map((weight) => weight.read(expert - group.first)),
        );
        const slot = cache.assign(expert, round)!;
        round.add(expert);
        for (const [i, bytes] of read.entries()) {
          this.#device.write(buffers[i]!, slot * bytes.length, bytes);
          this.#statistics.bytesRead += bytes.length;
        }
      }
      this.#statistics.readMs += performance.now() - start;
      yield listed([...round]);
      missing = missing.filter((expert) => !round.has(expert));
    }
  }
}

function groupBytes({ weights }: Group): number {
  return sum(weights.map(({ bytes }) => bytes));
}
