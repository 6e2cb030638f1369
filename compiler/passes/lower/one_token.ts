/**
 * Experts of a step of one token on a wide device: two launches instead of a router, an assignment, matmuls and a
 * combine, because a launch costs more than repeated choices. The first matmul chooses experts in every workgroup, and
 * the last one adds the results of all choices. Steps of more tokens keep the separate launches.
 */

import { storedDType } from "../../../spec/dtype.ts";
import {
  add,
  convert,
  div,
  load,
  loadStored,
  mul,
  store,
  u32,
} from "../../../spec/kernel/build.ts";
import type { Expr, Kernel } from "../../../spec/kernel/tree.ts";
import { segmentsOf } from "../../../spec/numerics.ts";
import type { Step } from "../../../spec/plan/plan.ts";
import { isSame } from "../../../spec/same.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { unitOf } from "../../kernels/matmul_columns.ts";
import {
  choicesGroups,
  type ChoicesMatmulOptions,
  matmulOfChoices,
} from "../../kernels/matmul_choices.ts";
import {
  choicesAtOnce,
  type CombinedMatmulOptions,
  matmulCombined,
} from "../../kernels/matmul_combine.ts";
import { lanesOfRouter } from "../../kernels/router_lanes.ts";
import type { MatmulOptions } from "../../kernels/matmul_options.ts";
import { blocksInRound, matmulShape } from "../../tuning/lanes.ts";
import { tileFor } from "../../tuning/table.ts";
import {
  narrowedRow,
  sharesAnyBlocks,
  sumBlocks,
  tileOfWeights,
} from "../../tuning/tile.ts";
import { sharedBytes } from "../limits.ts";
import {
  addScratch,
  amendBuffer,
  fixedProduct,
  type Lowering,
  sizeOf,
} from "./context.ts";
import { weightsOf } from "./dot.ts";
import { dotShape } from "./dot_shape.ts";
import { computeValue, emitValue, finish, type Known } from "./emit.ts";
import { writeTarget } from "./epilogue.ts";
import {
  type ExpertChain,
  expertChain,
  type ExpertMatmul,
} from "./expert_chain.ts";
import { atRow, restAxes } from "./index_space.ts";
import { type At, atFlat, atJoined } from "./indices.ts";
import { forRows, inlineNormOf, normOperands } from "./inline_norms.ts";
import type { Storage } from "./lowering.ts";
import { KernelScope } from "./scope.ts";

/** A kernel, and its workgroups along y. */
interface OneTokenKernel {
  readonly scope: KernelScope;
  readonly kernel: Kernel;
  readonly groups: number;
}

/**
 * Launches the experts of a combine for one token, and all earlier launches of them for more tokens. `storage`: that of
 * `target`, which the combine has written. Leaves the launches as they are if kernels do not fit the device.
 */
export function lowerOneToken(
  lowering: Lowering,
  { target, combine, storage }: {
    readonly target: Node;
    readonly combine: NodeOf<"combine">;
    readonly storage: Storage;
  },
): void {
  const { tuning } = lowering.options;
  if (tuning.wideRows !== true || tuning.asFiled?.length) return;
  const chain = expertChain(lowering, combine);
  if (!chain) return;
  const { tokens, rule: { topK } } = chain.router.node.params;
  const size = sizeOf(lowering, tokens);
  if (typeof size === "number") return;
  const buffer = addScratch(
    lowering,
    "hidden",
    storedDType(chain.hidden.dtype),
    [{ axis: "choice of token", size: topK }, ...restAxes(chain.hidden)],
  );
  const first = chooseKernel(lowering, chain, buffer);
  const last = first &&
    combineKernel(lowering, chain, { buffer, target, combine, storage });
  const separate = separateSteps(lowering, chain, storage.buffer);
  const at = separate[0]!;
  const isPossible = first && last &&
    [first, last].every((of) => fits(lowering, of)) &&
    writtenBefore(lowering, first.scope, at);
  if (!isPossible) {
    lowering.draft.buffers.delete(buffer);
    return;
  }
  const { few: one } = forRows(size, { rows: size });
  const { steps } = lowering.draft;
  const { index, weight } = chain.choices;
  for (const name of [index, weight, storage.buffer]) {
    changeWriters(lowering, name, 1);
  }
  keepForMore(lowering, separate, size);
  first.scope.launch(chain.hidden, first.kernel, [one, first.groups, 1]);
  // Before the steps that read choices.
  steps.splice(at, 0, steps.pop()!);
  last.scope.launch(target, last.kernel, [one, last.groups, 1]);
}

/** Whether a kernel respects the limits of the device. */
function fits(
  { options: { maxBindings, maxShared } }: Lowering,
  { kernel }: OneTokenKernel,
): boolean {
  return kernel.bindings.length <= maxBindings &&
    sharedBytes(kernel) <= maxShared;
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
      ...tileOfWeights(tile, weights, { grouped: true, k, columns: width }),
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

/** The first matmul of the choices. */
function chooseKernel(
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
    : tokenOperand(scope, tokens, over);
  if (!left) return;
  const [index, weight] = [choices.index, choices.weight].map((buffer) =>
    scope.write(buffer)
  ) as [string, string];
  const rest = restAxes(hidden);
  const width = fixedProduct(lowering, hidden, rest);
  const full: ChoicesMatmulOptions = {
    ...options,
    ...left,
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
  const kernel = matmulOfChoices(full);
  return { scope, kernel, groups: choicesGroups(full) };
}

/** The last matmul of the choices, and the sum over them. */
function combineKernel(
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
  over: readonly string[],
): Pick<MatmulOptions, "left"> | undefined {
  const { storages } = scope.lowering.values;
  const storage = storages.get(tokens)!;
  const { rowStride, rows, bucket, packed, wire, axes } = storage;
  const isPlain = rowStride === undefined && !rows && !bucket && !packed &&
    !wire && axes.slice(-over.length).join() === over.join();
  if (!isPlain) return undefined;
  return {
    left: (base, i) =>
      loadStored(scope.read(storage.buffer), storage.dtype, add(base, i)),
  };
}

/** Indices of the steps of the separate kernels, after the logits. `result`: the buffer that the combine writes. */
function separateSteps(
  lowering: Lowering,
  { router, choices, grouped, first, hidden, last }: ExpertChain,
  result: string,
): number[] {
  const { draft: { steps }, values } = lowering;
  const { received: { sent }, tiles, tokenOf, expertOf, rowCount } = grouped;
  const written = new Set([
    ...[choices.index, choices.weight],
    ...[sent.sendRow, sent.counts, tiles, tokenOf!, expertOf, rowCount],
    ...[first.node, hidden, last.node].map((node) =>
      values.storages.get(node)!.buffer
    ),
    result,
  ]);
  const found: number[] = [];
  for (let i = steps.length - 1; i >= 0; i--) {
    const writes = writesOf(lowering, steps[i]!);
    if (writes.includes(router.bindings["logits"]!)) break;
    if (writes.some((name) => written.has(name))) found.unshift(i);
  }
  return found;
}

/** Buffers that a launch writes. */
function writesOf({ draft: { kernels } }: Lowering, step: Step): string[] {
  if (step.op !== "launch") return [];
  return kernels.get(step.kernel)!.bindings
    .filter(({ access }) => access !== "read")
    .map(({ name }) => step.bindings[name]!);
}

/** Whether no step from `at` on writes what a kernel reads. */
function writtenBefore(
  lowering: Lowering,
  { buffers, bindings }: KernelScope,
  at: number,
): boolean {
  const read = bindings.filter(({ access }) => access === "read")
    .map(({ name }) => buffers[name]!);
  return !lowering.draft.steps.slice(at).some((step) =>
    writesOf(lowering, step).some((name) => read.includes(name))
  );
}

/** Launches separate kernels for more than one token only, and no longer those for one. */
function keepForMore(
  lowering: Lowering,
  separate: readonly number[],
  tokens: Size,
): void {
  const { steps } = lowering.draft;
  for (const i of separate.toReversed()) {
    const step = steps[i]!;
    if (step.op !== "launch") continue;
    const [x, y, z] = step.workgroups;
    if (!isForOne(x, tokens)) {
      steps[i] = { ...step, workgroups: [moreThanOne(x, tokens), y, z] };
      continue;
    }
    for (const name of writesOf(lowering, step)) {
      changeWriters(lowering, name, -1);
    }
    steps.splice(i, 1);
  }
}

/** Whether workgroups exist for at most one token only. */
function isForOne(size: Size, tokens: Size): boolean {
  return typeof size !== "number" && "upTo" in size && size.upTo[1] <= 1 &&
    isSame(size.upTo[0], tokens);
}

/** Workgroups for more than one token. */
function moreThanOne(size: Size, tokens: Size): Size {
  const isMore = typeof size !== "number" && "above" in size &&
    size.above[1] >= 1 && isSame(size.above[0], tokens);
  return isMore ? size : forRows(size, { rows: tokens }).more;
}

/** Changes the number of steps that write a buffer. */
function changeWriters(lowering: Lowering, name: string, by: number): void {
  const { writers = 1 } = lowering.draft.buffers.get(name)!;
  amendBuffer(lowering, name, { writers: writers + by });
}
