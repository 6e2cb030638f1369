/** Primitives that update a state in place: their first operand. */

import type { Node, Primitive } from "./graph.ts";

/** Index of the operand with the sequence of each token. The next operand is its position. */
const SEQUENCE: { readonly [P in Primitive]?: number } = {
  cacheWrite: 2,
  conv1d: 3,
  linearRecurrence: 6,
};

/** The operand with the sequence of each token, for a node that updates a state in place. */
export function updatedBy({ primitive, inputs }: Node): Node | undefined {
  const at = SEQUENCE[primitive];
  return at === undefined ? undefined : inputs[at];
}

/** The table of the pages or rows of a state that a node updates, its last operand. Undefined: there is none. */
export function tableOf({ primitive, inputs }: Node): Node | undefined {
  const at = SEQUENCE[primitive];
  return at === undefined ? undefined : inputs[at + 2];
}

/** The initial state of a chain of updates. */
export function updatedState(node: Node): Node {
  let root = node;
  for (;;) {
    if (root.primitive === "nextState") root = root.inputs[0]!.inputs[0]!;
    else if (root.primitive === "cacheWrite") root = root.inputs[0]!;
    else return root;
  }
}
