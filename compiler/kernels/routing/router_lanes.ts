/**
 * Routers for wide devices: a workgroup per token and a lane per expert. The place of an expert is the number of better
 * ones. Comparisons and counts are exact in any order, and sums have the order of `router`, so bits are equal.
 */

import {
  chosenSoftmax,
  divisorOf,
  groupValue,
  ROUTER_BINDINGS,
  type RouterOptions,
  scaled,
  score,
  storeFirst,
  worth,
} from "./router.ts";
import { ASSIGN_BINDINGS, type AssignOptions, inSendOrder } from "./assign.ts";
import { numberedByLanes } from "./assign_few.ts";
import type { Kernel, KernelText } from "../kernel.ts";
import { GROUP_XY, kernelOf, wgsl } from "../kernel.ts";
import { loadsAtOnce } from "../pieces/at_once.ts";
import { SUM_BLOCK } from "../pieces/blocked_sum.ts";

/** Maximum number of lanes of a router. */
const LANES = 256;

/** Lanes of a workgroup that chooses among so many experts. */
export function lanesOfRouter(experts: number): number {
  return experts > LANES / 2 ? LANES : LANES / 2;
}

/** Whether experts are chosen by one comparison of their values. */
export function comparesExperts(
  { rule, operands = [] }: RouterOptions,
): boolean {
  return rule.choose === undefined && !operands.includes("noise") &&
    rule.topK <= LANES / 2;
}

/** A router with a workgroup per token. */
export interface RouterByLanesOptions extends RouterOptions {
  /**
   * Also assigns the choices, at most as many as experts, whose rows stay on this rank: row a is choice a, in a tile of
   * its own. Default: false.
   */
  readonly assigns?: boolean;
  /**
   * Also assigns the choices of at most one token, as `assignFew`. Its grid is one workgroup. Default: no assignment.
   */
  readonly assignment?: AssignOptions;
}

/** Chosen experts and their weights, as by `router`. Its grid is `rowsGrid(tokens)`. */
export function routerByLanes(o: RouterByLanesOptions): Kernel {
  const { experts, rule, tokens, operands = [] } = o;
  const k = rule.topK;
  const lanes = lanesOfRouter(experts);
  const padding = operands.includes("mask") && rule.capacity === undefined;
  const known = new Set(ROUTER_BINDINGS.map(({ name }) => name));
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: [
      ...ROUTER_BINDINGS,
      ...ASSIGN_BINDINGS.filter(({ name }) => !known.has(name)),
    ],
    body: wgsl`
      let i = ${GROUP_XY};
      if (i < ${tokens}) {
        ${choicesByLanes(o, lanes)}
        if (lane < ${k}) {
          ${shareOfLane(o)}
          ${
      padding &&
      wgsl`
          // Padding has no slot and no weight.
          let is_padding = mask[i] == 0;
          slot[choices_at + lane] = select(0i, -1, is_padding);`
    }
          index[choices_at + lane] = i32(best[lane]);
          weight[choices_at + lane] = ${
      padding ? wgsl`select(of_share, 0.0, is_padding)` : wgsl`of_share`
    };
          ${o.assigns && assignChoice(o)}
          ${
      rule.capacity?.prioritised &&
      wgsl`if (lane == 0) { ${storeFirst(rule, wgsl`best[0]`)} }`
    }
        }
      }
      ${o.assignment && assignmentOf(o.assignment, lanes)}`,
  });
}

/**
 * Chooses the experts of token `i` by all lanes of a workgroup: `best` u32 [k], and their scores, `raws` f32 [k], in
 * workgroup memory.
 */
export function choicesByLanes(o: RouterOptions, lanes: number): KernelText {
  const { experts, rule, operands = [] } = o;
  const k = rule.topK;
  const each = (body: KernelText) =>
    wgsl`for (var e = lane; e < ${experts}; e += ${lanes}) { ${body} }`;
  const raw = operands.includes("weights")
    ? wgsl`weights[choices_at + better]`
    : score(rule, "e");
  const counted = (other: KernelText, n: KernelText) =>
    wgsl`
    if (${other} > value || (${other} == value && ${n} < e)) { better++; }`;
  const compared = wgsl`
    let value = worths[e];
    var better = 0u;
    ${eachCandidate(o, counted)}
    if (better < ${k}) {
      best[better] = e;
      raws[better] = ${raw};
    }`;
  const isKept = rule.expertGroups &&
    wgsl`kept[e / ${experts / rule.expertGroups.count}] == 1`;
  return wgsl`
    var<workgroup> worths: array<f32, ${experts}>;
    var<workgroup> best: array<u32, ${k}>;
    var<workgroup> raws: array<f32, ${k}>;
    let row = i * ${experts};
    let choices_at = i * ${k};
    ${rule.score === "softmax" && softmaxByLanes(experts, each)}
    ${each(wgsl`worths[e] = ${worth(o, "e")};`)}
    // Of NaN values; the index stays in bounds.
    if (lane < ${k}) { best[lane] = 0; raws[lane] = 0.0; }
    workgroupBarrier();
    ${keptGroups(o)}
    ${each(isKept ? wgsl`if (${isKept}) { ${compared} }` : compared)}
    workgroupBarrier();`;
}

/** Declares `of_share`, the weight of the choice of a lane, after `choicesByLanes`. */
export function shareOfLane(o: RouterOptions): KernelText {
  const { rule } = o;
  const k = rule.topK;
  return wgsl`
    var chosen = 0.0;
    for (var j = 0u; j < ${k}; j++) { chosen += raws[j]; }
    var share = raws[lane];
    ${chosenSoftmax(o) && softmaxOfRaws(k)}
    ${
    rule.normalize === "chosen" &&
    wgsl`share = share / (${divisorOf(rule, "chosen")});`
  }
    let of_share = ${scaled(rule, wgsl`share`)};`;
}

/** Assigns the choices of the only token, if there is one. */
function assignmentOf(o: AssignOptions, lanes: number): KernelText {
  const { k, tokens } = o;
  const expert = inSendOrder(o, wgsl`best[lane]`);
  return wgsl`
    if (i < 1) {
      var<workgroup> best: array<u32, ${k}>;
      let all_choices = min(${tokens}, 1) * ${k};
      ${numberedByLanes(o, { lanes, expert })}
    }`;
}

/** Lists the choice of a lane as a row and a tile. */
function assignChoice(
  { tokens, rule: { topK: k } }: RouterOptions,
): KernelText {
  return wgsl`
    let choice = choices_at + lane;
    sendRow[choice] = choice;
    tokenOf[choice] = i;
    expertOf[choice] = best[lane];
    tiles[choice * 3 + 1] = best[lane];
    tiles[choice * 3 + 2] = choice;
    tiles[choice * 3 + 3] = 1;
    if (choice == 0) {
      tiles[0] = ${tokens} * ${k};
      rowCount[0] = ${tokens} * ${k};
    }`;
}

/** Executes `body` for each expert that may be chosen, with its worth. */
function eachCandidate(
  { experts, rule: { expertGroups } }: RouterOptions,
  body: (worth: KernelText, expert: KernelText) => KernelText,
): KernelText {
  if (!expertGroups) return eachWorth(wgsl`0u`, experts, body);
  const size = experts / expertGroups.count;
  return wgsl`
    for (var g = 0u; g < ${expertGroups.count}; g++) {
      if (kept[g] == 1) {
        let of_group = g * ${size};
        ${eachWorth(wgsl`of_group`, size, body)}
      }
    }`;
}

/** Executes `body` for `count` experts from `first` on, with their worths. */
function eachWorth(
  first: KernelText,
  count: number,
  body: (worth: KernelText, expert: KernelText) => KernelText,
): KernelText {
  const atOnce = loadsAtOnce(count);
  return wgsl`
    for (var n = ${first}; n < ${first} + ${count}; n += ${atOnce}) {
      @unroll (m < ${atOnce}) { let other[m] = worths[n + m]; }
      @unroll (m < ${atOnce}) { ${body(wgsl`other[m]`, wgsl`n + m`)} }
    }`;
}

/** `top` and `total` as `softmaxOfAll` of `router`: a lane per block. */
function softmaxByLanes(
  experts: number,
  each: (body: KernelText) => KernelText,
): KernelText {
  const blocks = Math.ceil(experts / SUM_BLOCK);
  const even = experts % SUM_BLOCK === 0;
  /** Executes `body` for the worths of the block of a lane. */
  const ofBlock = (body: (worth: KernelText) => KernelText) =>
    even ? eachWorth(wgsl`block_first`, SUM_BLOCK, body) : wgsl`
      for (var n = block_first; n < min(block_first + ${SUM_BLOCK}, ${experts}); n++) {
        ${body(wgsl`worths[n]`)}
      }`;
  const byBlock = (body: KernelText) =>
    wgsl`
    if (lane < ${blocks}) {
      let block_first = lane * ${SUM_BLOCK};
      ${body}
    }
    workgroupBarrier();`;
  return wgsl`
    var<workgroup> blocks: array<f32, ${blocks}>;
    ${each(wgsl`worths[e] = logits[row + e];`)}
    workgroupBarrier();
    ${
    byBlock(wgsl`
      var block_top = worths[block_first];
      ${ofBlock((worth) => wgsl`block_top = max(block_top, ${worth});`)}
      blocks[lane] = block_top;`)
  }
    var top = blocks[0];
    for (var b = 1u; b < ${blocks}; b++) { top = max(top, blocks[b]); }
    ${each(wgsl`worths[e] = exp(worths[e] - top);`)}
    workgroupBarrier();
    ${
    byBlock(wgsl`
      var block = 0.0;
      ${ofBlock((worth) => wgsl`block += ${worth};`)}
      blocks[lane] = block;`)
  }
    var total = 0.0;
    for (var b = 0u; b < ${blocks}; b++) { total += blocks[b]; }`;
}

/** `kept[e]` becomes 1 for each kept group of experts, else 0: a lane per group. */
function keptGroups(o: RouterOptions): KernelText | undefined {
  if (o.rule.expertGroups === undefined) return undefined;
  const { count, keep } = o.rule.expertGroups;
  const { prepare, value } = groupValue(o, wgsl`worths[m]`);
  const ofLane = (body: KernelText) =>
    wgsl`
    if (lane < ${count}) {
      let e = lane;
      ${body}
    }
    workgroupBarrier();`;
  return wgsl`
    var<workgroup> group_values: array<f32, ${count}>;
    var<workgroup> kept: array<u32, ${count}>;
    ${
    ofLane(wgsl`
      ${prepare}
      group_values[e] = ${value};`)
  }
    ${
    ofLane(wgsl`
      let value = group_values[e];
      var better = 0u;
      for (var n = 0u; n < ${count}; n++) {
        let other = group_values[n];
        if (other > value || (other == value && n < e)) { better++; }
      }
      kept[e] = select(0u, 1, better < ${keep});`)
  }`;
}

/** `share` becomes the softmax of the lane's choice, `chosen` the sum of all. */
function softmaxOfRaws(k: number): KernelText {
  return wgsl`
    var top = raws[0];
    for (var j = 1u; j < ${k}; j++) { top = max(top, raws[j]); }
    chosen = 0.0;
    for (var j = 0u; j < ${k}; j++) { chosen += exp(raws[j] - top); }
    share = exp(share - top) / chosen;
    var shares = 0.0;
    for (var j = 0u; j < ${k}; j++) { shares += exp(raws[j] - top) / chosen; }
    chosen = shares;`;
}
