/**
 * Token order by routing group, then by the score of the first choice, then by index. A merge sort with one invocation
 * per token: runs are sorted by counting predecessors (rank sort) and merged by binary search in the other run.
 */

import type { Expr, Kernel, KernelText } from "../kernel.ts";
import { bindings, elementwise, wgsl } from "../kernel.ts";
import type { GroupsBy } from "./capacity.ts";
import { orderKey } from "../pieces/order_key.ts";

/** Tokens per initially sorted run. */
export const SORTED_RUN = 64;

/** An ordering. Grids are `elementwiseGrid(tokens)`. */
export interface OrderOptions {
  readonly name: string;
  readonly tokens: Expr;
  readonly group: GroupsBy;
  readonly prioritised: boolean;
}

/** Sort keys of tokens. */
const COMPARED = { group: "i32 [token]", first: "f32 [token]" } as const;

/** Whether token `a` precedes token `b`: a total order, so that runs merge without ties. */
function before(o: OrderOptions, a: string, b: string): KernelText {
  const index = wgsl`${a} < ${b}`;
  const [x, y] = [a, b].map((t) => orderKey(wgsl`first[${t}]`));
  const inGroup = o.prioritised
    ? wgsl`${x} > ${y} || (${x} == ${y} && ${index})`
    : index;
  const [g, h] = [a, b].map((t) =>
    o.group === "tensor" ? wgsl`group[${t}]` : wgsl`${t} / ${o.group}`
  );
  return wgsl`${g} < ${h} || (${g} == ${h} && ${inGroup})`;
}

/** Sorts each run of `SORTED_RUN` tokens: the index of a token is the number of its predecessors in the run. */
export function sortRuns(o: OrderOptions): Kernel {
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings(COMPARED, { order: "u32 [token]" }),
    body: wgsl`
      let start = i - i % ${SORTED_RUN};
      let end = min(start + ${SORTED_RUN}, ${o.tokens});
      var index = start;
      for (var other = start; other < end; other++) {
        if (${before(o, "other", "i")}) { index++; }
      }
      order[index] = i;`,
  });
}

/** Merges runs of `run` tokens in pairs: each token finds its number of predecessors in the other run. */
export function mergeRuns(o: OrderOptions & { run: number }): Kernel {
  const { run } = o;
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings(
      { ...COMPARED, order: "u32 [token]" },
      { next: "u32 [token]" },
    ),
    body: wgsl`
      let token = order[i];
      let left = i / ${run} % 2 == 0;
      let pair = i / ${2 * run} * ${2 * run};
      let start = min(select(pair, pair + ${run}, left), ${o.tokens});
      let end = min(start + ${run}, ${o.tokens});
      var low = start;
      var high = end;
      for (var step = 0u; step < ${Math.ceil(Math.log2(run)) + 1}; step++) {
        if (low < high) {
          let middle = (low + high) / 2;
          let other = order[middle];
          if (${before(o, "other", "token")}) {
            low = middle + 1;
          } else {
            high = middle;
          }
        }
      }
      // Its index in its run, plus the number of predecessors in the other run.
      next[pair + i % ${run} + (low - start)] = token;`,
  });
}
