/** Lengths of axes by name, with checks for ops. */

import { shortAxis } from "../../spec/axis_name.ts";
import { ModelError } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { AxisSize, Node } from "./graph.ts";

/** Lengths of axes by name. */
export type Sizes = Map<string, AxisSize>;

/** Rejects the length of an axis. */
export function fail(node: Node, message: string): never {
  throw new ModelError(message, node.span);
}

/** The length of an axis. */
export function sizeOf(sizes: Sizes, node: Node, axis: string): AxisSize {
  return sizes.get(axis) ??
    fail(
      node,
      `Cannot size axis '${axis}': the model does not declare it. Declare it in 'model'`,
    );
}

/** The fixed length of an axis. Rejects dynamic ones. */
export function fixed(
  sizes: Sizes,
  node: Node,
  axis: string,
  op: string,
): number {
  const { size, dynamic } = sizeOf(sizes, node, axis);
  if (dynamic) {
    fail(
      node,
      `Cannot ${op} axis '${axis}': its length is known only at run time`,
    );
  }
  return size;
}

/** Sets the fixed length `size` of `axis`, or compares it with the existing one. */
export function bind(
  sizes: Sizes,
  node: Node,
  axis: string,
  size: number,
): void {
  if (size > MAX_AXIS) {
    fail(
      node,
      `Cannot make axis '${axis}' of ${size}: an axis has at most ${MAX_AXIS} elements`,
    );
  }
  const known = sizes.get(axis);
  if (known === undefined) sizes.set(axis, { size, dynamic: false });
  else if (known.size !== size || known.dynamic) {
    fail(
      node,
      `Cannot make axis '${axis}' of ${size}: its size in this model is ${known.size}. ${
        remedy(node, axis)
      }`,
    );
  }
}

/** Renames an axis that an op names. */
function remedy({ primitive }: Node, axis: string): string {
  const other = `${shortAxis(axis)}2`;
  switch (primitive) {
    case "route":
    case "choices":
      return `Name it by the option 'choice' of 'route', such as { choice: '${other}' }, or route in a block`;
    case "topK":
      return `Name it by the option 'axis' of 'topK', such as { axis: '${other}' }`;
    default:
      return "Use another name for one of them";
  }
}
