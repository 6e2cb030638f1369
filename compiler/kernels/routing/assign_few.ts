/** Assignment of few choices on a wide device: a lane per choice, whose row is the number of choices before it. */

import type { Kernel, KernelText } from "../kernel.ts";
import { kernelOf, wgsl } from "../kernel.ts";
import {
  ASSIGN_BINDINGS,
  type AssignOptions,
  DROPPED,
  indexOf,
  localExperts,
  tilesOf,
} from "./assign.ts";

/** Maximum number of choices of `assignFew`, and its lanes. */
export const FEW_CHOICES = 256;

/** Rows by expert, then token, of at most `FEW_CHOICES` choices, as by `assign`. Its grid is one workgroup. */
export function assignFew(o: AssignOptions): Kernel {
  const { experts, k, tokens, grouped } = o;
  return kernelOf({
    name: o.name,
    workgroupSize: FEW_CHOICES,
    bindings: ASSIGN_BINDINGS,
    body: wgsl`
      let all_choices = min(${tokens} * ${k}, ${FEW_CHOICES});
      ${numberedByLanes(o, { lanes: FEW_CHOICES, expert: indexOf(o, "lane") })}
      ${
      grouped && wgsl`
      workgroupBarrier();
      ${tilesOf(experts, FEW_CHOICES, grouped)}`
    }`,
  });
}

/**
 * Numbers the first `all_choices` choices, one per lane, and counts the rows of experts, by all lanes of a workgroup.
 */
export function numberedByLanes(
  { experts, k, dropping, splits, units, grouped }: AssignOptions,
  { lanes, expert }: {
    readonly lanes: number;
    /** The expert of the choice of a lane, in send order. */
    readonly expert: KernelText;
  },
): KernelText {
  const sent = units && tokensSent({ k, units, lanes });
  const isLocal = splits && wgsl`of_choice >= first_own && of_choice < end_own`;
  const kept = wgsl`
    let of_choice = ${expert};
    ${
    isLocal
      ? wgsl`if (${isLocal}) { expert = of_choice; }`
      : wgsl`expert = of_choice;`
  }`;
  const counted = (array: string, bucket: string) =>
    wgsl`
    var count = 0u;
    for (var b = 0u; b < all_choices; b++) {
      if (${array}[b] == ${bucket}) { count++; }
    }`;
  return wgsl`
      // The expert of each choice; of dropped ones, the number of experts.
      var<workgroup> expert_of: array<u32, ${lanes}>;
      var<workgroup> experts: array<u32, ${experts}>;
      ${splits && localExperts(splits)}
      var expert = ${experts}u;
      if (lane < all_choices) {
        ${dropping ? wgsl`if (slot[lane] >= 0) { ${kept} }` : kept}
      }
      expert_of[lane] = expert;
      workgroupBarrier();
      ${sent?.begin}

      var next = 0u;
      ${sent && wgsl`var token_row = 0u; var token_index = 0u;`}
      for (var b = 0u; b < all_choices; b++) {
        let other = expert_of[b];
        if (other < expert || (other == expert && b < lane)) { next++; }
        ${sent?.compared}
      }
      if (lane < all_choices) {
        if (expert < ${experts}) {
          sendRow[lane] = next;
          ${
    grouped && wgsl`tokenOf[next] = lane / ${k}; expertOf[next] = expert;`
  }
          ${sent?.numbered}
        } else {
          sendRow[lane] = ${DROPPED};
          ${sent && wgsl`tokenRow[lane] = ${DROPPED};`}
        }
      }
      for (var e = lane; e < ${experts}; e += ${lanes}) {
        ${counted("expert_of", "e")}
        counts[e] = count;
        experts[e] = count;
      }
      ${
    sent && wgsl`
      for (var u = lane; u < ${sent.count}; u += ${lanes}) {
        ${counted("destined", "u")}
        counts[${experts} + u] = count;
      }`
  }`;
}

/** Deduplication: \`destined\` is the unit of each choice that is the first of its token there, else their number. */
function tokensSent(
  { k, units, lanes }: {
    readonly k: number;
    readonly units: readonly number[];
    readonly lanes: number;
  },
): {
  readonly count: number;
  readonly begin: KernelText;
  readonly compared: KernelText;
  readonly numbered: KernelText;
} {
  const count = units.length - 1;
  const unit = units.slice(1).map((end) =>
    wgsl`select(0u, 1, expert >= ${end})`
  )
    .reduce((sum, one) => wgsl`${sum} + ${one}`);
  return {
    count,
    begin: wgsl`
      var<workgroup> unit_of: array<u32, ${lanes}>;
      var<workgroup> destined: array<u32, ${lanes}>;
      let unit = ${unit};
      unit_of[lane] = unit;
      workgroupBarrier();
      var fresh = select(0u, 1, unit < ${count});
      for (var b = lane / ${k} * ${k}; b < lane; b++) {
        if (unit_of[b] == unit) { fresh = 0; }
      }
      destined[lane] = select(${count}u, unit, fresh == 1);
      workgroupBarrier();`,
    compared: wgsl`
      let there = destined[b];
      if (there < unit || (there == unit && b < lane)) { token_row++; }
      if (there == unit && b <= lane) { token_index++; }`,
    numbered: wgsl`
      tokenRow[lane] = select(${DROPPED}u, token_row, fresh == 1);
      tokenIndices[next] = token_index - 1;`,
  };
}
