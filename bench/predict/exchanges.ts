/**
 * Published times of dispatch and combine kernels on eight kinds of machines, and what the simulator predicts from data
 * sheets, a share of them that links reach, and the cost of a message.
 */

import { exchangeSeconds } from "../../engine/planner/simulate/exchange_time.ts";
import type { Machine, MachineLink } from "../../spec/machine.ts";
import { expectedDestinations } from "../../spec/plan/bytes.ts";
import { wireWords } from "../../spec/wire.ts";

/** Links of a machine within a node and between nodes, per GPU. */
interface Links {
  readonly sameHost: MachineLink;
  readonly otherHost: MachineLink;
}

/** Kernels of a publication on a machine. */
interface Kernels {
  readonly name: string;
  readonly links: Links;
  /** `throughput`: 4,096 tokens, once per node. `latency`: 128 tokens, a message per choice. */
  readonly kind: "throughput" | "latency";
  readonly experts: number;
  /** Default: 4,096 or 128. */
  readonly tokens?: number;
  /** In GB/s of the bottleneck, including rows that stay on their rank, or in us. */
  readonly unit: "GB/s" | "us";
  /** Ranks, then dispatch of FP8 rows and combine of bf16 rows, then dispatch of bf16 rows. */
  readonly rows: readonly (readonly [
    ranks: number,
    dispatch: number | undefined,
    combine: number | undefined,
    plain?: number,
  ])[];
}

/** Settings of DeepSeek-V3. */
const HIDDEN = 7168, TOP_K = 8, NODES = 4, RANKS_PER_NODE = 8;

/** Tokens of a message of throughput kernels. */
const MESSAGE_TOKENS = 16;

/** The share of data sheets that NVLink and Infinity Fabric reach, and that 400 Gb/s ports reach. */
const REACHED = { near: 0.62, port: 0.9 };

/** Seconds per message if the processor drives the adapter. */
const MESSAGE = { infiniBand: 0.1e-6, efa: 0.34e-6 };

function links(
  near: number,
  kind: Kernels["kind"],
  { message = 0, per = "rank" }: {
    readonly message?: number;
    readonly per?: MachineLink["per"];
  } = {},
): Links {
  const latency = kind === "latency" ? 3.5e-5 : 1.5e-4;
  return {
    sameHost: { latency, bandwidth: near, efficiency: REACHED.near, per },
    otherHost: {
      latency,
      bandwidth: 50e9,
      efficiency: REACHED.port,
      per: "rank",
      message,
    },
  };
}

const FABRIC = { per: "pair" } as const;

/** The tables of DeepEP's README and docs/legacy.md, and of UCCL-EP's and MORI's README. */
export const PUBLISHED: readonly Kernels[] = [
  {
    name: "DeepEP, H800",
    links: links(200e9, "throughput"),
    kind: "throughput",
    experts: 256,
    unit: "GB/s",
    rows: [[8, 153, 158], [16, 43, 43], [32, 58, 57], [64, 51, 50]],
  },
  {
    name: "DeepEP, H800",
    links: links(200e9, "latency"),
    kind: "latency",
    experts: 288,
    unit: "us",
    rows: [
      ...[[8, 77, 114], [16, 118, 195], [32, 155, 273]] as const,
      ...[[64, 173, 314], [128, 192, 369], [256, 194, 360]] as const,
    ],
  },
  {
    name: "DeepEP 2, Hopper",
    links: links(450e9, "throughput"),
    kind: "throughput",
    experts: 256,
    tokens: 8192,
    unit: "GB/s",
    rows: [[16, 90, 81], [32, 61, 61]],
  },
  {
    name: "DeepEP 2, B200",
    links: links(900e9, "throughput"),
    kind: "throughput",
    experts: 256,
    tokens: 8192,
    unit: "GB/s",
    rows: [[8, 726, 740], [16, 90, 91]],
  },
  {
    name: "UCCL-EP, H200 and EFA",
    links: links(450e9, "throughput", { message: MESSAGE.efa }),
    kind: "throughput",
    experts: 288,
    unit: "us",
    rows: [[8, 500, 973], [16, 1196, 6379], [24, 1633, 6365], [
      32,
      2022,
      4899,
    ]],
  },
  {
    name: "UCCL-EP, H200 and EFA",
    links: links(450e9, "latency", { message: MESSAGE.efa }),
    kind: "latency",
    experts: 288,
    unit: "us",
    rows: [[16, 226, 293], [24, 386, 580], [32, 465, 694]],
  },
  {
    name: "UCCL-EP, B200 and EFA",
    links: links(900e9, "throughput", { message: MESSAGE.efa }),
    kind: "throughput",
    experts: 288,
    unit: "us",
    rows: [[8, 571, 727], [16, 1141, 1965], [24, 1637, 2887], [
      32,
      2072,
      3724,
    ]],
  },
  {
    name: "UCCL-EP, B200 and EFA",
    links: links(900e9, "latency", { message: MESSAGE.efa }),
    kind: "latency",
    experts: 288,
    unit: "us",
    rows: [[16, 228, 318], [24, 448, 566], [32, 406, 617]],
  },
  {
    name: "UCCL-EP, MI300X and InfiniBand",
    links: links(64e9, "throughput", {
      message: MESSAGE.infiniBand,
      ...FABRIC,
    }),
    kind: "throughput",
    experts: 288,
    unit: "GB/s",
    rows: [[8, 260, 304, 295], [16, 74, 78, 82], [32, 60, 60, 61], [
      64,
      52,
      51,
      53,
    ]],
  },
  {
    name: "UCCL-EP, MI300X and InfiniBand",
    links: links(64e9, "latency", { message: MESSAGE.infiniBand, ...FABRIC }),
    kind: "latency",
    experts: 288,
    unit: "us",
    rows: [[8, 65, 92], [16, 136, 207], [32, 224, 341]],
  },
  {
    name: "UCCL-EP, MI300X and Thor 2",
    links: links(64e9, "throughput", {
      message: MESSAGE.infiniBand,
      ...FABRIC,
    }),
    kind: "throughput",
    experts: 288,
    unit: "GB/s",
    rows: [[16, 71, 45, 81], [32, 49, 50, 55]],
  },
  {
    name: "MORI-EP, MI300X",
    links: links(64e9, "latency", FABRIC),
    kind: "latency",
    experts: 256,
    unit: "us",
    rows: [[8, 35, 47], [16, 115, 141], [32, 157, 280]],
  },
];

/** A published time, and the ratio of the predicted to it. */
export interface PublishedTime {
  readonly name: string;
  readonly ranks: number;
  readonly seconds: number;
  readonly ratio: number;
}

/** Predicts all published times. */
export function publishedTimes(): PublishedTime[] {
  return PUBLISHED.flatMap((kernels) =>
    kernels.rows.flatMap(([ranks, ...given]) =>
      given.flatMap((value, i): PublishedTime[] => {
        if (value === undefined) return [];
        const combine = i === 1;
        const what = combine
          ? "combine"
          : i === 2
          ? "bf16 dispatch"
          : "dispatch";
        const format = i === 0 ? "fp8" : "bf16";
        const row = 4 * wireWords(format, HIDDEN);
        const { traffic, logical } = trafficOf(kernels, ranks, row);
        const seconds = kernels.unit === "us"
          ? value * 1e-6
          : logical / (value * 1e9);
        const machine: Machine = {
          version: 1,
          name: kernels.name,
          devices: {
            gpu: { multiplyAdds: 1, operations: 1, bandwidth: 1, launch: 0 },
          },
          hosts: [{ devices: [{ kind: "gpu" }] }],
          links: kernels.links,
        };
        const predicted = exchangeSeconds(machine, { levels: traffic }, "gpu");
        return [{
          name: `${kernels.name}, EP${ranks} ${what}, ${kernels.kind}`,
          ranks,
          seconds,
          ratio: predicted / seconds,
        }];
      })
    )
  );
}

/** Traffic of a rank by link, and the bytes of which publications report the bandwidth. */
function trafficOf(
  { kind, experts, tokens = kind === "latency" ? 128 : 4096 }: Kernels,
  ranks: number,
  row: number,
) {
  const nodes = ranks / RANKS_PER_NODE;
  if (kind === "latency") {
    const each = tokens * TOP_K * row / ranks;
    const far = ranks - RANKS_PER_NODE;
    return {
      logical: tokens * TOP_K * row,
      traffic: {
        sameHost: { peers: 7, bytes: 7 * each },
        otherHost: {
          peers: far,
          bytes: far * each,
          messages: tokens * TOP_K * far / ranks,
        },
      },
    };
  }
  const reached = Math.min(nodes, NODES);
  const local = experts / ranks;
  const splits = Array.from(
    { length: reached * RANKS_PER_NODE + 1 },
    (_, p) => p * local,
  );
  const copies = expectedDestinations(splits, TOP_K);
  const far = tokens * reached * (nodes - 1) / nodes;
  return {
    logical: tokens * row * (nodes === 1 ? copies : reached),
    traffic: {
      sameHost: { peers: 7, bytes: tokens * row * copies * 7 / 8 },
      otherHost: {
        peers: nodes - 1,
        bytes: far * row,
        messages: far / MESSAGE_TOKENS,
      },
    },
  };
}
