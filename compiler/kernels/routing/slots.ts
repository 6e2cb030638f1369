/**
 * Slot assignment with capacity: the choices of an expert that get a slot, and their slots. A workgroup processes the
 * choices of an expert in a routing group. Its lanes process consecutive choices, so that an exclusive scan of their
 * counts numbers the slots (counting sort). If choices compete by value, the smallest key with a slot is found first,
 * bit by bit from the highest (radix select).
 */

import type { Size } from "../../../spec/size.ts";
import type { Grid, Kernel, KernelText } from "../kernel.ts";
import { bindings, kernelOf, wgsl } from "../kernel.ts";
import type { CapacityOptions, GroupsBy } from "./capacity.ts";
import { laneShare, sumOfLanes } from "../pieces/counting_sort.ts";
import { orderKey } from "../pieces/order_key.ts";

/** Invocations that share the choices of one expert in one routing group. */
const LANES = 64;

/** The slots. Its grid is `slotsGrid`. */
export interface SlotsOptions extends CapacityOptions {
  readonly group: GroupsBy;
  readonly ordered: boolean;
  /** Slots per expert: a number, from a table, or the number of choices. */
  readonly room: number | "table" | "largest";
}

/** One workgroup per expert in each contiguous group, or per expert in all groups. */
export function slotsGrid(experts: number, groups: Size): Grid {
  return [experts, groups, 1];
}

/** Assigns slots to choices: counts them, selects by value if they compete, and numbers them. */
export function slots(o: SlotsOptions): Kernel {
  const { group, tokens } = o;
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: bindings({
      mark: "u32 [expert, token]",
      order: "u32 [token]",
      // Slots by the number of tokens in a group.
      room: "u32 [tokens]",
      group: "i32 [token]",
      weight: "f32 [token, k]",
      random: "f32 [token, expert]",
    }, { slot: "i32 [token, k]" }),
    body: wgsl`
      var<workgroup> counts: array<u32, ${LANES}>;
      var<workgroup> ties: array<u32, ${LANES}>;
      ${
      group === "tensor" ? eachGroup(o) : wgsl`
        let start = group.y * ${group};
        let size = min(start + ${group}, ${tokens}) - start;
        ${slotsOfGroup(o)}`
    }`,
  });
}

/** The groups of a tensor, one after another: tokens are ordered by group. */
function eachGroup(o: SlotsOptions): KernelText {
  return wgsl`
    var start = 0u;
    for (var end = 1u; end < ${o.tokens} + 1; end++) {
      let at_end = order[min(end, ${o.tokens} - 1)];
      if (end == ${o.tokens} || group[at_end] != group[order[start]]) {
        let size = end - start;
        ${slotsOfGroup(o)}
        workgroupBarrier();
        start = end;
      }
    }`;
}

/** The slots of the group of `size` tokens from `start`. */
function slotsOfGroup(o: SlotsOptions): KernelText {
  const { rule, room } = o;
  const { order, drop } = rule.capacity!;
  const candidates = order === "token" ? wgsl`size` : wgsl`size * ${rule.topK}`;
  const tabled = room === "table" ? wgsl`room[size]` : wgsl`${room}u`;
  const byValue = drop !== "position" && room !== "largest";
  return wgsl`
    let row = group.x * ${o.tokens};
    let candidates = ${candidates};
    ${laneShare(wgsl`candidates`, LANES)}
    let slots = ${room === "largest" ? "candidates" : tabled};
    ${byValue ? dropByValue(o) : dropByIndex(o)}`;
}

/**
 * Executes `then` for each index of this lane with a choice of the expert: `at` is the choice, `token` its token.
 * Indices are tokens, or all first choices before all second ones.
 */
function eachChoice(o: SlotsOptions, then: KernelText): KernelText {
  const byToken = o.rule.capacity!.order === "token";
  const index = byToken ? wgsl`start + p` : wgsl`start + p % size`;
  return wgsl`
    for (var p = from; p < to; p++) {
      let token = ${o.ordered ? wgsl`order[${index}]` : index};
      let found = mark[row + token];
      if (${byToken ? wgsl`found > 0` : wgsl`found == p / size + 1`}) {
        let at = token * ${o.rule.topK} + (found - 1);
        ${then}
      }
    }`;
}

/** Assigns slots in index order until none is left. */
function dropByIndex(o: SlotsOptions): KernelText {
  const assigned = wgsl`
    if (next < slots) { slot[at] = i32(next); }
    next++;`;
  return wgsl`
    var mine = 0u;
    ${eachChoice(o, wgsl`mine++;`)}
    counts[lane] = mine;
    workgroupBarrier();
    ${sumOfLanes("next", "counts", wgsl`lane`)}
    ${eachChoice(o, assigned)}`;
}

/**
 * Assigns slots to the choices with the largest keys, in index order; ties to the first. The smallest key with a slot
 * is the largest key that at least as many choices reach as there are slots.
 */
function dropByValue(o: SlotsOptions): KernelText {
  const value = o.rule.capacity!.drop === "score"
    ? wgsl`weight[at]`
    : wgsl`random[token * ${o.experts} + group.x]`;
  const key = wgsl`
    let value = ${value};
    let key = ${orderKey("value")};`;
  const counted = wgsl`
    ${key}
    if (key > min_key) { larger++; }
    if (key == min_key) { equal++; }`;
  const assigned = wgsl`
    ${key}
    let wins = key > min_key || (key == min_key && tied < left);
    if (key == min_key) { tied++; }
    if (wins && next < slots) {
      slot[at] = i32(next);
      next++;
    }`;
  return wgsl`
    var min_key = 0u;
    for (var bit = 0u; bit < 32; bit++) {
      let candidate = min_key | (1u << (31 - bit));
      var mine = 0u;
      ${eachChoice(o, wgsl`${key} if (key >= candidate) { mine++; }`)}
      counts[lane] = mine;
      workgroupBarrier();
      ${sumOfLanes("all", "counts", LANES)}
      if (all >= slots) { min_key = candidate; }
      workgroupBarrier();
    }

    // Each lane's number of choices above that key, and equal to it.
    var larger = 0u;
    var equal = 0u;
    ${eachChoice(o, counted)}
    counts[lane] = larger;
    ties[lane] = equal;
    workgroupBarrier();
    ${sumOfLanes("winners", "counts", LANES)}
    ${sumOfLanes("next", "counts", wgsl`lane`)}
    ${sumOfLanes("tied", "ties", wgsl`lane`)}

    // Without any slots, none is left for ties.
    let left = slots - min(winners, slots);
    next += min(tied, left);
    ${eachChoice(o, assigned)}`;
}
