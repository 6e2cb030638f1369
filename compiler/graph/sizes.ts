/**
 * Sizes: every axis name has one length in a model. Axes that ops name (choices, renamed axes) get their length here;
 * the others are compared with the declarations.
 */

import { type Collective, ofCollectives } from "./collectives.ts";
import { ModelError } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import {
  type AxisSize,
  type Node,
  type NodeOf,
  ofExpanded,
  type Primitive,
  type RoutingNode,
} from "./graph.ts";
import { definedRows } from "./primitives/mod.ts";
import { type Problems, report } from "./problems.ts";
import { bind, fail, fixed, sizeOf, type Sizes } from "./size_of.ts";

/** Inputs, and ops that name no axis and check no length. */
function none(): void {}

/** Chooses `k` of the axis `over`. */
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

/** Maximum number of expert groups of a router: a bit of one word each. */
const MAX_GROUPS = 32;

/** Checks that expert groups divide the experts evenly and that the kept ones suffice. */
function checkGroups(sizes: Sizes, node: NodeOf<"route">): void {
  const { expert, rule } = node.params;
  if (rule.expertGroups === undefined) return;
  const { count, keep, best } = rule.expertGroups;
  const { size } = sizeOf(sizes, node, expert);
  if (!Number.isInteger(best) || best < 1) {
    fail(
      node,
      `Cannot route in groups of experts by their ${best} best: expected a whole number of at least 1`,
    );
  }
  const inRange = Number.isInteger(count) && count >= 1 && count <= MAX_GROUPS;
  if (!inRange || size % count !== 0 || size / count < best) {
    fail(
      node,
      `Cannot route in ${count} groups of experts: expected a whole number to ${MAX_GROUPS} that divides ${size} and leaves at least ${best} in each`,
    );
  }
  const needed = Math.ceil(rule.topK / (size / count));
  if (!Number.isInteger(keep) || keep < needed || keep > count) {
    fail(
      node,
      `Cannot keep ${keep} groups of experts: expected a whole number from ${needed} to ${count}`,
    );
  }
}

/** Slots have no length. */
function checkSlot(sizes: Sizes, node: RoutingNode): void {
  const { slot } = node.params;
  if (!sizes.has(slot)) return;
  fail(
    node,
    `Cannot call the slots '${slot}': the model declares such an axis. Leave it out of 'model', or give 'slot' another name`,
  );
}

/** Checks that a local axis and the global one have equal length over all ranks. */
function sameLength(node: NodeOf<Collective>, sizes: Sizes): void {
  if (!("axis" in node.params)) return;
  const { axis, to } = node.params;
  if (!sizes.has(to)) sizes.set(to, sizeOf(sizes, node as Node, axis));
}

/** Checks that elements start, start + step, … of `whole` exist for the length of `part`. */
function checkPositions(
  sizes: Sizes,
  node: NodeOf<"slice"> | NodeOf<"dilate">,
  source: string,
  part: string,
): void {
  const { start, step } = node.params;
  const size = fixed(sizes, node, source, "slice");
  const length = fixed(sizes, node, part, "slice to");
  if (!Number.isInteger(step) || step < 1) {
    fail(
      node,
      `Cannot slice '${part}' of '${source}': the step is ${step}, expected a whole number of at least 1`,
    );
  }
  const last = start + (length - 1) * step;
  if (!Number.isInteger(start) || start < 0 || last >= size) {
    fail(
      node,
      `Cannot slice '${part}' of '${source}': positions ${start} to ${last} are not all within its size, ${size}`,
    );
  }
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
  dot: none,
  reduce: none,
  reduceSum: none,
  ...definedRows("sizes"),
  rope: (node, sizes) => {
    const { over, inverseFrequencies, positions } = node.params;
    const size = fixed(sizes, node, over, "rope");
    const { length } = inverseFrequencies;
    if (length < 1 || length * 2 > size) {
      fail(
        node,
        `Cannot rope over '${over}': there are ${length} inverse frequencies, expected at most ${
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
  scatterAdd: (node, sizes) =>
    void fixed(sizes, node, node.params.over, "scatterAdd to"),
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
    } else if (known.dynamic && known !== size) {
      // A renamed axis has the size of the original name and can be renamed back.
      fail(
        node,
        `Cannot rename '${from}' to '${to}': each has a dynamic length of its own. Use a name that 'model' does not declare`,
      );
    }
  },
  split: (node, sizes) => {
    const { axis, into } = node.params;
    const size = fixed(sizes, node, axis, "split");
    const [first, last, more] = into as [string, string?, string?];
    // A derivative names the local part of an axis with another name.
    if (node.phase && last !== undefined && !more && !sizes.has(last)) {
      bind(sizes, node, last, size / fixed(sizes, node, first, "split into"));
    }
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
    const { axis, to } = node.params;
    checkPositions(sizes, node, axis, to);
  },
  dilate: (node, sizes) => {
    const { axis, step, to } = node.params;
    // A new axis has the length of all steps.
    if (!sizes.has(to)) {
      bind(sizes, node, to, fixed(sizes, node, axis, "dilate") * step);
    }
    checkPositions(sizes, node, to, axis);
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
    const { expert, choice, rule, leadingGroup } = node.params;
    fixed(sizes, node, expert, "route over");
    choose(sizes, node, expert, rule.topK, choice);
    checkGroups(sizes, node);
    checkSlot(sizes, node);
    if (leadingGroup !== undefined) {
      fixed(sizes, node, leadingGroup, "group by");
    }
  },
  choices: (node, sizes) => {
    const { expert, choice, rule } = node.params;
    fixed(sizes, node, expert, "route over");
    choose(sizes, node, expert, rule.topK, choice);
    checkSlot(sizes, node);
  },
  tupleElement: none,
  optimizationBarrier: none,
  ...ofCollectives(() => sameLength),
  dispatch: none,
  combine: none,
  combineTranspose: none,
  ...ofExpanded(none),
  cacheWrite: none,
  attention: (node, sizes) => {
    const { head, kvHead, dim, valueDim, shared, window, chunk } = node.params;
    const { selectedBlock: block = 1 } = node.params;
    const length = fixed(sizes, node, dim, "attend over");
    const valueLength = fixed(sizes, node, valueDim, "attend over");
    if (shared && valueLength > length) {
      fail(
        node,
        `Cannot attend with values '${valueDim}' of ${valueLength}: they are the first elements of '${dim}', which has ${length}`,
      );
    }
    const heads = fixed(sizes, node, head, "attend over");
    const kvHeads = kvHead === undefined
      ? 1
      : fixed(sizes, node, kvHead, "attend over");
    if (heads % kvHeads !== 0) {
      fail(
        node,
        `Cannot attend: '${head}' has ${heads}, which is no multiple of the ${kvHeads} of '${kvHead}'`,
      );
    }
    if (chunk !== undefined && (!Number.isInteger(chunk) || chunk < 1)) {
      fail(
        node,
        `Cannot attend in blocks of ${chunk}: expected a whole number of at least 1`,
      );
    }
    if (!Number.isInteger(block) || block < 1 || block > MAX_AXIS) {
      fail(
        node,
        `Cannot attend to selected blocks of ${block}: expected a whole number from 1 to ${MAX_AXIS}`,
      );
    }
    if (window !== undefined && (!Number.isInteger(window) || window < 1)) {
      fail(
        node,
        `Cannot attend with a window of ${window}: expected a whole number of at least 1`,
      );
    }
  },
  attentionSum: none,
  attentionGrad: none,
};

/** The lengths of all axes of a program: declared ones and those that nodes name. Throws ModelError. */
export function deriveSizes(
  declared: { readonly [name: string]: AxisSize },
  nodes: readonly Node[],
  problems?: Problems,
): { readonly [name: string]: AxisSize } {
  const sizes: Sizes = new Map(Object.entries(declared));
  for (const node of nodes) {
    const rule = SIZES[node.primitive] as (node: Node, sizes: Sizes) => void;
    try {
      rule(node, sizes);
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      report(problems, error, [node, ...node.inputs]);
      problems?.wrong.add(node);
    }
    // No errors are reported about values derived from a value of unknown size.
    if (node.inputs.some((input) => problems?.wrong.has(input))) {
      problems?.wrong.add(node);
    }
  }
  return Object.fromEntries(sizes);
}
