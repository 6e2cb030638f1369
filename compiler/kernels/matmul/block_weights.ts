/** GGUF blocks as right operands of a matrix multiplication: codes in order of k, scales and offsets. */

import type { Block, Plane } from "../../../spec/weights/blocks.ts";
import type { FileDType } from "../../../spec/dtype.ts";
import {
  type PackedDType,
  packingOf,
  PACKINGS,
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
import {
  type LoadedMatmul,
  type Parts,
  RUN_TURN,
  type WeightDecoder,
  type WeightScales,
} from "./decoder.ts";
import { lookedUp } from "./packed_weights.ts";
import { groupsOfBlock, scalesInBlock } from "./scales.ts";
import { blockFactor, spread } from "../pieces/block.ts";
import { decoderOf } from "../pieces/decode.ts";

/** The blocks of weight i, and the loads of the matmul. */
interface BlockWeight {
  readonly o: LoadedMatmul;
  readonly i: number;
  readonly layout: Block;
  /** Bytes of the units in which blocks are stored: bytes or words. */
  readonly unit: 1 | 4;
  /** Factor of each scale. */
  readonly step: number;
}

/** Codes in a word. */
const CODES = 4;

/** Largest stripe of a plane of one word per sum of 32. */
const ONE_WORD = 4;

/**
 * Most indices of a run of a weight: its words are next to each other in every plane with several words per sum.
 * Undefined: it has no blocks.
 */
export function runLengthOf(stored: FileDType): number | undefined {
  const { block } = packingOf(stored) ?? {};
  return block && Math.min(
    EXACT.block,
    ...block.codes.map(({ stripe }) => stripe).filter((n) => n > ONE_WORD),
  );
}

/** The decoder of weight i in blocks. */
export function blockDecoder(o: LoadedMatmul, i: number): WeightDecoder {
  const { rowStride } = o.weights[i]!;
  const stored = o.weights[i]!.stored as PackedDType;
  const { block, inWords } = PACKINGS[stored];
  const layout = block!;
  const unit = inWords ? 4 : 1;
  const table = lookedUp(o, i);
  const weight = { o, i, layout, unit, step: table?.step ?? 1 } as const;
  const { above = 0, elements, bytes } = layout;
  const elementOf = (code: Hole) =>
    above > 0
      ? wgsl`f32(i32(${code}) - ${above}i)`
      : decoderOf(stored).element(code);
  const elementInWord = (word: Hole, n: number) =>
    elementOf(
      n === CODES - 1
        ? wgsl`(${word} >> 24u)`
        : wgsl`((${word} >> ${8 * n}u) & 255)`,
    );
  const wordName = "codes";
  return {
    perWord: CODES,
    alongK: CODES,
    rowWords: rowStride / elements * bytes / unit,
    wordName,
    load: (words, columns) => ({
      before: words.flatMap(({ name, k }) =>
        o.runLength === undefined
          ? codesAt(weight, { name, columns, k, codes: CODES })
          : codesOfRun(weight, { name, columns })
      ),
      of: () => [],
    }),
    element: (name, { column, n }) =>
      expr`${elementInWord(register(`${name}${i}`, [column], "u32"), n)}`,
    single: () => ({
      loaded: codesAt(weight, {
        name: wordName,
        columns: range(o.tile.columns),
        k: local("k", "u32"),
        codes: 1,
      }),
      element: (column) => {
        const code = register(`${wordName}${i}`, [column], "u32");
        return expr`${elementOf(code)}`;
      },
    }),
    word: {
      elements: (word, names) =>
        wgsl`${
          names.map((name, n) => wgsl`let ${name} = ${elementInWord(word, n)};`)
        }`,
    },
    // A word has a code per byte.
    table: table && {
      of: (word) => [expr`${table.of(word)[0]}`],
      at: (n) => [0, n],
    },
    beforeRun: (start, columns) => beforeRun(weight, { columns, start }),
    scales: scalesOfBlocks(weight),
  };
}

/** The scales and offsets in blocks. */
function scalesOfBlocks(weight: BlockWeight): WeightScales {
  const { o, i, layout: { group: elements, offsets } } = weight;
  return {
    elements,
    hasOffsets: offsets !== undefined,
    ofBlock: (count, { columns, start }) => {
      const { declared, groups } = groupsOfBlock(o, i, {
        elements,
        count,
        start,
      });
      return [
        ...declared,
        ...groups.flatMap((number, group) =>
          scalesAt(weight, { columns, group, number, holds: holds(weight) })
        ),
      ];
    },
    ofIteration: (column) => {
      const shift = Math.log2(elements / o.termCount);
      const number = expr`${local("k", "u32")} >> ${shift}u`;
      return scalesAt(weight, { columns: [column], group: 0, number });
    },
  };
}

/**
 * Whether the words of planes with one word per scale are loaded with the scales of a block of a sum: lanes that load
 * along k would load them again for every four indices.
 */
function holds({ o, i, layout }: BlockWeight): boolean {
  const { inside } = o.weights[i]!;
  return o.tile.right === "workgroup" && inside === "k" &&
    o.runLength === undefined &&
    scalesInBlock(o, { elements: layout.group }) > 0;
}

/** Whether a word of a plane has the bits of all elements with one scale. */
function isOfScale({ bits, stripe }: Plane, { group }: Block): boolean {
  return stripe === 1 && group * bits === 32;
}

/** The word of plane `plane` that was loaded with the scale of index `k`. */
function heldWord(
  { o, i, layout }: BlockWeight,
  { plane, k, column }: {
    readonly plane: number;
    readonly k: Expr;
    readonly column: number;
  },
): Expr {
  const of = (group: number) =>
    register(`held${plane}_${group}_${i}`, [column], "u32");
  return scalesInBlock(o, { elements: layout.group }) === 1
    ? of(0)
    : expr`select(${of(0)}, ${of(1)}, ${k} >= ${
      local(`boundary_${i}`, "u32")
    })`;
}

/** Loads of all columns, each declared once. */
interface Loads {
  readonly declared: (Stmt | KernelText)[];
  /** What a load at unit `index` of a column's blocks found. */
  of(index: Expr, column: number): Expr;
}

/** Loads of weight i, in the registers <prefix><n>_<i>[c]. */
function loadsOf(
  { o, i, unit }: BlockWeight,
  { prefix, columns }: {
    readonly prefix: string;
    readonly columns: readonly number[];
  },
): Loads {
  const { binding, inside, rowStride } = o.weights[i]!;
  const width = inside === "k" ? 1 : o.width;
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
 * Declares <name><i>[c]: the codes of four neighbours from index `k` on, in the bytes of a word, or that of index `k`
 * in the lowest bits.
 */
function codesAt(
  weight: BlockWeight,
  { name, columns, k, codes }: {
    readonly name: string;
    readonly columns: readonly number[];
    readonly k: Expr;
    readonly codes: 1 | typeof CODES;
  },
): Parts {
  const { i, layout, unit } = weight;
  const { declared, location } = locationOf(weight, { name: `${name}${i}`, k });
  const loads = loadsOf(weight, { prefix: `${name}_plane`, columns });
  const at = layout.codes.map((plane) => bitsAt(plane, location, unit));
  const shifts = at.map((_, plane) => `${name}_shift${plane}_${i}`);
  const wordOf = (plane: number, column: number) =>
    codes > 1 && holds(weight) && isOfScale(layout.codes[plane]!, layout)
      ? heldWord(weight, { plane, k, column })
      : loads.of(at[plane]!.unit, column);
  const values = columns.map((c) =>
    letRegister(
      `${name}${i}`,
      [c],
      joined(layout.codes, at.map((_, plane) => wordOf(plane, c)), {
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

/**
 * Declares run_at<plane>_<i> and run_shift<plane>_<i> of a run, and run_word<plane>_<i>[c] of planes with one word in
 * it.
 */
function beforeRun(
  weight: BlockWeight,
  { columns, start }: {
    readonly columns: readonly number[];
    readonly start: KernelText;
  },
): Parts {
  const { i, layout: { codes }, unit } = weight;
  const k = local(`run_start${i}`, "u32");
  const { declared, location } = locationOf(weight, { name: `run${i}`, k });
  return [
    wgsl`let run_start${i} = ${start};`,
    declared,
    ...codes.flatMap((plane, n) => {
      const at = bitsAt(plane, location, unit);
      const declared = wgsl`
        let run_at${n}_${i} = ${at.unit};
        let run_shift${n}_${i} = ${at.shift};`;
      if (plane.stripe > ONE_WORD) return [declared];
      const loads = loadsOf(weight, { prefix: `run_loaded${n}_`, columns });
      const index = local(`run_at${n}_${i}`, "u32");
      const words = columns.map((c) =>
        letRegister(`run_word${n}_${i}`, [c], loads.of(index, c))
      );
      return [declared, ...loads.declared, ...words];
    }),
  ];
}

/** `codesAt` of iteration `RUN_TURN` of a run. */
function codesOfRun(
  weight: BlockWeight,
  { name, columns }: {
    readonly name: string;
    readonly columns: readonly number[];
  },
): Parts {
  const { i, layout: { codes }, unit } = weight;
  const turn = local(RUN_TURN, "u32");
  const loads = loadsOf(weight, { prefix: `${name}_plane`, columns });
  const shifts = codes.map(({ bits, stripe }, n) => {
    const shift = local(`run_shift${n}_${i}`, "u32");
    return stripe > ONE_WORD
      ? shift
      : expr`${shift} + ${turn} * ${CODES * bits / stripe}`;
  });
  const wordOf = (n: number, c: number) => {
    if (codes[n]!.stripe <= ONE_WORD) {
      return register(`run_word${n}_${i}`, [c], "u32");
    }
    const at = local(`run_at${n}_${i}`, "u32");
    return loads.of(expr`${at} + ${turn} * ${CODES / unit}`, c);
  };
  const values = columns.map((c) =>
    letRegister(
      `${name}${i}`,
      [c],
      joined(codes, codes.map((_, n) => wordOf(n, c)), {
        shifts,
        codes: CODES,
      }),
    )
  );
  return [...loads.declared, ...values];
}

/**
 * Declares factor<g>_<i>[c] and, if there are offsets, offset<g>_<i>[c]: those of group `number` along k. `holds`: also
 * held<plane>_<g>_<i>[c], the words of planes with one word per scale.
 */
function scalesAt(
  weight: BlockWeight,
  { columns, group, number, holds = false }: {
    readonly columns: readonly number[];
    readonly group: number;
    readonly number: Expr;
    readonly holds?: boolean;
  },
): Parts {
  const { o, i, layout, unit, step } = weight;
  const name = `scale${group}_${i}`;
  const k = expr`${number} * ${layout.group}`;
  const { declared, location } = locationOf(weight, { name, k });
  const loads = loadsOf(weight, { prefix: `scale${group}_word`, columns });
  const found = {
    binding: o.weights[i]!.binding,
    from: location.from,
    ...unit === 4 ? { stride: 1 } : {},
    sum: local(`${name}_sum`, "u32"),
    flushes: (o.arithmetic ?? "guarded") === "guarded",
  };
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
  const held = layout.codes.flatMap((plane, n) =>
    holds && isOfScale(plane, layout)
      ? columns.map((c) =>
        letRegister(
          `held${n}_${group}_${i}`,
          [c],
          loads.of(bitsAt(plane, location, unit).unit, c),
        )
      )
      : []
  );
  return [
    declared,
    wgsl`let ${name}_sum = ${location.index} / ${layout.group};`,
    ...loads.declared,
    ...values,
    ...held,
  ];
}
