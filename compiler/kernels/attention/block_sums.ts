/** Sums of the weighted values of a block of keys in attention. */

import { loadStored, unpackHalves } from "../../../spec/kernel/build.ts";
import { range } from "../../../spec/range.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";
import type { Hole, KernelText } from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";
import {
  offsetOf,
  ofTokens,
  pairsOf,
  plainDimension,
  type Queries,
} from "./block.ts";

/** Lane d sums its dimensions of the block's weighted values; every lane sums the weights. */
export function blockSums(of: Queries): KernelText {
  const { tokens, each, parts, firstSeen } = of;
  const first = ofTokens("min", "low", of);
  const last = ofTokens("max", "high", of);
  const before = oneByOne(of, {
    seenBy: "some",
    from: first,
    end: wgsl`min(shared_low, ${last})`,
  });
  const after = oneByOne(of, {
    seenBy: "some",
    from: wgsl`max(shared_low, shared_high)`,
    end: last,
  });
  return wgsl`
    @unroll (${each}) {
      var block_sum[t][h] = 0.0;
      @unroll (c < ${parts}) { var block[t][h][c] = 0.0; }
    }
    ${tokens > 1 && firstSeen && before}
    ${sharedKeys(of)}
    ${tokens > 1 && after}`;
}

/** Sums of the keys that all tokens attend to: some at a time, if a lane loads values of several at once. */
function sharedKeys(of: Queries): KernelText {
  const together = Math.floor(of.atOnce / of.parts);
  if (together <= 1) {
    return oneByOne(of, {
      seenBy: "all",
      from: "shared_low",
      end: "shared_high",
    });
  }
  const some = inTurns(of, together);
  // All keys of a block are visible to most queries: then no addition has a condition.
  const { step } = of.cache;
  return of.tokens === 1 && step !== undefined && KEY_BLOCK % together === 0
    ? wgsl`if (shared_high - shared_low == ${KEY_BLOCK}) { ${
      completeBlock(of, { together, step })
    } } else { ${some} }`
    : some;
}

/** Adds keys one after another. `seenBy`: whether all tokens attend to them. */
function oneByOne(
  of: Queries,
  { seenBy, from, end }: {
    readonly seenBy: "all" | "some";
    readonly from: Hole;
    readonly end: Hole;
  },
): KernelText {
  return wgsl`
    for (var j = ${from}; j < ${end}; j++) {
      ${loadKey(of, "")}
      ${addKey(of, { suffix: "", seenBy })}
    }`;
}

/** Adds the keys from `shared_low` to before `shared_high`. The last key stands for others after it. */
function inTurns(of: Queries, together: number): KernelText {
  const keys = range(together);
  return wgsl`
    for (var turn = 0u; turn < ${Math.ceil(KEY_BLOCK / together)}; turn++) {
      let first_j = shared_low + turn * ${together};
      if (first_j < shared_high) {
        ${
    keys.map((n) =>
      wgsl`
        let j_${n} = min(first_j + ${n}, shared_high - 1);
        ${loadKey(of, `_${n}`)}`
    )
  }
        ${
    keys.map((n) =>
      wgsl`if (first_j + ${n} < shared_high) { ${
        addKey(of, { suffix: `_${n}` })
      } }`
    )
  }
      }
    }`;
}

/** Adds all keys of a block, whose vectors are `step` apart: addresses and weights of a turn are computed together. */
function completeBlock(
  of: Queries,
  { together, step }: { readonly together: number; readonly step: number },
): KernelText {
  const words = wordsOf(of);
  const keys = range(together);
  return wgsl`
    for (var turn = 0u; turn < ${KEY_BLOCK / together}; turn++) {
      let first_j = turn * ${together};
      let value_from = (${
    of.cache.vectorOf(wgsl`(start + first_j)`)
  }) * ${words};
      ${
    keys.map((n) =>
      wgsl`
      let value_at_${n} = value_from + ${n * step * words};
      ${loadValue(of, `_${n}`)}`
    )
  }
      @unroll (${of.each}) {
        let weight_from[t][h] = first_j + ${offsetOf(of)};
        @unroll (n < ${together}) { let weight_of[n][t][h] = weights[weight_from[t][h] + n]; }
      }
      ${
    keys.map((n) =>
      addKey(of, { suffix: `_${n}`, weight: wgsl`weight_of[${n}][t][h]` })
    )
  }
    }`;
}

/** Adds a key with loaded values. `weight`: declared weights. Default: they are loaded. */
function addKey(
  of: Queries,
  { suffix, seenBy = "all", weight }: {
    readonly suffix: string;
    readonly seenBy?: "all" | "some";
    readonly weight?: KernelText;
  },
): KernelText {
  const { each, parts } = of;
  const by = weight ?? wgsl`weight[t][h]`;
  // A weight of 0 would be wrong for masked keys: 0 times infinity is not 0.
  const set = (sum: string, more: KernelText) =>
    seenBy === "all"
      ? wgsl`${sum} = ${more};`
      : wgsl`${sum} = select(${sum}, ${more}, low[t] <= j && j < high[t]);`;
  return wgsl`
      @unroll (${each}) {
        ${
    weight === undefined &&
    wgsl`let weight[t][h] = weights[j${suffix} + ${offsetOf(of)}];`
  }
        ${set("block_sum[t][h]", wgsl`block_sum[t][h] + ${by}`)}
        @unroll (c < ${parts}) {
          ${
    set(
      "block[t][h][c]",
      wgsl`fma(${by}, value${suffix}[c], block[t][h][c])`,
    )
  }
        }
      }`;
}

/** Declares value<suffix>[c] of the key j<suffix>. */
function loadKey(of: Queries, suffix: string): KernelText {
  return wgsl`
    let value_at${suffix} = (${
    of.cache.vectorOf(wgsl`(start + j${suffix})`)
  }) * ${wordsOf(of)};
    ${loadValue(of, suffix)}`;
}

/** The binding of values, and the elements of a vector. */
function valuesOf({ o, keys, width }: Queries): readonly [string, number] {
  return o.shared ? [keys, o.dim] : ["values", width];
}

/** Words of a vector of values. */
function wordsOf(of: Queries): number {
  const [, length] = valuesOf(of);
  return pairsOf(of.o) ? length / 2 : length;
}

/** Declares value<suffix>[c] of the vector at value_at<suffix>. */
function loadValue(of: Queries, suffix: string): KernelText {
  const { o, lanes, width, parts, stored } = of;
  const [values] = valuesOf(of);
  const pairs = pairsOf(o);
  if (pairs) {
    const [even, odd] = unpackHalves(
      pairs,
      local(`value_pair${suffix}[c]`, "u32"),
    );
    return wgsl`
      @unroll (c < ${parts} by 2) {
        let value_pair${suffix}[c] = ${values}[value_at${suffix} + lane + c * ${
      lanes / 2
    }];
        let value${suffix}[c] = ${even};
        let value${suffix}[c + 1] = ${odd};
      }`;
  }
  const dimension = width % lanes === 0
    ? plainDimension(of)
    : wgsl`min(${plainDimension(of)}, ${width - 1})`;
  return wgsl`
      @unroll (c < ${parts}) {
        let element${suffix}[c] = value_at${suffix} + ${dimension};
        let value${suffix}[c] = ${
    loadStored(values, stored, local(`element${suffix}[c]`, "u32"))
  };
      }`;
}
