/**
 * Derivatives of scalar functions, computed from their kernel trees. At a corner, the derivative is that of the branch
 * that the function's comparison selects: for `max(a, b)` and `min(a, b)`, that of `a` if both are equal. Steps, such
 * as `floor`, have derivative zero.
 */

import * as k from "../../../spec/kernel/build.ts";
import { expr } from "../../../spec/kernel/text/resolve.ts";
import type { CallName, Expr } from "../../../spec/kernel/tree.ts";
import { addLocals, mapOperands } from "../../../spec/kernel/walk.ts";
import type { ScalarFunction } from "../graph.ts";

/** A derivative that is zero everywhere. */
type Zero = undefined;

const ONE = k.f32(1);

function isOne(e: Expr): boolean {
  return e.op === "const" && e.value === 1;
}

function plus(a: Expr | Zero, b: Expr | Zero): Expr | Zero {
  if (a === undefined || b === undefined) return a ?? b;
  return k.add(a, b);
}

function times(a: Expr | Zero, b: Expr): Expr | Zero {
  if (a === undefined) return undefined;
  return isOne(a) ? b : isOne(b) ? a : k.mul(a, b);
}

function minus(a: Expr | Zero): Expr | Zero {
  return a === undefined ? undefined : k.neg(a);
}

/** Functions of one number: the derivative, given the argument and the value. */
const SLOPES: {
  readonly [fn in CallName]?: (x: Expr, y: Expr) => Expr;
} = {
  exp: (_, y) => y,
  log: (x) => expr`1.0 / ${x}`,
  sqrt: (_, y) => expr`0.5 / ${y}`,
  rsqrt: (x, y) => expr`-0.5 * (${y} / ${x})`,
  sin: (x) => expr`cos(${x})`,
  cos: (x) => expr`-sin(${x})`,
  tanh: (_, y) => expr`1.0 - ${y} * ${y}`,
  abs: (x) => expr`sign(${x})`,
  roundF16: () => ONE,
};

/** A derivative under construction. Every value has a name, so that it is computed once. */
class Derivation {
  readonly lets: { readonly name: string; readonly value: Expr }[] = [];
  readonly #values = new Map<Expr, Expr>();
  readonly #slopes = new Map<Expr, Expr | Zero>();
  readonly #named = new Map<string, Expr>();
  readonly #by: string;

  constructor({ lets }: ScalarFunction, by: string) {
    this.#by = by;
    for (const { name, value } of lets) this.#named.set(name, value);
  }

  bind(value: Expr): Expr {
    if (value.op === "const" || value.op === "local") return value;
    const name = `d${this.lets.length}`;
    this.lets.push({ name, value });
    return k.local(name, value.type);
  }

  /** The value of an expression of the function. */
  value(e: Expr): Expr {
    const known = this.#values.get(e);
    if (known) return known;
    const made = this.bind(this.#rebuild(e));
    this.#values.set(e, made);
    return made;
  }

  #rebuild(e: Expr): Expr {
    if (e.op !== "local") {
      return mapOperands(e, (operand) => this.value(operand));
    }
    const inner = this.#named.get(e.name);
    return inner ? this.value(inner) : e;
  }

  /** The derivative of an expression of the function by the parameter. */
  slope(e: Expr): Expr | Zero {
    if (e.type !== "f32") return undefined;
    if (this.#slopes.has(e)) return this.#slopes.get(e);
    const made = this.#derive(e);
    const bound = made === undefined ? undefined : this.bind(made);
    this.#slopes.set(e, bound);
    return bound;
  }

  #derive(e: Expr): Expr | Zero {
    switch (e.op) {
      case "local": {
        const inner = this.#named.get(e.name);
        if (inner) return this.slope(inner);
        return e.name === this.#by ? ONE : undefined;
      }
      case "unary":
        return minus(this.slope(e.a));
      case "convert":
        return this.slope(e.a);
      case "binary":
        return this.#binary(e);
      case "call":
        return this.#call(e);
      case "select": {
        const [a, b] = [this.slope(e.a), this.slope(e.b)];
        return this.#choose(this.value(e.condition), a, b);
      }
      default:
        return undefined;
    }
  }

  #choose(condition: Expr, a: Expr | Zero, b: Expr | Zero): Expr | Zero {
    if (a === undefined && b === undefined) return undefined;
    return k.select(condition, a ?? k.f32(0), b ?? k.f32(0));
  }

  #binary(e: Extract<Expr, { op: "binary" }>): Expr | Zero {
    const [da, db] = [this.slope(e.a), this.slope(e.b)];
    const [a, b] = [this.value(e.a), this.value(e.b)];
    switch (e.fn) {
      case "add":
        return plus(da, db);
      case "sub":
        return plus(da, minus(db));
      case "mul":
        return plus(times(da, b), times(db, a));
      case "div": {
        const change = plus(da, minus(times(db, this.value(e))));
        return change === undefined ? undefined : k.div(change, b);
      }
      case "rem": {
        const quotient = expr`trunc(${a} / ${b})`;
        return plus(da, minus(times(db, quotient)));
      }
      case "min":
        return this.#choose(k.binary("le", a, b), da, db);
      case "max":
        return this.#choose(k.binary("ge", a, b), da, db);
      default:
        return undefined;
    }
  }

  #call(e: Extract<Expr, { op: "call" }>): Expr | Zero {
    const slopes = e.args.map((arg) => this.slope(arg));
    if (slopes.every((slope) => slope === undefined)) return undefined;
    const args = e.args.map((arg) => this.value(arg));
    const y = this.value(e);
    if (e.fn === "fma") {
      const product = plus(
        times(slopes[0], args[1]!),
        times(slopes[1], args[0]!),
      );
      return plus(product, slopes[2]);
    }
    if (e.fn === "pow") {
      const [x, n] = args as [Expr, Expr];
      const lower = expr`pow(${x}, ${n} - 1)`;
      return plus(
        times(slopes[0], expr`${n} * ${lower}`),
        times(slopes[1], expr`log(${x}) * ${y}`),
      );
    }
    const slope = SLOPES[e.fn];
    return slope ? times(slopes[0], slope(args[0]!, y)) : undefined;
  }
}

/** A scalar function without unused parameters and values. `used`: its own values, last first. */
export interface Trimmed {
  readonly fn: ScalarFunction;
  readonly used: readonly number[];
}

/** Drops unused parameters and values. The last parameter is used. */
function trim(fn: ScalarFunction): Trimmed {
  const reads = new Set<string>();
  addLocals(fn.result, reads);
  const lets = [...fn.lets].reverse().filter(({ name, value }) => {
    if (!reads.has(name)) return false;
    addLocals(value, reads);
    return true;
  }).reverse();
  const last = fn.parameters.length - 1;
  const others = fn.parameters.flatMap((_, i) =>
    i < last && reads.has(`p${i}`) ? [i] : []
  );
  const used = [last, ...others];
  const names = new Map(used.map((old, i) => [`p${old}`, `p${i}`]));
  const renamed = (e: Expr): Expr =>
    e.op === "local"
      ? { ...e, name: names.get(e.name) ?? e.name }
      : mapOperands(e, renamed);
  return {
    fn: {
      parameters: used.map((i) => fn.parameters[i]!),
      lets: lets.map(({ name, value }) => ({ name, value: renamed(value) })),
      result: renamed(fn.result),
    },
    used,
  };
}

/**
 * The derivative of `fn` by its parameter `by`, times a factor. The factor is an additional parameter: the last in
 * `used`'s count, and the first of the returned function. Undefined if the derivative is zero.
 */
export function differentiateScalar(
  fn: ScalarFunction,
  by: number,
): Trimmed | undefined {
  const derivation = new Derivation(fn, `p${by}`);
  const slope = derivation.slope(fn.result);
  if (slope === undefined) return undefined;
  const outer = k.local(`p${fn.parameters.length}`, "f32");
  return trim({
    parameters: [...fn.parameters, "f32"],
    lets: derivation.lets,
    result: isOne(slope) ? outer : k.mul(outer, slope),
  });
}
