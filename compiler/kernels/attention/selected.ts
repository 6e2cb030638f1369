/**
 * The keys of a token in attention as one sequence: those of the cache, or selected positions or blocks of positions.
 */

import { KEY_BLOCK } from "../../tuning/queries.ts";
import { type KernelText, wgsl } from "../kernel.ts";
import { type Cache, cacheOf } from "../pieces/cache.ts";
import type { AttentionOptions } from "./block.ts";

/** The key head that a number of heads of a workgroup read. */
export function kvHeadOf(
  { heads: all, kvHeads }: AttentionOptions,
  heads: number,
): KernelText {
  return wgsl`group.x / ${all / kvHeads / heads}`;
}

/** The keys that a token attends to, numbered from 0: all keys of its sequence, or the selected ones. */
export function selectedOf(
  o: AttentionOptions,
  { begin, ...of }: {
    readonly token: string;
    readonly kvHead: KernelText;
    /** The first position of this rank, if ranks share positions. */
    readonly begin: KernelText | undefined;
  },
): Cache {
  if (o.selected === undefined || o.entries !== undefined) {
    return cacheOf({ ...o, begin }, of);
  }
  const { context, selectedBlock: size } = o;
  const last = context - 1;
  if (size === undefined || size % KEY_BLOCK !== 0) {
    const cache = cacheOf({ ...o, begin }, { ...of, scattered: true });
    const positionOf = (key: KernelText) =>
      size === undefined
        ? wgsl`u32(selected[list + ${key}])`
        : wgsl`u32(selected[list + (${key}) / ${size}]) * ${size} + (${key}) % ${size}`;
    return {
      ...cache,
      vectorOf: (key) =>
        cache.vectorOf(wgsl`min(${positionOf(key)}, ${last}u)`),
    };
  }
  const cache = cacheOf({ ...o, begin }, {
    ...of,
    start: wgsl`(start + moved)`,
  });
  const lastBlock = Math.ceil(context / size) - 1;
  return {
    ...cache,
    ofBlock: wgsl`
      // The keys are consecutive positions: their first position minus the index of the first key. It may be negative.
      let moved = min(u32(selected[list + start / ${size}]), ${lastBlock}u) * ${size} + start % ${size} - start;
      ${cache.ofBlock}`,
    vectorOf: (key) => cache.vectorOf(wgsl`(${key} + moved)`),
  };
}

/**
 * `end[0]`, of that name: the number of selected positions that the token sees. Negative numbers are at the end of the
 * list. Of selected blocks, only the last one may have later positions.
 */
export function countSelected(
  o: AttentionOptions,
  { token, selected, heads, end }: {
    readonly token: string;
    readonly selected: number;
    /** Heads of the workgroup. */
    readonly heads: number;
    readonly end: string;
  },
): KernelText {
  const steps = Math.floor(Math.log2(selected)) + 1;
  const list = o.selectedPerHead
    ? wgsl`(${token} * ${o.kvHeads} + ${kvHeadOf(o, heads)})`
    : wgsl`${token}`;
  const { selectedBlock: size } = o;
  return wgsl`
    let list = ${list} * ${selected};
    var ${end}[0] = 0u;
    for (var step = 0u; step < ${steps}; step++) {
      let longer = ${end}[0] + (${2 ** (steps - 1)}u >> step);
      if (longer <= ${selected} && selected[list + min(longer, ${selected}) - 1] >= 0) {
        ${end}[0] = longer;
      }
    }
    ${
    size !== undefined && wgsl`
    if (${end}[0] > 0) {
      let last_start = u32(selected[list + ${end}[0] - 1]) * ${size};
      let next = u32(position[${token}]) + 1;
      ${end}[0] = (${end}[0] - 1) * ${size} + min(max(next, last_start) - last_start, ${size});
    }`
  }`;
}
