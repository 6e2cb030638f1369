/** Norms and contractions fused with following rotations, concatenations or cache writes. */

import type { Node, NodeOf } from "../graph/graph.ts";
import { dotShape } from "./lower/matmul/dot_shape.ts";

/** A kernel, and the nodes between it and its last node. */
export interface Ended {
  readonly root: Node;
  readonly between: readonly Node[];
}

/** Facts about nodes. */
export interface EndOptions {
  /** Whether a node has one user and is not an output. */
  single(node: Node): boolean;
  isMatmul(node: Node): boolean;
  /**
   * Whether kernels compute the other parts of a concatenation too: a launch costs more than a branch.
   */
  readonly joins: boolean;
}

/**
 * The norm or contraction whose kernel can write `node`. The nodes between have no other operands than parameters and
 * preserve rows. A rotation needs two elements of a row, which only a norm provides.
 */
export function endedBy(
  node: Node,
  { single, isMatmul, joins }: EndOptions,
): Ended | undefined {
  if (node.primitive === "concat" && joins) {
    const root = suitablePart(
      node,
      (part) => part.primitive === "dot" && single(part) && !isMatmul(part),
    );
    return root && { root, between: [] };
  }
  if (node.primitive !== "cacheWrite" && node.primitive !== "rope") return;
  const written = node.primitive === "cacheWrite";
  if (node.primitive === "cacheWrite" && node.params.sparse) return;
  // Two elements share a word, and this kernel writes one at a time.
  if (isHalfCache(node)) return;
  let last = node.inputs[written ? 1 : 0]!;
  const { axes } = written ? last : node;
  const rotated = written ? [] : [node.params.over];
  const between: Node[] = [];
  for (; single(last); last = last.inputs[0]!) {
    switch (last.primitive) {
      case "concat": {
        const root = written && joins && between.length === 0 &&
          suitablePart(
            last,
            (part, i) =>
              i === 0 && part.primitive === "rmsNorm" && single(part),
          );
        return root ? { root, between: [last] } : undefined;
      }
      case "rmsNorm": {
        const { over } = last.params;
        const outer = last.axes.slice(0, -1);
        const fits = last.axes.at(-1) === over && startsWith(axes, outer) &&
          !rotated.some((axis) => outer.includes(axis));
        return fits ? { root: last, between } : undefined;
      }
      case "dot": {
        if (!isMatmul(last) || rotated.length > 0) return;
        const { rows, batch } = dotShape(last);
        const fits = batch.length === 0 && startsWith(last.axes, rows) &&
          startsWith(axes, rows);
        return fits ? { root: last, between } : undefined;
      }
      case "rope":
        rotated.push(last.params.over);
        break;
      case "map":
        if (last.inputs.slice(1).some((other) => other.primitive !== "param")) {
          return;
        }
        break;
      case "split":
        break;
      default:
        return;
    }
    between.push(last);
  }
  return undefined;
}

/** The first suitable part of a concatenation along the last axis. */
function suitablePart(
  { axes, inputs, params }: NodeOf<"concat">,
  isRoot: (part: Node, i: number) => boolean,
): Node | undefined {
  return axes.at(-1) === params.to
    ? inputs.find((part, i) =>
      isRoot(part, i) && part.axes.at(-1) === params.axes[i]
    )
    : undefined;
}

function isHalfCache({ primitive, inputs }: Node): boolean {
  const state = inputs[0]!;
  return primitive === "cacheWrite" && state.primitive === "state" &&
    state.params.stored !== undefined;
}

function startsWith(axes: readonly string[], first: readonly string[]) {
  return first.every((axis, i) => axes[i] === axis);
}
