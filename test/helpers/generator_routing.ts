/** Small launches of the generators of routers and capacity, with all choices of few tokens. */

import {
  type CapacityOptions,
  keep,
  mark,
  marks,
} from "../../compiler/kernels/routing/capacity.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { type Expr, lengthAt } from "../../compiler/kernels/kernel.ts";
import {
  mergeRuns,
  type OrderOptions,
  SORTED_RUN,
  sortRuns,
} from "../../compiler/kernels/routing/order_tokens.ts";
import {
  router,
  type RouterOptions,
} from "../../compiler/kernels/routing/router.ts";
import {
  comparesExperts,
  routerByLanes,
} from "../../compiler/kernels/routing/router_lanes.ts";
import { rowsGrid } from "../../compiler/kernels/rows.ts";
import { slots, slotsGrid } from "../../compiler/kernels/routing/slots.ts";
import type { RoutingRule } from "../../compiler/graph/graph.ts";
import { u32 } from "../../spec/kernel/build.ts";
import { range } from "../../spec/range.ts";
import { sum } from "../../spec/sum.ts";
import { allChoices, type Choices } from "./generator_dispatch.ts";
import { product } from "./generator_sums.ts";
import { type Launch, resultsOf } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

const tokens = lengthAt(0);

/** Capacity groups, by size and by tensor. */
const GROUPS: readonly (Expr | "tensor")[] = [u32(1000), u32(3), "tensor"];

function* sorted(): Generator<
  OrderOptions & { count: number; launch: Launch }
> {
  for (const group of GROUPS) {
    for (const prioritised of [false, true]) {
      for (const count of [0, 1, 2, 3, 64, 65, 130]) {
        const o = { name, tokens, group, prioritised };
        yield {
          ...o,
          count,
          launch: {
            kernel: () => sortRuns(o),
            grid: elementwiseGrid(count),
            reads: {
              group: range(count).map((t) => t * t % 5),
              first: waves(count).map((x) => Math.round(3 * x)),
              lengths: [count],
            },
            stores: { order: count },
          },
        };
      }
    }
  }
}

export function* ofSortRuns(): Generator<Launch> {
  for (const { launch } of sorted()) yield launch;
}

export function* ofMergeRuns(): Generator<Launch> {
  for (const { count, launch, ...o } of sorted()) {
    let order = resultsOf(launch)["order"]!.slice(0, count);
    for (let run = SORTED_RUN; run < Math.max(count, 65); run *= 2) {
      const merge: Launch = {
        ...launch,
        kernel: () => mergeRuns({ ...o, run }),
        reads: { ...launch.reads, order },
        stores: { next: count },
      };
      yield merge;
      order = resultsOf(merge)["next"]!.slice(0, count);
    }
  }
}

const RULE: RoutingRule = {
  preset: "case",
  topK: 1,
  score: "softmax",
  normalize: "none",
};

function capacityOf({ experts, k }: Choices): CapacityOptions {
  return { name, experts, rule: { ...RULE, topK: k }, tokens };
}

export function* ofMark(): Generator<Launch> {
  for (const choices of allChoices()) {
    const { experts, tokens: count, index } = choices;
    for (const masked of [false, true]) {
      yield {
        kernel: () => mark({ ...capacityOf(choices), masked }),
        grid: elementwiseGrid(count),
        reads: {
          index,
          mask: range(count).map((t) => t % 2),
          lengths: [count],
        },
        stores: { mark: experts * count, slot: index.length },
      };
    }
  }
}

export function* ofMarks(): Generator<Launch> {
  for (const choices of allChoices()) {
    const { experts, k, tokens: count, index } = choices;
    for (const dropped of ["nothing", "expert 0", "others"] as const) {
      yield {
        kernel: () =>
          marks({
            ...capacityOf(choices),
            dropped,
            choices: k,
            masked: dropped !== "others",
          }),
        grid: elementwiseGrid(count),
        reads: {
          index,
          mask: range(count).map((t) => t % 2),
          slot: index.map((_, a) => a % 2 - 1),
          lengths: [count],
        },
        stores: { marks: experts * count },
      };
    }
  }
}

export function* ofKeep(): Generator<Launch> {
  for (const k of [1, 2]) {
    for (const count of [0, 1, 2, 65]) {
      for (const normalize of ["none", "kept"] as const) {
        for (const scale of [undefined, 2]) {
          const rule = { ...RULE, topK: k, normalize };
          yield {
            kernel: () =>
              keep({
                name,
                experts: 2,
                tokens,
                rule: scale === undefined ? rule : { ...rule, scale },
              }),
            grid: elementwiseGrid(count),
            reads: {
              slot: range(count * k).map((a) => a % 3 - 1),
              weight: waves(count * k),
              lengths: [count],
            },
            stores: { kept: count * k },
          };
        }
      }
    }
  }
}

export function* ofSlots(): Generator<Launch> {
  for (const choices of allChoices()) {
    const { experts, k, tokens: count, index } = choices;
    if (count < 2 || count === 130) continue;
    const marked = resultsOf({
      kernel: () => mark({ ...capacityOf(choices), masked: false }),
      grid: elementwiseGrid(count),
      reads: { index, lengths: [count] },
      stores: { mark: experts * count, slot: index.length },
    })["mark"]!.slice(0, experts * count);
    for (const drop of ["position", "score", "random"] as const) {
      // Comparing bits takes long.
      if (drop !== "position" && (experts > 2 || k > 1 || count !== 3)) {
        continue;
      }
      for (const order of ["choice", "token"] as const) {
        for (const room of [1, "table", "largest"] as const) {
          const n = sum(index) + order.length + drop.length;
          const group = GROUPS[n % 3]!;
          if (drop !== "position" && (room !== 1 || n % 4 > 0)) continue;
          if (count > 3 && (room !== 1 || group !== GROUPS[2])) continue;
          yield slotsLaunch(choices, marked, { drop, order, room, group });
        }
      }
    }
  }
}

function slotsLaunch(
  choices: Choices,
  marked: Uint32Array,
  { drop, order, room, group }: {
    readonly drop: "position" | "score" | "random";
    readonly order: "choice" | "token";
    readonly room: 1 | "table" | "largest";
    readonly group: Expr | "tensor";
  },
): Launch {
  const { experts, k, tokens: count, index } = choices;
  const size = group === "tensor"
    ? 2
    : Number((group as { value: unknown }).value);
  const groups = Math.ceil(count / size);
  const rule: RoutingRule = {
    ...RULE,
    topK: k,
    capacity: { slots: 1, drop, order },
  };
  const free = (n: number) =>
    room === 1 ? 1 : room === "table" ? 1 + n : Infinity;
  // The last group may have one token; groups by tensor are in reverse order.
  const groupOf = (t: number) =>
    Math.floor((group === "tensor" ? count - 1 - t : t) / size);
  const used = range(groups).flatMap((g) =>
    range(experts).map((e) => {
      const members = range(count).filter((t) => groupOf(t) === g);
      const chosen = index.filter((x, a) =>
        x === e && groupOf(Math.floor(a / k)) === g
      );
      return Math.min(chosen.length, free(members.length));
    })
  );
  return {
    kernel: () =>
      slots({
        name,
        experts,
        rule,
        tokens,
        group,
        ordered: group === "tensor",
        room,
      }),
    grid: slotsGrid(experts, group === "tensor" ? 1 : groups),
    reads: {
      mark: marked,
      order: range(count).reverse(),
      lengths: [count],
      group: range(count).map(groupOf),
      weight: waves(index.length).map((x) => Math.round(2 * x)),
      random: waves(count * experts),
      room: range(count + 1).map(free),
    },
    stores: { slot: { count: sum(used), among: range(index.length) } },
  };
}

/** Routers that cover all differences of their kernels. */
function* routers(): Generator<RouterOptions> {
  const SCORES = [
    "softmax",
    "chosenSoftmax",
    "sigmoid",
    "sqrtSoftplus",
    "none",
  ] as const;
  const NORMALIZED = ["none", "chosen", "kept"] as const;
  for (
    const { score, normalize, experts, topK } of product<
      Pick<RoutingRule, "score" | "normalize" | "topK"> & { experts: number }
    >({
      score: SCORES,
      normalize: NORMALIZED,
      experts: [1, 2, 4],
      topK: [1, 2],
    })
  ) {
    if (topK > experts) continue;
    const rule = { ...RULE, score, normalize, topK };
    const o = { name, experts, rule, tokens };
    yield o;
    yield { ...o, operands: ["bias", "noise"] };
    yield { ...o, operands: ["mask"], rule: { ...rule, scale: 2 } };
    yield {
      ...o,
      operands: ["choices", "weights"],
      rule: { ...rule, choose: "given" },
    };
    yield { ...o, rule: { ...rule, choose: "balanced" }, group: u32(2) };
    yield {
      ...o,
      operands: ["noise", "mask"],
      rule: {
        ...rule,
        noisy: "second",
        epsilon: 1e-9,
        capacity: {
          slots: 1,
          drop: "position",
          order: "choice",
          prioritised: true,
        },
      },
    };
    if (experts < 4) continue;
    for (const best of [1, 2]) {
      const expertGroups = { count: 2, keep: 1, best };
      yield { ...o, rule: { ...rule, expertGroups } };
    }
  }
}

/** Launches of routers, with their options and token counts. */
function* routed(): Generator<
  { readonly o: RouterOptions; readonly count: number; readonly launch: Launch }
> {
  let n = 0;
  for (const o of routers()) {
    const { experts, rule: { topK: k, capacity } } = o;
    for (const count of [[0, 2], [1, 65], [3]][n++ % 3]!) {
      const launch = {
        kernel: () => router(o),
        grid: elementwiseGrid(count),
        reads: {
          // Includes equal logits.
          logits: waves(count * experts).map((x) => Math.round(2 * x)),
          noise: waves(count * experts),
          bias: waves(experts),
          mask: range(count).map((t) => t % 2),
          choices: range(count * k).map((a) => a % experts),
          weights: waves(count * k),
          lengths: [count],
        },
        stores: {
          index: count * k,
          weight: count * k,
          ...capacity?.prioritised ? { first: count } : {},
          ...o.operands?.includes("mask") && !capacity
            ? { slot: count * k }
            : {},
        },
      };
      yield { o, count, launch };
    }
  }
}

export function* ofRouter(): Generator<Launch> {
  for (const { launch } of routed()) yield launch;
}

export function* ofRouterByLanes(): Generator<Launch> {
  for (const { o, count, launch } of routed()) {
    if (!comparesExperts(o)) continue;
    const grid = rowsGrid(count);
    yield { ...launch, kernel: () => routerByLanes(o), grid };
    const { topK: k } = o.rule;
    const rows = count * k;
    if (o.rule.capacity || o.operands?.includes("mask")) continue;
    if (count <= 1) {
      const units = count === 0 ? {} : { units: [0, 1, o.experts] };
      const ordered = count === 0;
      const { name, experts, tokens } = o;
      const assignment = { name, experts, k, tokens, dropping: false, ordered };
      yield {
        ...launch,
        kernel: () =>
          routerByLanes({ ...o, assignment: { ...assignment, ...units } }),
        grid: [1, 1, 1],
        reads: { ...launch.reads, order: range(experts).toReversed() },
        stores: {
          ...launch.stores,
          counts: experts + (count === 0 ? 0 : 2),
          sendRow: rows,
          tokenRow: rows,
          tokenIndices: rows,
        },
      };
    }
    yield {
      ...launch,
      kernel: () => routerByLanes({ ...o, assigns: true }),
      grid,
      stores: {
        ...launch.stores,
        sendRow: rows,
        tokenOf: rows,
        expertOf: rows,
        tiles: rows > 0 ? 1 + 3 * rows : 0,
        rowCount: rows > 0 ? 1 : 0,
      },
    };
  }
}
