/**
 * Experts of a step of one token on a wide device: two launches instead of a router, an assignment, matmuls and a
 * combine, because a launch costs more than repeated choices. The first matmul chooses experts in every workgroup, and
 * the last one adds the results of all choices. Steps of more tokens keep the separate launches.
 */

import { storedDType } from "../../../../spec/dtype.ts";
import { isSame } from "../../../../spec/same.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { sharedBytes } from "../../limits.ts";
import { addScratch, type Lowering, sizeOf } from "../context.ts";
import { type ExpertChain, expertChain } from "./expert_chain.ts";
import { restAxes } from "../index_space.ts";
import { forRows } from "../matmul/inline_norms.ts";
import type { Storage } from "../lowering.ts";
import {
  chooseKernel,
  combineKernel,
  type OneTokenKernel,
} from "./one_token_kernels.ts";
import type { KernelScope } from "../scope.ts";
import { changeWriters, writesOf } from "../writers.ts";

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
  changeWriters(lowering, [index, weight, storage.buffer], 1);
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

/** Whether no step from `at` on writes a buffer that a kernel reads. */
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
export function keepForMore(
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
    changeWriters(lowering, writesOf(lowering, step), -1);
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
