/**
 * Slot assignment with capacity: which choices of an expert get a slot, and which one. A workgroup takes the choices of an
 * expert in a routing group. Its lanes take consecutive ones, so that an exclusive scan of their counts numbers the slots
 * (counting sort). Where choices compete by value, the smallest key that has a slot is found before, bit by bit from the
 * highest (radix select).
 */

import type { Size } from "../../spec/size.ts";
import type { Grid, Kernel, KernelText } from "./kernel.ts";
import { bindings, kernelOf, wgsl } from "./kernel.ts";
import type { CapacityOptions, GroupsBy } from "./capacity.ts";
import { laneShare, sumOfLanes } from "./pieces/counting_sort.ts";
import { orderKey } from "./pieces/order_key.ts";

/** Invocations that share the choices of one expert in one routing group. */
const LANES = 64;

/** The slots. Its grid is `slotsGrid`. */
export interface SlotsOptions extends CapacityOptions {
  readonly group: GroupsBy;
  readonly ordered: boolean;
  /** Slots of an expert: a number, by a table, or as many as there are choices. */
  readonly room: number | "table" | "largest";
}

/** One workgroup for each expert in each contiguous group, or for each expert in all groups. */
export function slotsGrid(experts: number, groups: Size): Grid {
  return [experts, groups, 1];
}

/** Every choice that finds room gets its slot: counted, cut where choices compete by value, and numbered. */
export function slots(o: SlotsOptions): Kernel {
  const { group, tokens } = o;
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: bindings({
      mark: "u32 [expert, token]",
      order: "u32 [token]",
      // The slots by the number of tokens in a group.
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
  const places = order === "token" ? wgsl`size` : wgsl`size * ${rule.topK}`;
  const tabled = room === "table" ? wgsl`room[size]` : wgsl`${room}u`;
  const cut = drop !== "position" && room !== "largest";
  return wgsl`
    let row = group.x * ${o.tokens};
    let places = ${places};
    ${laneShare(wgsl`places`, LANES)}
    let slots = ${room === "largest" ? "places" : tabled};
    ${cut ? cutByValue(o) : cutByPlace(o)}`;
}

/**
 * For each place of this lane that has a choice of the expert: `at` is the choice, `token` its token. Places are tokens, or
 * all first choices before all second ones.
 */
function eachChoice(o: SlotsOptions, then: KernelText): KernelText {
  const byToken = o.rule.capacity!.order === "token";
  const place = byToken ? wgsl`start + p` : wgsl`start + p % size`;
  return wgsl`
    for (var p = from; p < to; p++) {
      let token = ${o.ordered ? wgsl`order[${place}]` : place};
      let found = mark[row + token];
      if (${byToken ? wgsl`found > 0` : wgsl`found == p / size + 1`}) {
        let at = token * ${o.rule.topK} + (found - 1);
        ${then}
      }
    }`;
}

/** Slots in the order of places, as long as there are any. */
function cutByPlace(o: SlotsOptions): KernelText {
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
 * The slots go to those with the largest keys, in the order of places; of equal ones to the first. The smallest key that
 * has a slot is the largest that at least as many choices reach as there are slots.
 */
function cutByValue(o: SlotsOptions): KernelText {
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

    // How many choices of each lane are above that key, and how many at it.
    var larger = 0u;
    var equal = 0u;
    ${eachChoice(o, counted)}
    counts[lane] = larger;
    ties[lane] = equal;
    workgroupBarrier();
    ${sumOfLanes("winners", "counts", LANES)}
    ${sumOfLanes("next", "counts", wgsl`lane`)}
    ${sumOfLanes("tied", "ties", wgsl`lane`)}

    // Where there are no slots at all, none is left for ties either.
    let left = slots - min(winners, slots);
    next += min(tied, left);
    ${eachChoice(o, assigned)}`;
}
