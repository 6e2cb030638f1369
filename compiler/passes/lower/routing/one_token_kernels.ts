/** The two kernels of the experts of one token: `one_token.ts` launches them. */

import {
  add,
  convert,
  div,
  load,
  loadStored,
  mul,
  store,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr, Kernel } from "../../../../spec/kernel/tree.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import {
  choicesGroups,
  type ChoicesMatmulOptions,
  matmulOfChoices,
} from "../../../kernels/matmul/choices.ts";
import { unitOf } from "../../../kernels/matmul/columns.ts";
import {
  choicesAtOnce,
  type CombinedMatmulOptions,
  matmulCombined,
} from "../../../kernels/matmul/combine.ts";
import type { MatmulOptions } from "../../../kernels/matmul/options.ts";
import { lanesOfRouter } from "../../../kernels/routing/router_lanes.ts";
import { blocksInRound, matmulShape } from "../../../tuning/lanes.ts";
import { tileFor } from "../../../tuning/table.ts";
import {
  narrowedRow,
  sharesAnyBlocks,
  sumBlocks,
  tileOfWeights,
} from "../../../tuning/tile.ts";
import { adjacentOf } from "../adjacent.ts";
import { fixedProduct, type Lowering } from "../context.ts";
import { weightsOf } from "../matmul/operands.ts";
import { dotShape } from "../matmul/dot_shape.ts";
import { computeValue, emitValue, finish, type Known } from "../emit.ts";
import { writeTarget } from "../epilogue.ts";
import type { ExpertChain, ExpertMatmul } from "./expert_chain.ts";
import { atRow, restAxes } from "../index_space.ts";
import { type At, atFlat, atJoined } from "../indices.ts";
import { inlineNormOf, normOperands } from "../matmul/inline_norms.ts";
import type { Storage } from "../lowering.ts";
import { KernelScope } from "../scope.ts";

/** A kernel, and its workgroups along y. */
export interface OneTokenKernel {
  readonly scope: KernelScope;
  readonly kernel: Kernel;
  readonly groups: number;
}

/** Options of a matmul of one row without its left operand and its result. */
interface TeamOptions
  extends Omit<MatmulOptions, "name" | "leftRow" | "left" | "epilogue"> {
  readonly k: number;
}

/** Options of a matmul whose teams sum different blocks of k for one row. Undefined: they cannot. */
function inTeams(
  scope: KernelScope,
  { dots }: ExpertMatmul,
): TeamOptions | undefined {
  const { lowering } = scope;
  const [first] = dots;
  const { over, columns } = dotShape(first!);
  const k = fixedProduct(lowering, first!, over);
  const width = fixedProduct(lowering, first!, columns);
  const { storages } = lowering.values;
  if (dots.some((dot) => storages.get(dot.inputs[1]!)?.bucket)) return;
  const weights = weightsOf(scope, dots, { k, width });
  if (weights.some(({ inside }) => inside === "k")) return;
  const { tile } = tileFor(lowering.options.tuning, {
    grouped: true,
    weights: weights.length,
    stored: weights[0]!.stored,
    k,
    columns: width,
  });
  const options = {
    bindings: scope.bindings,
    k,
    segments: first!.params.segments ?? segmentsOf(k),
    columns: width,
    tile: {
      ...tileOfWeights(tile, weights, {
        grouped: true,
        k,
        columns: width,
        // Choices have workgroups of their own, which merge with those of shared experts.
        maxLanes: tile.lanes,
      }),
      rows: 1,
    },
    rows: u32(1),
    grouped: { tiles: "" },
    weights,
  };
  return sharesAnyBlocks(options.tile) && blocksInRound(options, 1) > 0
    ? options
    : undefined;
}

/** `_pair_2048x768` */
function shapeOf(
  { weights, k, columns }: Pick<MatmulOptions, "weights" | "k" | "columns">,
): string {
  return `${weights.length > 1 ? "_pair" : ""}_${k}x${columns}`;
}

/** Words of workgroup memory of a router per expert; most routers need little more than one. */
const ROUTER_WORDS = 5;

/** The first matmul of the choices. Undefined: no such kernel is possible. */
export function chooseKernel(
  lowering: Lowering,
  chain: ExpertChain,
  buffer: string,
): OneTokenKernel | undefined {
  const { router, choices, grouped, first, hidden, slices, tokens } = chain;
  const scope = new KernelScope(lowering);
  for (const name of ["logits", ...router.options.operands ?? []]) {
    scope.readAs(name, router.bindings[name]!);
  }
  const options = inTeams(scope, first);
  if (!options) return;
  if (options.tile.lanes < lanesOfRouter(router.options.experts)) return;
  const [dot] = first.dots;
  const { over, columns } = dotShape(dot!);
  const norm = inlineNormOf(lowering, dot!);
  const left = norm
    ? normOperands(scope, norm, dot!)
    : tokenOperand(scope, tokens, { over, options });
  if (!left) return;
  const [index, weight] = [choices.index, choices.weight].map((buffer) =>
    scope.write(buffer)
  ) as [string, string];
  const rest = restAxes(hidden);
  const width = fixedProduct(lowering, hidden, rest);
  const full: ChoicesMatmulOptions = {
    ...options,
    ...left,
    otherWords: ROUTER_WORDS * router.options.experts +
      (left.otherWords ?? 0),
    name: `choices_matmul${shapeOf(options)}`,
    leftRow: () => u32(0),
    router: router.options,
    ...slices ? { adjacent: true } : {},
    choose: (choice, expert, share) => [
      store(index, choice, convert("i32", expert)),
      store(weight, choice, share),
    ],
    epilogue: ({ row, column, expert }, sums) =>
      scope.block(() => {
        const at = (inner: At) => atRow(scope, inner, { grouped, row, expert });
        const of = (n: number) =>
          at(atFlat(scope, columns, n === 0 ? column : add(column, u32(n))));
        const known: Known | undefined = slices &&
          new Map(slices.map((slice, n) => [
            slice,
            finish(
              slice,
              scope.bindValue(
                valueOf(scope, first, { at: of(n), sums: [sums[n]!] }),
              ),
            ),
          ]));
        const index = slices ? div(column, u32(2)) : column;
        const there = at(atFlat(scope, rest, index));
        const value = known
          ? computeValue(scope, hidden, there, known)
          : valueOf(scope, first, { at: there, sums });
        return [
          store(
            scope.write(buffer),
            add(mul(row, u32(width)), index),
            value,
          ),
        ];
      }),
  };
  const isAdjacent = unitOf(full) % 2 === 0 && full.weights.length === 1;
  if (slices && !isAdjacent) return;
  // The router may leave too little workgroup memory.
  if (blocksInRound(full, 1) === 0) return;
  const kernel = matmulOfChoices(full);
  return { scope, kernel, groups: choicesGroups(full) };
}

/** The last matmul of the choices, and the sum over them. Undefined: no such kernel is possible. */
export function combineKernel(
  lowering: Lowering,
  { router, choices, grouped, last }: ExpertChain,
  { buffer, target, combine, storage }: {
    readonly buffer: string;
    readonly target: Node;
    readonly combine: NodeOf<"combine">;
    readonly storage: Storage;
  },
): OneTokenKernel | undefined {
  const scope = new KernelScope(lowering);
  const wider = inTeams(scope, last);
  if (!wider) return;
  const { columns } = dotShape(last.dots[0]!);
  const { tokens, rule: { topK } } = router.node.params;
  const options = {
    ...wider,
    tile: narrowedRow(wider.tile, {
      stored: wider.weights[0]!.stored,
      columns: wider.columns,
      blocks: topK * sumBlocks(wider)!.count,
      maxLanes: lowering.options.maxLanes,
    }),
  };
  const { index, weight } = choices;
  const rest = combine.axes.slice(tokens.length);
  const left = scope.read(buffer);
  const { dtype } = lowering.draft.buffers.get(buffer)!;
  const full: CombinedMatmulOptions = {
    ...options,
    name: `combined_matmul${shapeOf(options)}`,
    choices: topK,
    leftRow: (row) => mul(row, u32(wider.k)),
    left: (base, i) => loadStored(left, dtype, add(base, i)),
    leftAdjacent: adjacentOf(
      scope,
      { buffer, dtype },
      wider.k / (wider.segments ?? 1),
    ),
    expert: (choice) => convert("u32", load(scope.read(index), choice, "i32")),
    ...combine.params.weighted
      ? { weight: (choice) => load(scope.read(weight), choice) }
      : {},
    result: ({ row, column, expert }, sum, use) =>
      scope.block(() => {
        const inner = atFlat(scope, columns, column);
        const at = atRow(scope, inner, { grouped, row, expert });
        return use(valueOf(scope, last, { at, sums: [sum] }));
      }),
    epilogue: (column, sum) => {
      const inner = atFlat(scope, rest, column);
      const outer = atFlat(scope, tokens, u32(0));
      const flat = { order: combine.axes, index: column };
      const at = { ...atJoined(rest, inner, outer), flat };
      return writeTarget(
        { scope, node: target, storage, roots: [combine] },
        at,
        [sum],
      );
    },
  };
  if (choicesAtOnce(full) === 0) return;
  const { columns: each } = matmulShape(full);
  const kernel = matmulCombined(full);
  return { scope, kernel, groups: Math.ceil(options.columns / each) };
}

/** The sums of a matmul as known values. */
function rootsOf(
  scope: KernelScope,
  { dots }: ExpertMatmul,
  sums: readonly Expr[],
): Known {
  return new Map(
    dots.map((dot, i) => [dot, finish(dot, scope.bindValue(sums[i]!))]),
  );
}

/** The value of a matmul from its sums. */
function valueOf(
  scope: KernelScope,
  of: ExpertMatmul,
  { at, sums }: { readonly at: At; readonly sums: readonly Expr[] },
): Expr {
  const known = rootsOf(scope, of, sums);
  return known.has(of.node)
    ? emitValue(scope, of.node, at, known)
    : computeValue(scope, of.node, at, known);
}

/** The left operand: the elements of the only token. Undefined if they are not consecutive. */
function tokenOperand(
  scope: KernelScope,
  tokens: Node,
  { over, options: { k, segments = 1 } }: {
    readonly over: readonly string[];
    readonly options: TeamOptions;
  },
): Pick<MatmulOptions, "left" | "leftAdjacent" | "otherWords"> | undefined {
  const { storages } = scope.lowering.values;
  const storage = storages.get(tokens)!;
  const { rowStride, rows, bucket, packed, wire, axes } = storage;
  const isPlain = rowStride === undefined && !rows && !bucket && !packed &&
    !wire && axes.slice(-over.length).join() === over.join();
  if (!isPlain) return undefined;
  return {
    left: (base, i) =>
      loadStored(scope.read(storage.buffer), storage.dtype, add(base, i)),
    leftAdjacent: adjacentOf(scope, storage, k / segments),
  };
}
