/** Operands of a matmul of one row that are loaded while the norm of its row is computed. */

import { sum } from "../../../spec/sum.ts";
import { isPackedDType, PACKINGS } from "../../../spec/weights/packed.ts";
import { blocksInRound, isStaged, teamsOf } from "../../tuning/lanes.ts";
import { equalBlocks } from "../../tuning/tile.ts";
import type { KernelText, Stmt } from "../kernel.ts";
import { bindingsOf, wgsl } from "../kernel.ts";
import { followsFrom } from "../pieces/early_loads.ts";
import type { DecodedMatmul } from "./decoder.ts";
import { leftOf, u } from "./left.ts";
import type { MatmulOptions } from "./options.ts";
import { partsOfTerms } from "./products.ts";
import { scalesInBlock, scalesOfBlock } from "./scales.ts";
import { termsAtOnce } from "./words.ts";

/** Most words of weights, and of all early loads: lanes also need registers for the row and the sums. */
const MAX_WEIGHTS = 32, MAX_WORDS = 48;

/** The block of a team. */
export interface EarlyWeights {
  /** Loads its weights with their scales, and the gains of the norm. Teams without a block load the last one. */
  readonly loaded: KernelText;
  /** Loads the row and adds the products. */
  readonly added: KernelText;
}

/** Undefined: a team has several blocks or too many words of one, or its scales need decoding. */
export function earlyWeights(
  o: DecodedMatmul & MatmulOptions,
): EarlyWeights | undefined {
  const blocks = equalBlocks(o);
  if (!blocks || isStaged(o) || blocksInRound(o, 1) !== 1) return undefined;
  const { count, length } = blocks;
  const words = length *
    sum(o.decoders.map(({ perWord }) => o.tile.columns / perWord));
  if (words > MAX_WEIGHTS || termsAtOnce(o) === 1) return undefined;
  if (!o.decoders.every((_, i) => hasPlainScales(o, i))) return undefined;
  const left = leftOf(o, {
    rows: 1,
    ofGroup: 1,
    stretch: length,
    waits: true,
  });
  const parts = partsOfTerms(o, left, { rows: 1, count: length });
  const early = parts.left.filter((s) => loadsGains(s, o.norm!, parts.indices));
  if (words + sum(early.map(wordsOf)) > MAX_WORDS) return undefined;
  const { lanes, teams } = teamsOf(o);
  const block = wgsl`lane / ${lanes}`;
  return {
    loaded: wgsl`
    let k = ${
      teams > count ? wgsl`min(${block}, ${count - 1})` : block
    } * ${length};
    ${o.weights.flatMap((_, i) => scalesOfBlock(o, i, { start: wgsl`k` }))}
    ${parts.loaded}
    ${early}`,
    added: wgsl`
    ${parts.left.filter((s) => !early.includes(s))}
    ${parts.added}`,
  };
}

/** Whether a block has no scales, or one f32 scale per column and no offset. */
function hasPlainScales(o: DecodedMatmul, i: number): boolean {
  const { stored } = o.weights[i]!;
  const { scales } = o.decoders[i]!;
  if (!isPackedDType(stored)) return true;
  return PACKINGS[stored].scale === "f32" && !PACKINGS[stored].block &&
    scales !== undefined && !scales.hasOffsets &&
    scalesInBlock(o, scales) === 1;
}

/** Whether a statement only loads, at an index that follows from indices of k, and not from the row. */
function loadsGains(
  s: Stmt,
  { load }: NonNullable<MatmulOptions["norm"]>,
  indices: readonly string[],
): boolean {
  const row = bindingsOf(load(u("base"), u("k")));
  if (s.op === "loads") {
    return !row.has(s.binding) && followsFrom(s.index, indices);
  }
  return s.op === "let" && s.value.op === "load" &&
    !row.has(s.value.binding) && followsFrom(s.value.index, indices);
}

function wordsOf(s: Stmt): number {
  return s.op === "loads" ? s.names.length : 1;
}
