/** Primitives that update a state in place: their first operand. */

import type { Node, Primitive } from "./graph.ts";

/** The operand that says of which sequence each token is; the next one says its position. */
const SEQUENCE: { readonly [P in Primitive]?: number } = {
  cacheWrite: 2,
  conv1d: 3,
  linearRecurrence: 6,
};

/** Of a node that updates a state in place, the operand that says of which sequence each token is. */
export function updatedBy({ primitive, inputs }: Node): Node | undefined {
  const at = SEQUENCE[primitive];
  return at === undefined ? undefined : inputs[at];
}

/** The state that a chain of updates starts from. */
export function updatedState(node: Node): Node {
  let root = node;
  for (;;) {
    if (root.primitive === "nextState") root = root.inputs[0]!.inputs[0]!;
    else if (root.primitive === "cacheWrite") root = root.inputs[0]!;
    else return root;
  }
}
