/**
 * Norms of one row that the matmuls after it compute themselves: a launch costs more than the repeated sum of squares,
 * and matmuls that do not wait for each other share a launch. If other kernels read the norm too, the first matmul
 * stores it. Norms of more rows are launched, as are all norms on devices that are not wide.
 */

import { invariant } from "../../../../spec/errors.ts";
import {
  add,
  let_,
  loadStored,
  local,
  mul,
  store,
  u32,
} from "../../../../spec/kernel/build.ts";
import type { Expr } from "../../../../spec/kernel/tree.ts";
import { isPackedDType, PACKINGS } from "../../../../spec/weights/packed.ts";
import type { Step } from "../../../../spec/plan/plan.ts";
import type { Size } from "../../../../spec/size.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { usersOf } from "../../../graph/users.ts";
import { wordsOfNorm } from "../../../kernels/matmul/norm.ts";
import type { MatmulOptions } from "../../../kernels/matmul/options.ts";
import { rowsGrid } from "../../../kernels/rows.ts";
import type { ParamLayout } from "../../param_layout.ts";
import { adjacentOf } from "../adjacent.ts";
import type { Lowering } from "../context.ts";
import { isMatmul } from "./is_matmul.ts";
import { dotShape } from "./dot_shape.ts";
import { loadFrom } from "../emit.ts";
import { tidyGrid } from "../grid.ts";
import type { KernelScope } from "../scope.ts";
import { isPlain } from "../storage.ts";

/** A norm whose launch is for more than one row. */
export interface InlineNorm {
  readonly node: NodeOf<"rmsNorm">;
  /** Its step, until it is launched for all rows. */
  readonly launch: Step;
  /** Number of rows. */
  readonly rows: Size;
  /** The dots that compute it. */
  readonly dots: ReadonlySet<Node>;
  /** The dot that stores it, if other kernels read it. */
  readonly stores: Node | undefined;
}

/** Bits of weights from which repeating a norm is cheap. Smaller ones have more instructions per byte. */
const MIN_BITS = 8;

/** The sizes of launches of which one executes: `few` for up to `most` rows, `more` for more of them. */
export function forRows(
  size: Size,
  { rows, most = 1 }: { readonly rows: Size; readonly most?: number },
): { readonly few: Size; readonly more: Size } {
  return {
    few: { upTo: [rows, most, size] },
    more: { above: [rows, most, size] },
  };
}

/** The dots that compute a norm, directly or of dispatched rows that stay in place. Undefined: it is launched. */
export function dotsWithNorm(
  { model, values, placed, options }: Lowering,
  node: NodeOf<"rmsNorm">,
): Pick<InlineNorm, "dots" | "stores"> | undefined {
  const { graph, layouts, dispatched } = model;
  const { over } = node.params;
  const [x, gain] = node.inputs.map((input) => values.storages.get(input)!);
  // Indices of other gains, such as those of buckets, need statements.
  const isStored = x && isPlain(x) && x.dtype === "f32" && !x.packed &&
    isPlain(gain!) && !gain!.packed &&
    x.axes.join() === node.axes.join() && node.axes.at(-1) === over;
  const isNamed = [graph.outputs, graph.states].some((named) =>
    Object.values(named).includes(node)
  );
  if (
    options.tuning.wideRows !== true || node.dtype !== "f32" || !isStored ||
    isNamed || placed.axes[over]!.dynamic
  ) return undefined;
  const isCheap = ({ stored, q8 }: ParamLayout) =>
    q8 !== true && (!isPackedDType(stored) ||
      32 / PACKINGS[stored].perWord >= MIN_BITS);
  const computes = (left: Node, user: Node) =>
    user.primitive === "dot" && user.inputs[1] !== left &&
    isMatmul(user, layouts, dispatched) &&
    isCheap(layouts.get(user.inputs[1]!)!) &&
    dotShape(user).over.join() === over;
  const users = (node: Node) => usersOf(graph).get(node) ?? [];
  const readers = users(node).flatMap((user) =>
    user.primitive === "received" && user.params.inPlace
      ? users(user).map((inner) => [user, inner] as const)
      : [[node as Node, user] as const]
  );
  const found = readers.filter(([left, user]) => computes(left, user))
    .map(([, user]) => user);
  const stores = found.length < readers.length;
  const [first] = readers;
  // Of one rank's tokens: dispatched rows need not include the first.
  const isFirst = first !== undefined && first[0] === node &&
    first[1] === found[0];
  if (found.length === 0 || stores && !isFirst) return undefined;
  if (!stores) return { dots: new Set(found), stores: undefined };
  const own = found.filter((dot) => dot.inputs[0] === node);
  return { dots: new Set(own), stores: own[0] };
}

/** The norm that a dot computes for one row. */
export function inlineNormOf(
  { values: { norms } }: Lowering,
  dot: NodeOf<"dot">,
): InlineNorm | undefined {
  const left = dot.inputs[0]!;
  const norm = norms.get(
    left.primitive === "received" ? left.inputs[0]! : left,
  );
  return norm?.dots.has(dot) ? norm : undefined;
}

/** Operands of a matmul that computes the norm of its row. `base`: the start of the row. */
export function normOperands(
  scope: KernelScope,
  { node, stores }: InlineNorm,
  dot: Node,
): Required<
  Pick<MatmulOptions, "left" | "leftAdjacent" | "norm" | "otherWords">
> {
  const { over, epsilon } = node.params;
  const { storages } = scope.lowering.values;
  const { buffer } = storages.get(node)!;
  const [x, gain] = node.inputs.map((input) => storages.get(input)!);
  invariant(x && gain, "operands of a norm are stored");
  const load: MatmulOptions["left"] = (base, i) =>
    loadStored(scope.read(x.buffer), x.dtype, add(base, i));
  const normed = (gain: Expr, x: Expr) =>
    mul(gain, mul(x, local("norm_scale", "f32")));
  const { size: length } = scope.lowering.placed.axes[over]!;
  const [adjacent, gainsAt] = [x, gain].map((of) =>
    adjacentOf(scope, of, length)
  );
  return {
    otherWords: wordsOfNorm(length),
    norm: {
      length,
      epsilon,
      load,
      adjacent,
      ...stores === dot
        ? {
          store: (base, i, value) => [
            store(scope.write(buffer), add(base, i), value),
          ],
        }
        : {},
    },
    left: (base, i) =>
      normed(loadFrom(scope, gain, { get: () => i }), load(base, i)),
    leftAdjacent: adjacent && gainsAt && ((base, i, names) => {
      const [xs, gains] = ["x", "gain"].map((of) =>
        names.map((name) => `${of}_of_${name}`)
      ) as [string[], string[]];
      return [
        ...adjacent(base, i, xs),
        ...gainsAt(u32(0), i, gains),
        ...names.map((name, n) =>
          let_(name, normed(local(gains[n]!, "f32"), local(xs[n]!, "f32")))
        ),
      ];
    }),
  };
}

/** Launches a norm for all numbers of rows, because a matmul does not compute it. */
export function launchForAllRows(
  { draft, placed }: Lowering,
  { launch, rows }: InlineNorm,
): void {
  invariant(launch.op === "launch", "a norm is a launch");
  const at = draft.steps.lastIndexOf(launch);
  // Another matmul has done so.
  if (at < 0) return;
  draft.steps[at] = {
    ...launch,
    workgroups: tidyGrid(placed, rowsGrid(rows)),
  };
}
