/**
 * Matrix multiplication with 16-bit operands for many rows: a workgroup rounds a panel of both operands to f16 in its
 * memory and multiplies them as matrices. Sums are f32 (`spec/numerics.md`, 16-bit operands).
 */

import { isSame } from "../../../spec/same.ts";
import { invariant } from "../../../spec/errors.ts";
import { call, id, sharedStore } from "../../../spec/kernel/build.ts";
import { clamped } from "../../../spec/kernel/guards.ts";
import { operand16 } from "../../../spec/kernel/matrices.ts";
import {
  letRegister,
  loadRegisters,
  register,
} from "../../../spec/kernel/registers.ts";
import type { Kernel, KernelText, Stmt } from "../kernel.ts";
import {
  bindingsOf,
  expr,
  GROUP_XZ,
  local,
  madeOnce,
  makeKernel,
  wgsl,
} from "../kernel.ts";
import { groupedTile } from "./matmul.ts";
import { guarded, u } from "./left.ts";
import type { MatmulOptions } from "./options.ts";
import { columnsAndWeights } from "./columns.ts";
import type { DecodedMatmul } from "./decoder.ts";
import { decoded } from "./weights.ts";
import { indicesOfTerms, rightAt, type Term, termsOf } from "./right.ts";
import { scalesOfBlock } from "./scales.ts";
import { beginWords, nextTerms, termsInWord } from "./words.ts";
import { matrixTile, storedRow } from "../matrix_tile.ts";
import { walkExpressions } from "../../../spec/kernel/walk.ts";
import { range } from "../../../spec/range.ts";
import {
  MATRIX_LANES,
  type MatrixShape,
  operandStride,
} from "../../tuning/matrices.ts";

/** Creates a matrix multiplication by tiles of a shape. `k` is a multiple of its depth. */
export function matmulMatrices(
  options: MatmulOptions,
  shape: MatrixShape,
): Kernel {
  const { k, weights } = options;
  const { depth } = shape;
  invariant(typeof k === "number" && k % depth === 0, "k consists of matrices");
  const all = {
    rows: 1,
    columns: shape.columns,
    lanes: MATRIX_LANES,
    right: "vector",
  } as const;
  const terms = termsOfLoad(decoded({ ...options, segments: 1, tile: all }));
  // Every lane loads some columns of one index of k, or of one word along k.
  const across = Math.min(shape.columns, MATRIX_LANES * terms / depth);
  const tiled = {
    ...options,
    tile: { ...all, columns: shape.columns / across },
    segments: 1,
    operands: "f16",
  } as const;
  const used = options.epilogue(
    {
      row: u("row"),
      column: u("column"),
      expert: options.grouped ? u("expert") : expr`0u`,
    },
    weights.map((_, i) => local(`result${i}`, "f32")),
  );
  const left = [
    options.leftRow(u("row")),
    options.left(u("base"), u("k")),
  ];
  return madeOnce([tiled, shape, left, used], () => {
    const o = decoded(tiled);
    const inside = tileText(o, { shape, across, used });
    return makeKernel({
      name: `${o.name}_f16`,
      workgroupSize: MATRIX_LANES,
      bindings: o.bindings,
      body: o.grouped
        ? groupedTile(
          o.grouped.tiles,
          wgsl`
          for (var tile_first = first; tile_first < end; tile_first += ${shape.rows}) {
            ${inside}
          }`,
        )
        : wgsl`
          let tile_first = ${GROUP_XZ} * ${shape.rows};
          let end = ${o.rows};
          if (tile_first < end) { ${inside} }`,
    });
  });
}

/** Indices of k that a lane loads at once: those of a word along k. */
function termsOfLoad(o: DecodedMatmul): number {
  return Math.max(termsOf(o).length, termsInWord(o));
}

/** The shape of a tile, and the statements that consume a result. */
interface Tile {
  readonly shape: MatrixShape;
  readonly used: readonly Stmt[];
}

/** One tile of results, from row `tile_first`. */
function tileText(
  o: DecodedMatmul & MatmulOptions,
  { shape, across, used }: {
    readonly shape: MatrixShape;
    /** Lanes with different columns of the right operand. */
    readonly across: number;
    readonly used: readonly Stmt[];
  },
): KernelText {
  const left = loadLeft(o, { shape, used });
  const right = loadRight(o, { shape, across });
  return matrixTile(shape, {
    k: Number(o.k),
    products: o.weights.map((_, i) => ({
      name: `sum${i}`,
      right: `right_tile${i}`,
    })),
    prepare: wgsl`${left.prepare} ${right.prepare}`,
    load: wgsl`${left.load} ${right.load}`,
    column: { from: expr`${id("group.y")} * ${shape.columns}`, end: o.columns },
    values: o.weights.map((_, i) => `result${i}`),
    body: used,
  });
}

/** Code before the loop over k, and the load of a panel in it. */
interface Panel {
  readonly prepare: KernelText;
  readonly load: KernelText;
}

/** Most elements of the left operand per load. */
const WIDTH = 4;

/**
 * `left_tile` f16 [row, k]: neighbouring lanes load neighbouring indices of k, each a vector of them if it can. After
 * the last row, the last one is loaded again.
 */
function loadLeft(
  o: MatmulOptions,
  { shape: { rows, depth }, used }: Tile,
): Panel {
  const most = rows * depth / MATRIX_LANES;
  const vector = most % 2 === 0 ? vectorBinding(o, used) : undefined;
  const width = vector === undefined ? 1 : Math.min(WIDTH, most);
  const units = depth / width;
  const atOnce = MATRIX_LANES / units;
  const loads = range(rows / atOnce);
  const stride = operandStride(depth);
  const row = (n: number) =>
    o.leftRow(
      clamped(
        expr`${u("tile_first")} + ${u("lane_row")} + ${n * atOnce}`,
        u("end"),
      ),
    );
  const to = (n: number, m: number) =>
    expr`${u("left_to")} + ${n * atOnce * stride + m}`;
  const from = (n: number) => register("left", [n], "u32");
  return {
    prepare: wgsl`
      let unit_row = lane / ${units};
      let lane_row = ${storedRow(u("unit_row"), depth)};
      let lane_k = lane % ${units} * ${width};
      let left_to = lane_row * ${stride} + lane_k;
      ${
      loads.map((n) =>
        letRegister(
          "left",
          [n],
          vector === undefined
            ? row(n)
            : expr`(${row(n)} + ${u("lane_k")}) / ${width}`,
        )
      )
    }`,
    load: wgsl`
      let left_k = ${
      vector === undefined ? wgsl`k_start + lane_k` : wgsl`k_start / ${width}`
    };
      ${
      loads.flatMap((n) =>
        vector === undefined
          ? [
            sharedStore(
              "left_tile",
              to(n, 0),
              operand16(o.left(from(n), u("left_k"))),
            ),
          ]
          : [
            loadRegisters(`left_value${n}`, range(width), {
              binding: vector,
              type: "f32",
              index: expr`${from(n)} + ${u("left_k")}`,
            }),
            ...range(width).map((m) =>
              sharedStore(
                "left_tile",
                to(n, m),
                operand16(register(`left_value${n}`, [m])),
              )
            ),
          ]
      )
    }`,
  };
}

/**
 * The binding of the left operand, if all its loads can be vectors: each row is contiguous, and nothing else loads it.
 */
function vectorBinding(
  o: MatmulOptions,
  used: readonly Stmt[],
): string | undefined {
  const [base, k] = [u("base"), u("k")];
  const row = o.leftRow(u("row"));
  const value = o.left(base, k);
  const isContiguous = value.op === "load" && value.type === "f32" &&
    isSame(value.index, expr`${base} + ${k}`) &&
    row.op === "binary" && row.fn === "mul" && row.b.op === "const" &&
    Number(row.b.value) % WIDTH === 0;
  if (!isContiguous) return undefined;
  const { binding } = value;
  const { access } = o.bindings.find(({ name }) => name === binding)!;
  const others = o.weights.flatMap((weight) => [
    weight.binding,
    weight.scales,
    weight.offsets,
    weight.factors,
  ]);
  let isAlone = access === "read" && !others.includes(binding) &&
    !bindingsOf(row).has(binding);
  walkExpressions(used, (e) => {
    if (e.op === "load" && e.binding === binding) isAlone = false;
  });
  return isAlone ? binding : undefined;
}

/** `right_tile<i>` f16 [k, column] of each weight: each lane loads the columns of one index of k, or of one word. */
function loadRight(
  o: DecodedMatmul,
  { shape: { columns, depth }, across }: {
    readonly shape: MatrixShape;
    readonly across: number;
  },
): Panel {
  const { terms, ...words } = wordsOf(o);
  const busy = across * depth / terms.length;
  const each = range(o.tile.columns);
  const { unit } = o;
  const stride = operandStride(columns);
  const to = (c: number, n: number) =>
    expr`${register("right_to", [c - c % unit], "u32")} + ${
      n * stride + c % unit
    }`;
  const stored = o.decoders.flatMap(({ f16 }, i) =>
    terms.flatMap(({ prefix }, n) =>
      each.map((c) => {
        const value = register(`${prefix}b${i}`, [c]);
        return sharedStore(
          `right_tile${i}`,
          to(c, n),
          f16 === "exact"
            ? value
            : f16 === "limited"
            ? call("roundF16", value)
            : operand16(value),
        );
      })
    )
  );
  const load = wgsl`
    ${
    o.weights.flatMap((_, i) => scalesOfBlock(o, i, { start: wgsl`k_start` }))
  }
    ${words.load}
    ${stored}`;
  return {
    prepare: wgsl`
      ${words.begin}
      let unit_turn = lane / ${across};
      let lane_turn = ${storedRow(u("unit_turn"), across * unit)};
      ${columnsAndWeights(o, { lanes: across })}
      ${
      each.filter((c) => c % unit === 0).map((c) =>
        letRegister(
          "right_to",
          [c],
          expr`${u("lane_turn")} * ${terms.length * stride}u + ${
            register("column", [c], "u32")
          } - group.y * ${columns}u`,
        )
      )
    }`,
    load: wgsl`${guarded(busy < MATRIX_LANES, wgsl`lane < ${busy}`, load)}`,
  };
}

/** The terms of a lane, and the load of their words: those along k are decoded together. */
function wordsOf(o: DecodedMatmul): {
  readonly terms: readonly Term[];
  readonly begin: readonly KernelText[];
  readonly load: KernelText;
} {
  const count = termsInWord(o);
  if (count > 1 && termsOf(o).length === 1) {
    const { terms, loaded, values } = nextTerms(o, count, { together: 1 });
    return {
      terms,
      begin: beginWords(o),
      load: wgsl`
        let k = k_start + lane_turn * ${count};
        ${loaded}
        ${range(count).flatMap(values)}`,
    };
  }
  const terms = termsOf(o);
  return {
    terms,
    begin: [],
    load: wgsl`
      let k = k_start / ${terms.length} + lane_turn;
      ${indicesOfTerms(o)}
      ${o.weights.flatMap((_, i) => rightAt(o, i))}`,
  };
}
