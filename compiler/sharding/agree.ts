/**
 * Agreement: a common sharding of the axes of one node's operands, so that a rank computes its part without other
 * ranks.
 */

import type { Node } from "../graph/graph.ts";
import type { Role } from "../graph/sharding_rule.ts";
import { type Over, overOf, type Sharding } from "../graph/sharding.ts";

/** An operand and its sharding. */
export interface Offered {
  readonly axes: readonly string[];
  readonly sharding: Sharding;
  /** The operand keeps its sharding, and the others follow. */
  readonly fixed: boolean;
}

/** The agreed sharding of each axis, and the mesh axes along which the result is unreduced. */
export interface Agreed {
  readonly over: Over;
  readonly reduced: readonly string[];
}

/** Requirements of the node. */
export interface AgreeOptions {
  readonly roles: (operand: number, axis: string) => Role;
  readonly isRagged: (axis: string) => boolean;
}

/**
 * Finds the common sharding. Along a shared axis, the operand sharded over the most ranks decides, and the others are
 * sliced. If two axes of a value are sharded over one mesh axis, the axis of fixed length keeps it, because weights are
 * stored so.
 */
export function agree(
  node: Node,
  operands: readonly Offered[],
  { roles, isRagged }: AgreeOptions,
): Agreed {
  const found = new Map<string, Found>();
  operands.forEach(({ axes, sharding, fixed }, i) => {
    for (const axis of axes) {
      const role = roles(i, axis);
      if (role === "local") continue;
      const over = overOf(sharding, axis);
      const known = found.get(axis);
      const summed = typeof role === "object" && "sum" in role;
      const reduces = role === "reduce" || summed || known?.reduces === true;
      const exactly = role === "replicated"
        ? []
        : summed
        ? role.sum
        : typeof role !== "string"
        ? role
        : fixed
        ? over
        : undefined;
      found.set(axis, {
        over: exactly ?? known?.exactly ?? longest(known?.over, over),
        exactly: known?.exactly ?? exactly,
        reduces,
        operands: [...known?.operands ?? [], i],
      });
    }
  });
  const agreed = new Map<string, readonly string[]>();
  const order = [...found].sort(([a, x], [b, y]) =>
    rank(a, x, isRagged) - rank(b, y, isRagged)
  );
  for (const [axis, { over, exactly, ...about }] of order) {
    const clash = over.findIndex((name) =>
      [...agreed].some(([other, names]) =>
        names.includes(name) &&
        together(node, [axis, about], [other, found.get(other)!])
      )
    );
    agreed.set(axis, exactly || clash < 0 ? over : over.slice(0, clash));
  }
  const reduced = [...found].flatMap(([axis, { reduces }]) =>
    reduces ? agreed.get(axis)! : []
  );
  return { over: Object.fromEntries(agreed), reduced };
}

/** Requirements of the operands for an axis. */
interface Found {
  readonly over: readonly string[];
  /** The only possible sharding. */
  readonly exactly: readonly string[] | undefined;
  readonly reduces: boolean;
  readonly operands: readonly number[];
}

function longest(
  known: readonly string[] | undefined,
  over: readonly string[],
): readonly string[] {
  return known && known.length >= over.length ? known : over;
}

/** Priority for a mesh axis: axes with only one possible sharding, then fixed lengths, then ragged ones. */
function rank(
  axis: string,
  { exactly }: Found,
  isRagged: (axis: string) => boolean,
): number {
  return exactly ? 0 : isRagged(axis) ? 2 : 1;
}

type About = Pick<Found, "operands" | "reduces">;

/** Whether one value has both axes, or the result is sharded along both. */
function together(
  node: Node,
  [a, x]: readonly [string, About],
  [b, y]: readonly [string, About],
): boolean {
  if (x.operands.some((i) => y.operands.includes(i))) return true;
  const inResult = (axis: string, { reduces }: About) =>
    reduces || node.axes.includes(axis);
  return inResult(a, x) && inResult(b, y);
}
