/** Analysis of a kernel before lowering: unique names, shapes of variables, locations of barriers. */

import { endOf } from "../../spec/kernel/build.ts";
import { replaceInValue } from "../../spec/kernel/replace.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import {
  mapStatement,
  someStatement,
  walkExpressions,
  walkStatements,
} from "../../spec/kernel/walk.ts";
import type { Loop } from "./accesses.ts";
import {
  join,
  sameShape,
  type Shape,
  Shapes,
  type Variable,
  VARYING,
} from "./shape.ts";

/** Whether a statement contains a barrier. */
export function hasBarrier(s: Stmt): boolean {
  return someStatement([s], ({ op }) => op === "barrier");
}

/** Names that statements read, set or declare. */
export function namesIn(body: readonly Stmt[]): Set<string> {
  const names = new Set<string>();
  walkStatements(body, (s) => {
    if ("name" in s) names.add(s.name);
  });
  walkExpressions(body, (e) => {
    if (e.op === "local") names.add(e.name);
  });
  return names;
}

/**
 * Variables that outlive iterations of an outer loop, which sets them, and that innermost loops do not change: sums of
 * sums. In memory these cost a load and a store per change; in locals an engine moves them wherever branches join.
 */
export function restingVariables(
  body: readonly Stmt[],
  { variables }: Shapes,
): Set<string> {
  const [set, busy] = [new Set<string>(), new Set<string>()];
  walkStatements(body, (s) => {
    if (s.op !== "for") return;
    if (!someStatement(s.body, ({ op }) => op === "for")) {
      for (const name of namesIn(s.body)) busy.add(name);
    } else {
      const declared = new Set<string>();
      walkStatements(s.body, (inner) => {
        if (inner.op === "var") declared.add(inner.name);
        if (inner.op === "set" && !declared.has(inner.name)) {
          set.add(inner.name);
        }
      });
    }
  });
  return new Set([...set].filter((name) => {
    const { type, kind, shape } = variables.get(name)!;
    return !busy.has(name) && kind === "var" && type === "f32" && !shape.group;
  }));
}

/** Gives every declaration a unique name, so that later steps can ignore scopes. */
export function uniqueNames(body: readonly Stmt[]): readonly Stmt[] {
  const taken = new Set<string>();
  let clash = false;
  walkStatements(body, (s) => {
    if (s.op !== "let" && s.op !== "var" && s.op !== "for") return;
    clash ||= taken.has(s.name);
    taken.add(s.name);
  });
  if (!clash) return body;
  const used = new Set<string>();
  const fresh = (name: string) => {
    let unique = name;
    for (let n = 2; used.has(unique); n++) unique = `${name}#${n}`;
    used.add(unique);
    return unique;
  };
  return renameBody(body, new Map(), fresh);
}

function renameBody(
  body: readonly Stmt[],
  outer: ReadonlyMap<string, string>,
  fresh: (name: string) => string,
): readonly Stmt[] {
  const scope = new Map(outer);
  return body.map((s): Stmt => {
    const variable = (name: string) => scope.get(name) ?? name;
    const value = (e: Expr) => replaceInValue(e, { variable });
    if (s.op === "for") {
      const name = fresh(s.name);
      const inside = new Map(scope).set(s.name, name);
      const body = (list: readonly Stmt[]) => renameBody(list, inside, fresh);
      return { ...mapStatement(s, { value, body }), name } as Stmt;
    }
    const renamed = mapStatement(s, {
      value,
      body: (list) => renameBody(list, scope, fresh),
    });
    if (renamed.op === "set") {
      return { ...renamed, name: scope.get(renamed.name) ?? renamed.name };
    }
    if (renamed.op !== "let" && renamed.op !== "var") return renamed;
    const name = fresh(renamed.name);
    scope.set(renamed.name, name);
    return { ...renamed, name };
  });
}

/** Whether all lanes of a vector run a loop equally often. */
export function hasUniformTrip(s: Loop, shapes: Shapes): boolean {
  const variable = shapes.variables.get(s.name)!.shape;
  const to = shapes.of(s.to);
  if (!shapes.isUniform(s.step) || to.stride !== 0) return false;
  return variable.stride === 0 ||
    (shapes.isAlignedRun(variable) && to.align >= shapes.lanes);
}

/** Rounds of `analyzeShapes` after which variables that are set count as varying. */
const MAX_ROUNDS = 32;

/** Shapes of all variables: starts from the strongest shapes and weakens them until nothing changes. */
export function analyzeShapes(
  kernel: Kernel,
  body: readonly Stmt[],
  lanes: number,
): Shapes {
  const variables = new Map<string, Variable>();
  const shapes = new Shapes(variables, {
    lanes,
    workgroupSize: kernel.workgroupSize,
  });
  const depths = new Map<string, { divergent: number; scattered: number }>();
  let changed = true;
  const weaken = (name: string, shape: Shape) => {
    const variable = variables.get(name)!;
    const next = join(variable.shape, shape);
    if (sameShape(next, variable.shape)) return;
    variable.shape = next;
    changed = true;
  };
  const declare = (
    variable: Omit<Variable, "shape">,
    shape: Shape,
    divergent: number,
    scattered: number,
  ) => {
    depths.set(variable.name, { divergent, scattered });
    if (variables.has(variable.name)) weaken(variable.name, shape);
    else variables.set(variable.name, { ...variable, shape });
  };
  // `divergent`: number of enclosing conditions that differ between lanes; `scattered`: of those that differ in the
  // workgroup.
  const visit = (
    list: readonly Stmt[],
    divergent: number,
    scattered: number,
  ): void => {
    for (const s of list) {
      if (s.op === "let" || s.op === "var") {
        declare(
          {
            name: s.name,
            type: s.value.type,
            kind: s.op,
            ...(s.op === "let" ? { definition: s.value } : {}),
          },
          shapes.of(s.value),
          divergent,
          scattered,
        );
      } else if (s.op === "set") {
        const declared = depths.get(s.name)!;
        const shape = shapes.of(s.value);
        weaken(
          s.name,
          divergent > declared.divergent ? VARYING : {
            ...shape,
            group: shape.group && scattered === declared.scattered,
          },
        );
      } else if (s.op === "if") {
        const condition = shapes.of(s.condition);
        const d = divergent + (condition.stride === 0 ? 0 : 1);
        const g = scattered + (condition.group ? 0 : 1);
        visit(s.then, d, g);
        if (s.else) visit(s.else, d, g);
      } else if (s.op === "for") {
        const [from, to, step] = [s.from, s.to, s.step].map((e) =>
          shapes.of(e)
        ) as [Shape, Shape, Shape];
        const group = from.group && to.group && step.group;
        declare(
          { name: s.name, type: "u32", kind: "for" },
          step.stride === 0
            ? {
              stride: from.stride,
              align: Math.min(from.align, step.align),
              group,
            }
            : VARYING,
          divergent,
          scattered,
        );
        visit(
          s.body,
          divergent + (hasUniformTrip(s, shapes) ? 0 : 1),
          scattered + (group ? 0 : 1),
        );
      }
    }
  };
  for (let round = 0; changed; round++) {
    changed = false;
    // A hostile kernel may need as many rounds as it has variables.
    if (round === MAX_ROUNDS) {
      for (const variable of variables.values()) {
        if (variable.kind === "var") variable.shape = VARYING;
      }
    }
    shapes.reset();
    visit(body, 0, 0);
  }
  return shapes;
}

/** The iteration range of a loop: a number, or NaN if it is dynamic. */
export function spanOf(loop: Loop): number {
  return maxSpanOf({ ...loop, to: endOf(loop) });
}

/** Its upper bound, without the limit of its end (`endOf`). */
export function maxSpanOf({ from, to }: Loop): number {
  if (from.op === "const" && to.op === "const") {
    return Number(to.value) - Number(from.value);
  }
  if (to.op !== "binary" || to.fn !== "add" || to.b.op !== "const") return NaN;
  const same = to.a === from ||
    to.a.op === "local" && from.op === "local" && to.a.name === from.name;
  return same ? Number(to.b.value) : NaN;
}
