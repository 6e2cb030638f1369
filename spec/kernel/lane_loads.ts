/**
 * Loads in loops that are uniform over a workgroup, such as those of a left operand's rows: each invocation of a
 * subgroup executes one of them and broadcasts it, on devices that load per invocation.
 */

import { readTree } from "./verify/tree.ts";
import { exactJson } from "./exact_json.ts";
import { replaceInValue } from "./replace.ts";
import { bodiesOf } from "./walk.ts";
import type { Expr, Kernel, Stmt } from "./tree.ts";

type Let = Extract<Stmt, { readonly op: "let" }>;

/** Statements of a loop whose values differ only in variables from outside it. */
export interface LaneLoads {
  /** One per invocation, up to the size of a subgroup. */
  readonly lets: readonly Let[];
  /** A name for the loaded value of an invocation, and its expression. */
  readonly name: string;
  readonly value: Expr;
  /**
   * Variables of that expression. Each is selected from others: the invocation's own, or the first if there is none.
   */
  readonly variables: readonly {
    readonly name: string;
    readonly of: readonly string[];
  }[];
}

/**
 * The loads by their loop. None if subgroups of that size may not be full, or if a barrier depends on them: WGSL treats
 * broadcast values as non-uniform.
 */
export function laneLoads(
  kernel: Kernel,
  subgroup: number,
): ReadonlyMap<Stmt, readonly LaneLoads[]> {
  const found = new Map<Stmt, LaneLoads[]>();
  if (kernel.workgroupSize % subgroup !== 0) return found;
  // Bindings that a launch only reads are not written under another name either.
  const { varying, scattered } = readTree(kernel, {
    isFixed: ({ access }) => access === "read",
  });
  const visit = (body: readonly Stmt[], around: ReadonlySet<string>): void => {
    const bound = new Set(around);
    for (const s of body) {
      if (s.op === "let") bound.add(s.name);
      if (s.op === "for") {
        const uniform = scattered.has(s)
          ? []
          : s.body.filter((one): one is Let =>
            one.op === "let" && one.value.type !== "bool" && !varying.has(one)
          );
        const loads = groupsOf(uniform, {
          around: bound,
          loop: s.name,
          subgroup,
        });
        if (loads.length > 0) found.set(s, loads);
      }
      const inside = s.op === "for" ? new Set([...bound, s.name]) : bound;
      for (const inner of bodiesOf(s)) visit(inner, inside);
    }
  };
  visit(kernel.body, new Set());
  const shared = [...found.values()].flat().flatMap(({ lets }) => lets);
  const decides = shared.length > 0 &&
    readTree(kernel, { varying: shared }).divergent.size > 0;
  return decides ? new Map() : found;
}

/** Groups of two or more loads. */
function groupsOf(
  lets: readonly Let[],
  { around, loop, subgroup }: {
    readonly around: ReadonlySet<string>;
    readonly loop: string;
    readonly subgroup: number;
  },
): LaneLoads[] {
  const constant = new Set([...around, loop]);
  const groups = new Map<string, { let: Let; names: readonly string[] }[]>();
  for (const one of lets) {
    const names = new Set<string>();
    let fixed = true;
    let loads = false;
    const shape = replaceInValue(one.value, {
      variable: (name) => {
        fixed &&= constant.has(name);
        if (!around.has(name)) return name;
        return `#${[...names.add(name)].indexOf(name)}`;
      },
      load: () => {
        loads = true;
        return undefined;
      },
    });
    constant.add(one.name);
    if (!fixed || !loads) continue;
    const key = exactJson(shape);
    const group = groups.get(key) ?? [];
    if (group.length === 0) groups.set(key, group);
    group.push({ let: one, names: [...names] });
  }
  return [...groups.values()].flatMap((group) =>
    Array.from(
      { length: Math.ceil(group.length / subgroup) },
      (_, i) => laneLoadsOf(group.slice(i * subgroup, (i + 1) * subgroup)),
    )
  ).filter(({ lets, variables }) => lets.length > 1 && variables.length > 0);
}

function laneLoadsOf(
  group: readonly { readonly let: Let; readonly names: readonly string[] }[],
): LaneLoads {
  const [first] = group;
  const { name, value } = first!.let;
  const ofLanes = new Map(
    first!.names.map((one, i) =>
      [one, group.map(({ names }) => names[i]!)] as const
    )
      .filter(([one, all]) => all.some((other) => other !== one))
      .map(([one, of]) => [one, { name: `${one} of ${name}`, of }]),
  );
  return {
    lets: group.map((one) => one.let),
    name: `${name} of lanes`,
    value: replaceInValue(value, {
      variable: (one) => ofLanes.get(one)?.name ?? one,
    }),
    variables: [...ofLanes.values()],
  };
}
