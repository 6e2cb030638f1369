/** GGUF blocks as right operands of a matrix multiplication: codes in order of k, scales and offsets. */

import type { Block, Plane } from "../../../spec/weights/blocks.ts";
import type { FileDType } from "../../../spec/dtype.ts";
import {
  type PackedDType,
  type Packing,
  packingOf,
} from "../../../spec/weights/packed.ts";
import {
  letRegister,
  loadRegisters,
  register,
} from "../../../spec/kernel/registers.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { range } from "../../../spec/range.ts";
import { sum } from "../../../spec/sum.ts";
import type { Expr, Hole, KernelText, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { byteTableOf, widthOf } from "./columns.ts";
import type { MatmulOptions } from "./options.ts";
import { blockFactor, spread } from "../pieces/block.ts";
import { decoderOf } from "../pieces/decode.ts";

/** Blocks of a weight. */
interface BlockWeight {
  readonly layout: Block;
  /** Bytes of the units in which blocks are stored: bytes or words. */
  readonly unit: 1 | 4;
}

/** The blocks of an encoding. Undefined: it has none. */
function blocksOf(stored: FileDType): BlockWeight | undefined {
  const { block, inWords }: Partial<Packing> = packingOf(stored) ?? {};
  return block && { layout: block, unit: inWords ? 4 : 1 };
}

/** Whether a weight has offsets. */
export function hasOffsets(
  { stored, offsets }: MatmulOptions["weights"][number],
): boolean {
  const blocks = blocksOf(stored);
  return blocks ? blocks.layout.offsets !== undefined : offsets !== undefined;
}

/** Whether weight i has blocks. */
export function hasBlocks(o: MatmulOptions, i: number): boolean {
  return blocksOf(o.weights[i]!.stored) !== undefined;
}

/** Loads of all columns, each declared once. */
interface Loads {
  readonly declared: (Stmt | KernelText)[];
  /** What a load at unit `index` of a column's blocks found. */
  of(index: Expr, column: number): Expr;
}

/** Loads of weight i, in the registers <prefix><n>_<i>[c]. */
function loadsOf(
  o: MatmulOptions,
  i: number,
  { prefix, columns }: {
    readonly prefix: string;
    readonly columns: readonly number[];
  },
): Loads {
  const { binding, stored, inside, rowStride } = o.weights[i]!;
  const { unit } = blocksOf(stored)!;
  const width = inside === "k" ? 1 : widthOf(o);
  const apart = inside === "k" ? 1 : rowStride / width;
  const { type } = o.bindings.find(({ name }) => name === binding)!;
  const declared: Loads["declared"] = [];
  const names = new Map<string, string>();
  const declare = (name: string, index: Expr) => {
    for (const c of columns.filter((c) => c % width === 0)) {
      const at = register(`at${i}`, [c], "u32");
      declared.push(
        unit === 1
          ? wgsl`let ${name}[${c}] = bytesAt(${binding}, ${at} + ${index});`
          : loadRegisters(name, range(width).map((n) => c + n), {
            binding,
            type,
            index: expr`${at} + (${index}) * ${apart}`,
          }),
      );
    }
  };
  return {
    declared,
    of(index, column) {
      const key = JSON.stringify(index);
      const found = names.get(key);
      const name = found ?? `${prefix}${names.size}_${i}`;
      if (found === undefined) {
        names.set(key, name);
        declare(name, index);
      }
      return register(name, [column], "u32");
    },
  };
}

/** The location of an index of k: the first unit of its block, and the number of the element in it. */
interface Location {
  readonly from: Expr;
  readonly index: Expr;
}

/** Declares the location of index `k`. */
function locationOf(
  { layout: { elements, bytes }, unit }: BlockWeight,
  { name, k }: { readonly name: string; readonly k: Expr },
): { readonly declared: KernelText; readonly location: Location } {
  const [from, index] = [`${name}_from`, `${name}_index`];
  return {
    declared: wgsl`
      let ${from} = ${k} / ${elements} * ${bytes / unit};
      let ${index} = ${k} % ${elements};`,
    location: { from: local(from, "u32"), index: local(index, "u32") },
  };
}

/** The unit with the bits of an element, and their position in its word for the first of four neighbours. */
function bitsAt(
  { at, bits, stripe }: Plane,
  { from, index }: Location,
  unit: 1 | 4,
): { readonly unit: Expr; readonly shift: Expr } {
  const round = stripe * 8 / bits;
  if (stripe === 1) return { unit: expr`${from} + ${at}`, shift: index };
  return {
    unit: expr`${from} + (${at / unit} + ${index} / ${round} * ${
      stripe / unit
    } + ${index} % ${stripe} / ${unit})`,
    shift: expr`${index} % ${round} / ${stripe} * ${bits}`,
  };
}

/** A code from the words of its planes, or the codes of four neighbours in the bytes of a word. */
function joined(
  planes: readonly Plane[],
  words: readonly Expr[],
  { shifts, codes }: {
    readonly shifts: readonly Expr[];
    readonly codes: 1 | 4;
  },
): Expr {
  return planes.map(({ bits, stripe }, plane) => {
    const [word, shift] = [words[plane]!, shifts[plane]!];
    const ones = (1 << bits) - 1;
    const mask = wgsl`${codes === 4 ? ones * 0x01010101 : ones}u`;
    const text = codes === 4 && stripe === 1
      ? spread(word, shift)
      : codes === 4 && bits === 8
      ? wgsl`${word}`
      : wgsl`((${word} >> ${shift}) & ${mask})`;
    const low = sum(planes.slice(0, plane).map(({ bits }) => bits));
    return low === 0 ? expr`${text}` : expr`(${text} << ${low}u)`;
  }).reduce((all, part) => expr`(${all} | ${part})`);
}

/**
 * Declares <name><i>[c]: the codes of four neighbours from index `k` on, in the bytes of a word, or that of index `k` in
 * the lowest bits.
 */
export function codesOfBlocks(
  o: MatmulOptions,
  i: number,
  { name, columns = range(o.tile.columns), k, codes = 4 }: {
    readonly name: string;
    readonly columns?: readonly number[];
    readonly k: Expr;
    readonly codes?: 1 | 4;
  },
): readonly (Stmt | KernelText)[] {
  const blocks = blocksOf(o.weights[i]!.stored)!;
  const { layout, unit } = blocks;
  if (runOfBlocks(o)) return codesOfRun(o, i, { name, columns });
  const { declared, location } = locationOf(blocks, { name: `${name}${i}`, k });
  const loads = loadsOf(o, i, { prefix: `${name}_plane`, columns });
  const at = layout.codes.map((plane) => bitsAt(plane, location, unit));
  const shifts = at.map((_, plane) => `${name}_shift${plane}_${i}`);
  const values = columns.map((c) =>
    letRegister(
      `${name}${i}`,
      [c],
      joined(layout.codes, at.map(({ unit }) => loads.of(unit, c)), {
        shifts: shifts.map((shift) => local(shift, "u32")),
        codes,
      }),
    )
  );
  return [
    declared,
    ...at.map(({ shift }, plane) => {
      const { stripe } = layout.codes[plane]!;
      const inWord = codes === 1 && stripe > 1 &&
        expr`${shift} + ${location.index} % 4 * 8`;
      return wgsl`let ${shifts[plane]!} = ${inWord || shift};`;
    }),
    ...loads.declared,
    ...values,
  ];
}

/** Largest stripe of a plane of one word per sum of 32. */
const ONE_WORD = 4;

/** Indices of k in a loop of their own, whose words are next to each other in every plane. */
export interface RunOfBlocks {
  /** Indices of the run. */
  readonly length: number;
  /** Declares the locations of the codes from index `start` on, in the columns of some weights. */
  before(
    start: KernelText,
    sums: readonly {
      readonly weight: number;
      readonly columns: readonly number[];
    }[],
  ): readonly (Stmt | KernelText)[];
}

/** The counter of a run: iterations of `CODES` indices. */
export const RUN_TURN = "run_turn";

/**
 * The runs of a sum whose weights are blocks that a workgroup loads together. Undefined: blocks of the sum do not begin
 * with groups of a block.
 */
export function runOfBlocks(o: MatmulOptions): RunOfBlocks | undefined {
  const isAligned = Number(o.k) / (o.segments ?? 1) % EXACT.block === 0;
  if (!isAligned || o.tile.right !== "workgroup") return undefined;
  const stripes: number[] = [EXACT.block];
  for (const { stored } of o.weights) {
    const { layout } = blocksOf(stored) ?? {};
    if (!layout) return undefined;
    stripes.push(...layout.codes.map(({ stripe }) => stripe));
  }
  return {
    length: Math.min(...stripes.filter((stripe) => stripe > ONE_WORD)),
    before: (start, sums) =>
      sums.flatMap(({ weight, columns }) =>
        beforeRun(o, weight, { columns, start })
      ),
  };
}

/**
 * Declares run_at<plane>_<i> and run_shift<plane>_<i> of a run, and run_word<plane>_<i>[c] of planes with one word in
 * it.
 */
function beforeRun(
  o: MatmulOptions,
  i: number,
  { columns, start }: {
    readonly columns: readonly number[];
    readonly start: KernelText;
  },
): readonly (Stmt | KernelText)[] {
  const blocks = blocksOf(o.weights[i]!.stored)!;
  const { layout: { codes }, unit } = blocks;
  const k = local(`run_start${i}`, "u32");
  const { declared, location } = locationOf(blocks, { name: `run${i}`, k });
  return [
    wgsl`let run_start${i} = ${start};`,
    declared,
    ...codes.flatMap((plane, n) => {
      const at = bitsAt(plane, location, unit);
      const declared = wgsl`
        let run_at${n}_${i} = ${at.unit};
        let run_shift${n}_${i} = ${at.shift};`;
      if (plane.stripe > ONE_WORD) return [declared];
      const loads = loadsOf(o, i, { prefix: `run_loaded${n}_`, columns });
      const index = local(`run_at${n}_${i}`, "u32");
      const words = columns.map((c) =>
        letRegister(`run_word${n}_${i}`, [c], loads.of(index, c))
      );
      return [declared, ...loads.declared, ...words];
    }),
  ];
}

/** `codesOfBlocks` of iteration `RUN_TURN` of a run. */
function codesOfRun(
  o: MatmulOptions,
  i: number,
  { name, columns }: {
    readonly name: string;
    readonly columns: readonly number[];
  },
): readonly (Stmt | KernelText)[] {
  const { layout: { codes }, unit } = blocksOf(o.weights[i]!.stored)!;
  const turn = local(RUN_TURN, "u32");
  const loads = loadsOf(o, i, { prefix: `${name}_plane`, columns });
  const shifts = codes.map(({ bits, stripe }, n) => {
    const shift = local(`run_shift${n}_${i}`, "u32");
    return stripe > ONE_WORD
      ? shift
      : expr`${shift} + ${turn} * ${4 * bits / stripe}`;
  });
  const wordOf = (n: number, c: number) => {
    if (codes[n]!.stripe <= ONE_WORD) {
      return register(`run_word${n}_${i}`, [c], "u32");
    }
    const at = local(`run_at${n}_${i}`, "u32");
    return loads.of(expr`${at} + ${turn} * ${4 / unit}`, c);
  };
  const values = columns.map((c) =>
    letRegister(
      `${name}${i}`,
      [c],
      joined(codes, codes.map((_, n) => wordOf(n, c)), { shifts, codes: 4 }),
    )
  );
  return [...loads.declared, ...values];
}

/** The element of a code in the lowest eight bits of `code`, which has no others. */
export function elementOfBlock(stored: FileDType, code: Hole): KernelText {
  const { above = 0 } = blocksOf(stored)!.layout;
  return above > 0
    ? wgsl`f32(i32(${code}) - ${above}i)`
    : decoderOf(stored as PackedDType).element(code);
}

/** Element `n` of four whose codes are the bytes of a word. */
export function elementInWord(
  stored: FileDType,
  word: Hole,
  n: number,
): KernelText {
  const code = n === 3
    ? wgsl`(${word} >> 24u)`
    : wgsl`((${word} >> ${8 * n}u) & 255)`;
  return elementOfBlock(stored, code);
}

/** Declares factor<g>_<i>[c] and, if there are offsets, offset<g>_<i>[c]: those of group `number` along k. */
export function scaleOfBlocks(
  o: MatmulOptions,
  i: number,
  { columns, group, number }: {
    readonly columns: readonly number[];
    readonly group: number;
    readonly number: Expr;
  },
): readonly (Stmt | KernelText)[] {
  const { stored, binding } = o.weights[i]!;
  const blocks = blocksOf(stored)!;
  const { layout, unit } = blocks;
  const name = `scale${group}_${i}`;
  const k = expr`${number} * ${layout.group}`;
  const { declared, location } = locationOf(blocks, { name, k });
  const loads = loadsOf(o, i, { prefix: `scale${group}_word`, columns });
  const found = {
    binding,
    from: location.from,
    ...unit === 4 ? { stride: 1 } : {},
    sum: local(`${name}_sum`, "u32"),
    flushes: (o.arithmetic ?? "guarded") === "guarded",
  };
  const step = byteTableOf(o, i)?.step ?? 1;
  const values = columns.flatMap((c) => {
    const load = (index: KernelText) =>
      wgsl`${loads.of(expr`${location.from} + ${index}`, c)}`;
    const of = (part: NonNullable<Block["offsets"]>) =>
      blockFactor(layout, part, {
        ...found,
        load,
        header: (word) => load(wgsl`${4 * word}u`),
      });
    const factor = of(layout.scales);
    return [
      wgsl`let factor${group}_${i}[${c}] = ${
        step === 1 ? factor : wgsl`${factor} * ${step}`
      };`,
      ...layout.offsets
        ? [wgsl`let offset${group}_${i}[${c}] = ${of(layout.offsets)};`]
        : [],
    ];
  });
  return [
    declared,
    wgsl`let ${name}_sum = ${location.index} / ${layout.group};`,
    ...loads.declared,
    ...values,
  ];
}
