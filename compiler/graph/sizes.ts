/**
 * Sizes: every axis name has one length in a model. Axes that verbs name (of choices, of renamed ones) get theirs here;
 * the others are held against what the model declared.
 */

import { ModelError } from "../../spec/errors.ts";
import type { AxisSize, NodeOf, Primitive } from "./graph.ts";
import type { Node } from "./graph.ts";

type Sizes = Map<string, AxisSize>;

function fail(node: Node, message: string): never {
  throw new ModelError(message, node.span);
}

function sizeOf(sizes: Sizes, node: Node, axis: string): AxisSize {
  return sizes.get(axis) ??
    fail(
      node,
      `Cannot size axis '${axis}': the model does not declare it. Declare it in 'model'`,
    );
}

/** The length of an axis that must not vary from run to run. */
function fixed(sizes: Sizes, node: Node, axis: string, verb: string): number {
  const { size, dynamic } = sizeOf(sizes, node, axis);
  if (dynamic) {
    fail(
      node,
      `Cannot ${verb} axis '${axis}': its length is known only at run time`,
    );
  }
  return size;
}

/** Give `axis` the fixed length `size`, or hold it against the one it has. */
function bind(sizes: Sizes, node: Node, axis: string, size: number): void {
  const known = sizes.get(axis);
  if (known === undefined) sizes.set(axis, { size, dynamic: false });
  else if (known.size !== size || known.dynamic) {
    fail(
      node,
      `Cannot make axis '${axis}' of ${size}: its size in this model is ${known.size}. Use another name for one of them`,
    );
  }
}

/** Inputs, and verbs that neither name an axis nor ask for a length. */
function none(): void {}

/** Choose `k` of the axis `over`. */
function choose(
  sizes: Sizes,
  node: Node,
  over: string,
  k: number,
  axis: string,
): void {
  const { size } = sizeOf(sizes, node, over);
  if (!Number.isInteger(k) || k < 1 || k > size) {
    fail(
      node,
      `Cannot choose ${k} of axis '${over}': expected a whole number from 1 to ${size}`,
    );
  }
  bind(sizes, node, axis, k);
}

const SIZES: {
  readonly [P in Primitive]: (node: NodeOf<P>, sizes: Sizes) => void;
} = {
  input: none,
  param: (node, sizes) => {
    for (const axis of node.axes) fixed(sizes, node, axis, "store");
  },
  state: none,
  map: none,
  dot: (node, sizes) => {
    for (const axis of node.params.over) fixed(sizes, node, axis, "contract");
  },
  reduce: none,
  softmax: none,
  rmsNorm: none,
  rope: (node, sizes) => {
    const { over, inverseFrequencies, positions } = node.params;
    const size = fixed(sizes, node, over, "rope");
    if (inverseFrequencies.length * 2 !== size) {
      fail(
        node,
        `Cannot rope over '${over}': there are ${inverseFrequencies.length} inverse frequencies, expected ${
          size / 2
        }, half its size`,
      );
    }
    if (!Number.isInteger(positions) || positions < 1) {
      fail(
        node,
        `Cannot rope over '${over}': the bound of positions is ${positions}, expected a whole number of at least 1`,
      );
    }
  },
  embedding: none,
  rename: (node, sizes) => {
    const { from, to } = node.params;
    const size = sizeOf(sizes, node, from);
    const known = sizes.get(to);
    if (known === undefined) sizes.set(to, size);
    else if (known.size !== size.size || known.dynamic !== size.dynamic) {
      fail(
        node,
        `Cannot rename '${from}' to '${to}': their sizes are ${size.size} and ${known.size}`,
      );
    } else if (known.dynamic) {
      fail(
        node,
        `Cannot rename '${from}' to '${to}': each has a run-time length of its own. Use a name that 'model' does not declare`,
      );
    }
  },
  split: (node, sizes) => {
    const { axis, into } = node.params;
    const size = fixed(sizes, node, axis, "split");
    const parts = into.map((part) => fixed(sizes, node, part, "split into"));
    if (parts.reduce((a, b) => a * b, 1) !== size) {
      fail(
        node,
        `Cannot split '${axis}' into '${
          into.join(" ")
        }': its size is ${size}, not ${parts.join(" * ")}`,
      );
    }
  },
  merge: (node, sizes) => {
    const { axes, to } = node.params;
    const parts = axes.map((axis) => fixed(sizes, node, axis, "merge"));
    bind(sizes, node, to, parts.reduce((a, b) => a * b, 1));
  },
  slice: (node, sizes) => {
    const { axis, start, to } = node.params;
    const size = fixed(sizes, node, axis, "slice");
    const length = fixed(sizes, node, to, "slice to");
    if (!Number.isInteger(start) || start < 0 || start + length > size) {
      fail(
        node,
        `Cannot slice '${to}' of '${axis}': positions ${start} to ${
          start + length - 1
        } are not all within its size, ${size}`,
      );
    }
  },
  concat: (node, sizes) => {
    const { axes, to } = node.params;
    const parts = axes.map((axis) => fixed(sizes, node, axis, "concat"));
    bind(sizes, node, to, parts.reduce((a, b) => a + b, 0));
  },
  transpose: none,
  cast: none,
  topK: (node, sizes) => {
    const { over, k, axis } = node.params;
    fixed(sizes, node, over, "choose from");
    choose(sizes, node, over, k, axis);
  },
  route: (node, sizes) => {
    const { expert, choice, slot, rule, leadingGroup } = node.params;
    fixed(sizes, node, expert, "route over");
    choose(sizes, node, expert, rule.topK, choice);
    if (sizes.has(slot)) {
      fail(
        node,
        `Cannot call the slots '${slot}': the model declares such an axis. Leave it out of 'model', or give 'slot' another name`,
      );
    }
    if (leadingGroup !== undefined) {
      fixed(sizes, node, leadingGroup, "group by");
    }
  },
  part: none,
  dispatch: none,
  combine: none,
  cacheWrite: none,
  attention: (node, sizes) => {
    const { head, kvHead, dim, window } = node.params;
    fixed(sizes, node, dim, "attend over");
    const [heads, kvHeads] = [head, kvHead].map((axis) =>
      fixed(sizes, node, axis, "attend over")
    );
    if (heads! % kvHeads! !== 0) {
      fail(
        node,
        `Cannot attend: '${head}' has ${heads}, which is no multiple of the ${kvHeads} of '${kvHead}'`,
      );
    }
    if (window !== undefined && (!Number.isInteger(window) || window < 1)) {
      fail(
        node,
        `Cannot attend with a window of ${window}: expected a whole number of at least 1`,
      );
    }
  },
};

/** The lengths of all axes of a program: those declared, and those that its nodes name. Throws ModelError. */
export function deriveSizes(
  declared: { readonly [name: string]: AxisSize },
  nodes: readonly Node[],
): { readonly [name: string]: AxisSize } {
  const sizes: Sizes = new Map(Object.entries(declared));
  for (const node of nodes) {
    const rule = SIZES[node.primitive] as (node: Node, sizes: Sizes) => void;
    rule(node, sizes);
  }
  return Object.fromEntries(sizes);
}
