/** A list of facts: values with their descriptions. */

import type { VNode } from "preact";

/** A value, and what it is. */
export type Fact = readonly [value: string, what: string];

/** Shows facts in order. */
export function FactList(
  { facts }: { readonly facts: readonly Fact[] },
): VNode {
  return (
    <dl class="facts">
      {facts.map(([value, what]) => (
        <div>
          <dt>{what}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
