/**
 * Sentences of domain errors. `dsl/types.ts` has the same sentences for the editor, some without a remedy;
 * `test/types.test.ts` compares them.
 */

import { shortAxis as shortName } from "../../spec/axis_name.ts";
import { nearName } from "../../spec/near_name.ts";

/** An axis as users write it. Untyped callers may pass anything. */
function shortAxis(axis: string): string {
  return shortName(String(axis));
}

/** `token embed` from a list of axes, under the model's names. */
export function words(axes: readonly string[]): string {
  return axes.map(shortAxis).join(" ");
}

/** Names of `axes` that are not among `others`. */
export function without(
  axes: readonly string[],
  others: readonly string[],
): string[] {
  return axes.filter((axis) => !others.includes(axis));
}

/** `'token' or 'embed'` */
export function choices(names: readonly string[]): string {
  return names.map((name) => `'${shortAxis(name)}'`).join(" or ");
}

/** Axes of a tensor as messages print them. */
type Axes = readonly string[];

/** Every sentence, by kind of mistake. */
export const messages = {
  unknownAxis: (axes: Axes, names: Axes): string => {
    const lost = without(axes, names);
    const near = lost.length === 1 ? nearName(lost[0]!, names) : undefined;
    return `Cannot declare '${words(axes)}': the model has no axis '${
      words(lost)
    }'. ${
      near === undefined
        ? `Its axes are '${words(names)}'`
        : `Write '${shortAxis(near)}'`
    }`;
  },
  leave: (axes: Axes, lost: Axes): string =>
    `Cannot return '${words(axes)}' from a block: axis '${
      words(lost)
    }' is local to it`,
  twoAxes: (op: string, axes: Axes, others: Axes, axis: string): string =>
    `Cannot ${op} '${words(axes)}' with '${
      words(others)
    }': axis '${axis}' is of another block in each`,
  repeatedAxis: (axes: Axes, axis: string): string =>
    `Cannot declare '${words(axes)}': axis '${shortAxis(axis)}' is repeated`,
  stack: (axes: Axes, axis: string): string =>
    `Cannot stack '${words(axes)}' over '${
      shortAxis(axis)
    }': it is not the first axis`,
  broadcast: (a: Axes, b: Axes): string =>
    `Cannot broadcast '${words(b)}' against '${words(a)}': left has no '${
      words(without(b, a))
    }', right has no '${words(without(a, b))}'`,
  noSharedAxis: (a: Axes, b: Axes): string =>
    `Cannot dot '${words(a)}' with '${words(b)}': they share no axis`,
  dotOver: (a: Axes, b: Axes, over: Axes): string =>
    `Cannot dot '${words(a)}' with '${words(b)}' over '${
      words(over)
    }': expected ${choices(a.filter((axis) => b.includes(axis)))}`,
  axis: (op: string, axes: Axes, axis: string): string =>
    `Cannot ${op} '${words(axes)}' over '${shortAxis(axis)}': expected ${
      choices(axes)
    }`,
  dtype: (op: string, axes: Axes, got: string, want: string): string =>
    `Cannot ${op} '${
      words(axes)
    }': its dtype is '${got}', expected '${want}'. Cast it`,
  einsumSpec: (spec: string, a: Axes, b: Axes): string =>
    `Cannot einsum '${spec}': expected '${words(a)}, ${words(b)} -> …'`,
  einsumOperands: (spec: string, a: Axes, b: Axes): string =>
    `Cannot einsum '${spec}': the operands are '${words(a)}, ${words(b)}'`,
  einsumOutput: (spec: string, lost: Axes): string =>
    `Cannot einsum '${spec}': output axis '${
      words(lost)
    }' is on neither operand`,
  gain: (
    axes: Axes,
    over: string,
    { op, gain }: { readonly op: string; readonly gain: Axes },
  ): string =>
    `Cannot ${op} '${words(axes)}' over '${shortAxis(over)}': expected gain '${
      shortAxis(over)
    }', got '${words(gain)}'`,
  taken: (op: string, axes: Axes, to: Axes): string =>
    `Cannot ${op} '${words(axes)}' to '${words(to)}': it has an axis '${
      words(to.filter((axis) => axes.includes(axis)))
    }' already`,
  merge: (axes: Axes, merged: Axes): string =>
    `Cannot merge '${words(merged)}' of '${
      words(axes)
    }': they are not side by side in this order`,
  transpose: (axes: Axes, to: Axes): string =>
    `Cannot transpose '${words(axes)}' to '${
      words(to)
    }': the axes are not the same`,
  concat: (a: Axes, b: Axes, axis: string): string =>
    `Cannot concat '${words(a)}' with '${
      words(b)
    }': they differ in more than '${axis}'`,
  query: (axes: Axes): string =>
    `Cannot attend with query '${
      words(axes)
    }': expected three axes, 'token head dim'`,
  key: (query: Axes, key: Axes): string =>
    `Cannot attend with key '${words(key)}': expected '${
      words([query[0]!])
    } kvHead ${words([query[2]!])}', to go with query '${words(query)}'`,
  sharedKey: (query: Axes, key: Axes): string =>
    `Cannot attend with key '${words(key)}': expected '${
      words([query[0]!, query[2]!])
    }', to go with query '${words(query)}'`,
  value: (key: Axes, value: Axes): string =>
    `Cannot attend with value '${words(value)}': expected '${
      words(key.slice(0, 2))
    } valueDim', to go with key '${words(key)}'`,
  cache: (key: Axes, cache: Axes): string =>
    `Cannot attend with cache '${words(cache)}': expected 'sequence context ${
      words(key.slice(1))
    }', to hold '${words(key)}'`,
  cached: (cache: Axes): string =>
    `Cannot attend with cache '${
      words(cache)
    }': expected four axes, 'sequence context kvHead dim'`,
  position: (axes: Axes, position: Axes): string =>
    `Cannot rope '${words(axes)}' by position '${
      words(position)
    }': it has no '${words(without(position, axes))}'`,
  dispatch: (axes: Axes, tokens: Axes): string =>
    `Cannot dispatch '${words(axes)}': the routing is over '${
      words(tokens)
    }', which it does not have`,
  combine: (axes: Axes, expert: string, slot: string): string =>
    `Cannot combine '${words(axes)}': expected '${
      words([expert, slot])
    } …', the axes its routing dispatched to`,
};
