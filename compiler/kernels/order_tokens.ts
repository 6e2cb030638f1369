/**
 * The order of tokens where it is not their own: by routing group, by the score of their first choice, then as they are. A
 * merge sort, one invocation for each token: runs are sorted by counting what comes before (rank sort), and merged by
 * binary search in the other run.
 */

import type { Expr, Kernel, KernelText } from "./kernel.ts";
import { bindings, elementwise, wgsl } from "./kernel.ts";
import type { GroupsBy } from "./capacity.ts";
import { orderKey } from "./pieces/order_key.ts";

/** Tokens in a run that is sorted at once. */
export const SORTED_RUN = 64;

/** An ordering. Grids are `elementwiseGrid(tokens)`. */
export interface OrderOptions {
  readonly name: string;
  readonly tokens: Expr;
  readonly group: GroupsBy;
  readonly prioritised: boolean;
}

/** What tokens are ordered by. */
const COMPARED = { group: "i32 [token]", first: "f32 [token]" } as const;

/** Whether token `a` comes before token `b`: a total order, so that runs merge without ties. */
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

/** Each run of `SORTED_RUN` tokens in order: a token's place is how many of its run come before it. */
export function sortRuns(o: OrderOptions): Kernel {
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: bindings(COMPARED, { order: "u32 [token]" }),
    body: wgsl`
      let start = i - i % ${SORTED_RUN};
      let end = min(start + ${SORTED_RUN}, ${o.tokens});
      var place = start;
      for (var other = start; other < end; other++) {
        if (${before(o, "other", "i")}) { place++; }
      }
      order[place] = i;`,
  });
}

/** Runs of `run` tokens become runs of twice as many: each token looks up how many of the other run come before it. */
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
      // Its place in its run, and those of the other run that come before it.
      next[pair + i % ${run} + (low - start)] = token;`,
  });
}
