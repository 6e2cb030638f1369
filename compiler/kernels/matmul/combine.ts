/**
 * The last matmul of the experts of one token and the sum over its choices, on a wide device: a workgroup has some
 * columns of all choices, so that it adds their results. Sums have the order of separate kernels.
 */

import { sharedStore, u32 } from "../../../spec/kernel/build.ts";
import { SHARED_WORDS } from "../../../spec/kernel/make.ts";
import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import { type SumBlocks, sumBlocks } from "../../tuning/tile.ts";
import { invariant } from "../../../spec/errors.ts";
import type {
  Expr,
  Hole,
  Kernel,
  KernelText,
  Statements,
  Stmt,
} from "../kernel.ts";
import { expr, kernelOf, local, wgsl } from "../kernel.ts";
import type { Matmul } from "./matmul.ts";
import { productsOfTerms } from "./products.ts";
import { addedBlocks, columnAt, sumsOfBlock, treeOf } from "./blocks.ts";
import { columnsAndWeights } from "./columns.ts";
import { leftOf, u } from "./left.ts";
import type { MatmulOptions } from "./options.ts";
import { scalesOfBlock } from "./scales.ts";
import { decoded } from "./weights.ts";
import { beginWords, loadsBlock, termsAtOnce } from "./words.ts";
import { loadsAtOnce } from "../pieces/at_once.ts";
import { type EarlyLoads, loadEarly } from "../pieces/early_loads.ts";

/** A matmul of one row per choice of a token by the weights of its expert, and the sum of the results. */
export interface CombinedMatmulOptions
  extends Omit<MatmulOptions, "epilogue" | "norm"> {
  /** Choices of the token. */
  readonly choices: number;
  /** The expert of a choice. */
  expert(choice: Expr): Expr;
  /** The weight of a choice. Default: 1, without a multiplication. */
  weight?(choice: Expr): Expr;
  /** Statements that compute the result of a choice from its sum, followed by its use. */
  result(
    at: { readonly row: Expr; readonly column: Expr; readonly expert: Expr },
    sum: Expr,
    use: (value: Expr) => readonly Stmt[],
  ): readonly Stmt[];
  /** Consumes a column of the sum over all choices. */
  epilogue(column: Expr, sum: Expr): readonly Stmt[];
}

/** Words of workgroup memory for the tables of 4-bit floats. */
const TABLE_WORDS = 16;

/** Choices whose block sums workgroup memory holds at once. 0: none, so this kernel is not possible. */
export function choicesAtOnce(
  o: Pick<
    CombinedMatmulOptions,
    "k" | "segments" | "columns" | "choices" | "tile" | "grouped"
  >,
): number {
  const { columns } = o.tile;
  const { lanes } = teamsOf(o);
  const blocks = sumBlocks(o);
  if (!blocks) return 0;
  const width = columns * lanes;
  // A lane adds the results of a column.
  if (width > o.tile.lanes) return 0;
  const room = SHARED_WORDS - TABLE_WORDS - o.choices * width;
  return Math.max(
    0,
    Math.min(o.choices, Math.floor(room / (blocks.count * width))),
  );
}

/** A kernel with its loops. */
interface Combined {
  readonly o: CombinedMatmulOptions;
  readonly whole: Matmul;
  readonly blocks: SumBlocks;
  /** Columns of a workgroup. */
  readonly width: number;
  /** Choices whose block sums are in memory, and whether these are all. */
  readonly atOnce: number;
  readonly single: boolean;
  /** Declares the column of number `of_width` of the workgroup. */
  readonly cell: KernelText;
}

/** Creates the matmul of the choices of one token. Its grid is [1, ceil(columns / those of a workgroup), 1]. */
export function matmulCombined(o: CombinedMatmulOptions): Kernel {
  const { lanes } = teamsOf(o);
  const width = o.tile.columns * lanes;
  const blocks = sumBlocks(o);
  invariant(blocks, "teams share out blocks of a known k");
  const whole: Matmul = {
    ...decoded({ ...o, epilogue: () => [] }),
    used: [],
  };
  const atOnce = choicesAtOnce(o);
  const cell = wgsl`
    let cell = of_width / ${lanes};
    let cell_lane = of_width % ${lanes};
    let lane_unit = group.y * ${width / whole.unit} + cell_lane;
    let column = ${columnAt(whole, u("cell"))};`;
  const single = atOnce === o.choices;
  const c: Combined = { o, whole, blocks, width, atOnce, single, cell };
  return kernelOf({
    name: o.name,
    workgroupSize: o.tile.lanes,
    bindings: o.bindings,
    body: bodyOf(c),
  });
}

/** Block sums of choices, the results of choices, and their sum. */
function bodyOf(c: Combined): KernelText {
  const { o, whole, blocks, width, atOnce, single, cell } = c;
  const { lanes } = teamsOf(o);
  const results = earlyResults(c);
  const total = totalOf(c);
  const ofResults = inSegments(c) ? resultsOfSegments : resultsOfBlocks;
  const here = single
    ? wgsl`${o.choices}u`
    : wgsl`min(${atOnce}u, ${o.choices} - first_choice)`;
  const round = wgsl`
    let here = ${here};
    ${eachTask(c)}
    workgroupBarrier();
    ${ofResults(c, results.rest)}
    workgroupBarrier();`;
  /** For the columns of the workgroup. */
  const eachColumn = (body: Statements) =>
    wgsl`
    if (lane < ${width}) {
      let of_width = lane;
      ${cell}
      if (column < ${o.columns}) { ${body} }
    }`;
  return wgsl`
    var<workgroup> block_sums: array<f32, ${atOnce * blocks.count * width}>;
    var<workgroup> of_choices: array<f32, ${o.choices * width}>;
    ${beginWords(whole)}
    let team = lane / ${lanes};
    let lane_column = lane % ${lanes};
    ${results.declared}
    ${results.loaded.length > 0 && eachCell(c, results.loaded)}
    ${total.declared}
    ${total.loaded.length > 0 && eachColumn(total.loaded)}
    ${
    single ? round : wgsl`
    for (var first_choice = 0u; first_choice < ${o.choices}; first_choice += ${atOnce}) { ${round} }`
  }
    ${eachColumn(total.rest)}`;
}

/** The first choice whose block sums are in memory. */
function firstChoice({ single }: Combined): KernelText {
  return single ? wgsl`0u` : wgsl`first_choice`;
}

/** Sums blocks of k of the choices, distributed over the teams. */
function eachTask(c: Combined): KernelText {
  const { o, whole, blocks } = c;
  const { columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const { count, length, last } = blocks;
  const left = leftOf(whole, {
    rows: 1,
    ofGroup: 1,
    stretch: length,
    waits: true,
  });
  const short = last < length ? { count: last } : undefined;
  const oneBlock = sumsOfBlock(
    whole,
    {
      rows: 1,
      blocks,
      before: (start) =>
        o.weights.flatMap((_, i) => scalesOfBlock(whole, i, { start })),
      terms: termsAtOnce(whole),
      add: (n) => productsOfTerms(whole, left, { rows: 1, count: n }),
      addBlock: loadsBlock(whole)
        ? (condition) =>
          productsOfTerms(whole, left, {
            rows: 1,
            count: length,
            short: short && { ...short, condition },
          })
        : undefined,
    },
    (sum) => wgsl`(task * ${columns} + ${sum}) * ${lanes} + lane_column`,
  );
  return wgsl`
    for (var task = team; task < here * ${count}; task += ${teams}) {
      let first = ${firstChoice(c)} + task / ${count};
      let end = first + 1;
      let block_at = task % ${count};
      let expert = ${o.expert(u("first"))};
      ${columnsAndWeights(whole, { lanes })}
      ${left.prepare}
      ${oneBlock}
    }`;
}

/** The result of `choice` in `column` from its sum `total`, stored in `of_choices`. */
function resultOf({ o, width }: Combined): readonly Stmt[] {
  return o.result(
    { row: u("choice"), column: u("column"), expert: u("expert") },
    register("total", []),
    (value) => [
      sharedStore(
        "of_choices",
        expr`${u("choice")} * ${width} + ${u("of_width")}`,
        value,
      ),
    ],
  );
}

/** Whether each lane has at most one result, whose operands it can load before the products. */
function isOneCell({ o, width, single }: Combined): boolean {
  return single && o.choices * width <= o.tile.lanes;
}

/** Results, whose operands are loaded before the products if each lane has one. */
function earlyResults(c: Combined): EarlyLoads {
  const rest = resultOf(c);
  return isOneCell(c)
    ? loadEarly(rest, {
      prefix: "early_of_result",
      known: ["choice", "column", "expert"],
    })
    : { declared: [], loaded: [], rest };
}

/** Executes `body` for the only result of a lane, if its column exists. `before`: code before, for every column. */
function eachCell(
  { o, width, cell }: Combined,
  body: Statements,
  before?: KernelText,
): KernelText {
  return wgsl`
    if (lane < ${o.choices * width}) {
      let choice = lane / ${width};
      let of_width = lane % ${width};
      let expert = ${o.expert(u("choice"))};
      ${cell}
      ${before}
      if (column < ${o.columns}) { ${body} }
    }`;
}

/** Whether every segment of each result has a lane. */
function inSegments(c: Combined): boolean {
  const { o, blocks: { count, ofSegment }, width } = c;
  return isOneCell(c) && count > ofSegment &&
    o.choices * width * (count / ofSegment) <= o.tile.lanes;
}

/** Results of all choices: lanes add the blocks of a segment, then those of each result its segments. */
function resultsOfSegments(
  c: Combined,
  result: readonly Stmt[],
): KernelText {
  const { o, blocks: { count, ofSegment }, width } = c;
  const cells = o.choices * width;
  const segments = count / ofSegment;
  const together = loadsAtOnce(ofSegment);
  const ofCell = (cell: KernelText, block: Hole) =>
    wgsl`(${cell} / ${width} * ${count} + ${block}) * ${width} + ${cell} % ${width}`;
  // Only this lane reads the block sums of its segment, so it replaces the first of them.
  return wgsl`
    if (lane < ${cells * segments}) {
      let of_cells = lane % ${cells};
      let first_block = lane / ${cells} * ${ofSegment};
      var of_blocks = 0.0;
      for (var nth = 0u; nth < ${ofSegment}; nth += ${together}) {
        let from_block = ${ofCell(wgsl`of_cells`, wgsl`(first_block + nth)`)};
        @unroll (n < ${together}) {
          let of_block[n] = block_sums[from_block + n * ${width}];
        }
        @unroll (n < ${together}) { of_blocks += of_block[n]; }
      }
      block_sums[${ofCell(wgsl`of_cells`, wgsl`first_block`)}] = of_blocks;
    }
    workgroupBarrier();
    ${
    eachCell(
      c,
      result,
      wgsl`
      let from_segment = ${ofCell(wgsl`lane`, 0)};
      @unroll (n < ${segments}) {
        let of_segment[n] = block_sums[from_segment + n * ${ofSegment * width}];
      }
      let total = ${treeOf("of_segment", segments)};`,
    )
  }`;
}

/** Results of the choices in memory: a lane adds all blocks of its results. */
function resultsOfBlocks(c: Combined, result: readonly Stmt[]): KernelText {
  const { o, blocks, width, cell } = c;
  const { count } = blocks;
  const { lanes } = teamsOf(o);
  const together = loadsAtOnce(blocks.ofSegment);
  const added = addedBlocks([{ base: "total", indices: [] }], blocks, {
    number: wgsl`block`,
    together,
    load: [wgsl`
      let from_block = ((nth * ${count} + block) * ${o.tile.columns} + cell) * ${lanes} + cell_lane;
      @unroll (n < ${together}) {
        let of_block[n] = block_sums[from_block + n * ${width}];
      }`],
    add: [wgsl`@unroll (n < ${together}) { total += of_block[n]; }`],
  });
  return wgsl`
    for (var cell_of = lane; cell_of < here * ${width}; cell_of += ${o.tile.lanes}) {
      let nth = cell_of / ${width};
      let of_width = cell_of % ${width};
      let choice = ${firstChoice(c)} + nth;
      let expert = ${o.expert(u("choice"))};
      ${cell}
      ${added.declare}
      for (var block = 0u; block < ${count}; block += ${together}) {
        ${added.addBlocks}
      }
      if (column < ${o.columns}) { ${result} }
    }`;
}

/** The sum of a column over all choices, in their order, and its use; their operands are loaded before the products. */
function totalOf(
  { o, width }: Combined,
): Omit<EarlyLoads, "rest"> & { readonly rest: KernelText } {
  const { weight } = o;
  const ofChoices = range(o.choices);
  const factors = loadEarly(
    weight
      ? ofChoices.map((j) => letRegister("factor", [j], weight(u32(j))))
      : [],
    { prefix: "early_factor", known: [] },
  );
  const used = loadEarly(o.epilogue(u("column"), local("sum", "f32")), {
    prefix: "early_of_total",
    known: ["column"],
  });
  return {
    declared: [...factors.declared, ...used.declared],
    loaded: [...factors.loaded, ...used.loaded],
    rest: wgsl`
      ${factors.rest}
      var sum = 0.0;
      ${
      ofChoices.map((j) => {
        const ofChoice = wgsl`of_choices[${j * width} + lane]`;
        return weight
          ? wgsl`sum = fma(factor[${j}], ${ofChoice}, sum);`
          : wgsl`sum += ${ofChoice};`;
      })
    }
      ${used.rest}`,
  };
}
