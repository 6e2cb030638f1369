/**
 * The last matmul of the experts of one token and the sum over its choices, on a wide device: a workgroup has some
 * columns of all choices, so that it adds their results. Sums have the order of separate kernels.
 */

import { sharedStore } from "../../../spec/kernel/build.ts";
import { SHARED_WORDS } from "../../../spec/kernel/make.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import { sumBlocks } from "../../tuning/tile.ts";
import { invariant } from "../../../spec/errors.ts";
import type { Expr, Kernel, Stmt } from "../kernel.ts";
import { expr, kernelOf, local, wgsl } from "../kernel.ts";
import type { Matmul } from "./matmul.ts";
import { productsOfTerms } from "./products.ts";
import { addedBlocks, columnAt, sumsOfBlock } from "./blocks.ts";
import { columnsAndWeights } from "./columns.ts";
import { leftOf, u } from "./left.ts";
import type { MatmulOptions } from "./options.ts";
import { scalesOfBlock } from "./scales.ts";
import { decoded } from "./weights.ts";
import { beginWords, loadsBlock, termsAtOnce } from "./words.ts";
import { loadsAtOnce } from "../pieces/at_once.ts";

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

/** Creates the matmul of the choices of one token. Its grid is [1, ceil(columns / those of a workgroup), 1]. */
export function matmulCombined(o: CombinedMatmulOptions): Kernel {
  const { tile, choices, weight } = o;
  const { columns } = tile;
  const { lanes, teams } = teamsOf(o);
  const blocks = sumBlocks(o);
  invariant(blocks, "teams share out blocks of a known k");
  const { count } = blocks;
  const width = columns * lanes;
  const atOnce = choicesAtOnce(o);
  const single = atOnce === choices;
  const here = single
    ? wgsl`${choices}u`
    : wgsl`min(${atOnce}u, ${choices} - first_choice)`;
  const firstChoice = single ? wgsl`0u` : wgsl`first_choice`;
  const whole: Matmul = {
    ...decoded({ ...o, epilogue: () => [] }),
    used: [],
  };
  const left = leftOf(whole, {
    rows: 1,
    ofGroup: 1,
    stretch: blocks.length,
    waits: true,
  });
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
        ? (condition) => {
          const { length, last } = blocks;
          const short = last < length ? { count: last, condition } : undefined;
          return productsOfTerms(whole, left, {
            rows: 1,
            count: length,
            short,
          });
        }
        : undefined,
    },
    (sum) => wgsl`(task * ${columns} + ${sum}) * ${lanes} + lane_column`,
  );
  const total = { base: "total", indices: [] };
  const together = loadsAtOnce(blocks.ofSegment);
  const added = addedBlocks([total], blocks, {
    number: wgsl`block`,
    together,
    load: [wgsl`
      let from_block = ((nth * ${count} + block) * ${columns} + cell) * ${lanes} + cell_lane;
      @unroll (n < ${together}) {
        let of_block[n] = block_sums[from_block + n * ${width}];
      }`],
    add: [wgsl`@unroll (n < ${together}) { total += of_block[n]; }`],
  });
  /** Declares the column of number \`of_width\` of the workgroup. */
  const cellOf = wgsl`
    let cell = of_width / ${lanes};
    let cell_lane = of_width % ${lanes};
    let lane_unit = group.y * ${width / whole.unit} + cell_lane;
    let column = ${columnAt(whole, u("cell"))};`;
  const eachTask = wgsl`
    for (var task = team; task < here * ${count}; task += ${teams}) {
      let first = ${firstChoice} + task / ${count};
      let end = first + 1;
      let block_at = task % ${count};
      let expert = ${o.expert(u("first"))};
      ${columnsAndWeights(whole, { lanes })}
      ${left.prepare}
      ${oneBlock}
    }`;
  const at = { row: u("choice"), column: u("column"), expert: u("expert") };
  const kept = (value: Expr): readonly Stmt[] => [
    sharedStore(
      "of_choices",
      expr`${u("choice")} * ${width} + ${u("of_width")}`,
      value,
    ),
  ];
  const eachResult = wgsl`
    for (var cell_of = lane; cell_of < here * ${width}; cell_of += ${tile.lanes}) {
      let nth = cell_of / ${width};
      let of_width = cell_of % ${width};
      let choice = ${firstChoice} + nth;
      let expert = ${o.expert(u("choice"))};
      ${cellOf}
      ${added.declare}
      for (var block = 0u; block < ${count}; block += ${together}) {
        ${added.addBlocks}
      }
      if (column < ${o.columns}) { ${
    o.result(at, register("total", []), kept)
  } }
    }`;
  const round = wgsl`
    let here = ${here};
    ${eachTask}
    workgroupBarrier();
    ${eachResult}
    workgroupBarrier();`;
  const product = weight
    ? expr`fma(${weight(u("j"))}, ${local("of_choice", "f32")}, ${
      local("sum", "f32")
    })`
    : wgsl`sum + of_choice`;
  return kernelOf({
    name: o.name,
    workgroupSize: tile.lanes,
    bindings: o.bindings,
    body: wgsl`
        var<workgroup> block_sums: array<f32, ${atOnce * count * width}>;
        var<workgroup> of_choices: array<f32, ${choices * width}>;
        ${beginWords(whole)}
        let team = lane / ${lanes};
        let lane_column = lane % ${lanes};
        ${
      single ? round : wgsl`
        for (var first_choice = 0u; first_choice < ${choices}; first_choice += ${atOnce}) { ${round} }`
    }
        if (lane < ${width}) {
          let of_width = lane;
          ${cellOf}
          if (column < ${o.columns}) {
            var sum = 0.0;
            for (var j = 0u; j < ${choices}; j++) {
              let of_choice = of_choices[j * ${width} + lane];
              sum = ${product};
            }
            ${o.epilogue(u("column"), local("sum", "f32"))}
          }
        }`,
  });
}
