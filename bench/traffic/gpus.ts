/** Described GPUs: machine files with facts about cores, caches and latencies. Nothing here was measured. */

import { readFileSync } from "node:fs";
import { matrixRate } from "../../engine/planner/simulate/device_time.ts";
import { parseMachine } from "../../spec/mod.ts";
import { type Machine, placeRanks } from "../../spec/machine.ts";

/** Facts that machine files do not have. Latencies are in seconds. */
interface Cores {
  /** The machine file. */
  readonly machine: string;
  readonly name: string;
  /** Multiprocessors or compute units, and their clock in Hz. */
  readonly cores: number;
  readonly clock: number;
  /** A load from device memory that is idle, and from one at full bandwidth (assumed). */
  readonly idle: number;
  readonly loaded: number;
  /** A load from L2, from L1, and from workgroup memory. A barrier waits for two of the last. */
  readonly l2: number;
  readonly near: number;
  readonly shared: number;
  /** Per core: instructions of warps issued per cycle; warps and workgroups at once; bytes per cycle from L2. */
  readonly issue: number;
  /** Cycles from one instruction of a warp to its next, if it waits for none. */
  readonly apart: number;
  /** Whether instructions that access memory are issued at once with those of other warps. */
  readonly beside: boolean;
  readonly warps: number;
  readonly groups: number;
  readonly port: number;
  /** Bytes of the last cache that all cores share. */
  readonly cache: number;
  /** Words of workgroup memory per core. */
  readonly words: number;
  /** Lanes of a subgroup. */
  readonly subgroup: number;
  /** Share of the rate of matrix units that subgroup matrices reach. Assumed. */
  readonly multiplies: number;
}

/** A described GPU. Rates are per second. */
export interface Gpu extends Omit<Cores, "machine" | "multiplies"> {
  readonly machine: Machine;
  readonly bandwidth: number;
  /** Share of it that long reads reach. */
  readonly reachable: number;
  /** Multiply-adds of matrix units with 16-bit operands, and the share that subgroup matrices reach. */
  readonly matrix: { readonly rate: number; readonly reachable: number };
  readonly multiplyAdds: number;
  /** Seconds of launching a kernel. */
  readonly launch: number;
}

/** Boost clocks in Hz. */
const H100_CLOCK = 1.755e9, RTX4090_CLOCK = 2.52e9, MI300X_CLOCK = 2.1e9;

/**
 * Latencies of NVIDIA GPUs in cycles: arXiv:2402.13499, "Benchmarking and Dissecting the Nvidia Hopper GPU
 * Architecture". Cores and caches: data sheets. Those of the MI300X: L1 as on an MI210
 * (github.com/te42kyfo/gpu-benches, gpu-latency: 125 cycles); workgroup memory as on an MI308X, whose compute units are
 * the same (github.com/tingqli/pyhip, docs/mem_latency.md: 50 to 64 cycles); L2 and device memory are assumed, about a
 * tenth above pointer chases on an MI300X (github.com/sarchlab/mgpusim, calibration/mi300x_ground_truth.csv: 199 ns in
 * 8 to 64 MB, 314 to 332 ns in 384 MB to 4 GB). Its waves of 64 lanes count as two warps, of which the four SIMDs of a
 * compute unit issue two per cycle: a SIMD of 16 lanes executes a wave in 4 cycles. In its turn, a SIMD issues an
 * instruction of several waves each: a vector instruction, also that of a matrix, an access of memory, and one of
 * workgroup memory (ROCm Compute Profiler, Pipeline descriptions: VALU, Scheduler).
 */
const CORES = {
  h100: {
    machine: "8xh100",
    name: "H100 SXM5",
    cores: 132,
    clock: H100_CLOCK,
    idle: 479 / H100_CLOCK,
    loaded: 700e-9,
    l2: 263 / H100_CLOCK,
    near: 35 / H100_CLOCK,
    shared: 35 / H100_CLOCK,
    issue: 4,
    apart: 2,
    beside: false,
    warps: 64,
    groups: 32,
    port: 64,
    cache: 50e6,
    words: 57_344,
    subgroup: 32,
    // The full rate needs instructions of four warps, which subgroup matrices do not use.
    multiplies: 0.62,
  },
  rtx4090: {
    machine: "1x24gb",
    name: "RTX 4090",
    cores: 128,
    clock: RTX4090_CLOCK,
    idle: 542 / RTX4090_CLOCK,
    loaded: 500e-9,
    l2: 273 / RTX4090_CLOCK,
    near: 37 / RTX4090_CLOCK,
    shared: 37 / RTX4090_CLOCK,
    issue: 4,
    apart: 2,
    beside: false,
    warps: 48,
    groups: 24,
    port: 64,
    cache: 72e6,
    words: 25_600,
    subgroup: 32,
    multiplies: 0.9,
  },
  mi300x: {
    machine: "8xmi300x",
    name: "MI300X",
    cores: 304,
    clock: MI300X_CLOCK,
    idle: 350e-9,
    loaded: 800e-9,
    l2: 220e-9,
    near: 125 / MI300X_CLOCK,
    shared: 60 / MI300X_CLOCK,
    issue: 2,
    apart: 4,
    beside: true,
    warps: 64,
    groups: 32,
    port: 64,
    cache: 256e6,
    words: 16_384,
    subgroup: 64,
    multiplies: 0.9,
  },
} as const satisfies { readonly [gpu: string]: Cores };

/** Name of a described GPU. */
export type GpuName = keyof typeof CORES;

/** Names of the described GPUs. */
export const GPU_NAMES = Object.keys(CORES) as readonly GpuName[];

/** Whether a GPU of this name is described. */
export function isGpuName(name: string): name is GpuName {
  return Object.hasOwn(CORES, name);
}

/** A described GPU, with the rates of its machine file. */
export function describedGpu(gpu: GpuName): Gpu {
  const { machine: file, multiplies, ...cores } = CORES[gpu];
  const machine = parseMachine(
    readFileSync(
      new URL(`../../machines/${file}.json`, import.meta.url),
      "utf8",
    ),
    file,
  );
  const device = machine.devices[placeRanks(machine)[0]!.kind]!;
  const { bandwidth, efficiency = 1, multiplyAdds, launch } = device;
  return {
    ...cores,
    machine,
    bandwidth,
    reachable: efficiency,
    multiplyAdds,
    launch,
    matrix: { rate: matrixRate(device)!, reachable: multiplies },
  };
}
