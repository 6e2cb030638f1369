/** Declaration of a model: its axes, and the function that builds it. */

import { axisIn, blockOfAxis, isWithin } from "../../spec/axis_name.ts";
import { type DType, DTYPES } from "../../spec/dtype.ts";
import { atSpan, ModelError, type Span } from "../../spec/errors.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { AxisSize, Node } from "../graph/graph.ts";
import type { Built, Traceable } from "../graph/trace.ts";
import { choices, messages as say, without, words } from "../graph/messages.ts";
import { report } from "../graph/problems.ts";
import { sameAxes } from "../graph/operands.ts";
import { callSite } from "../../spec/call_site.ts";
import { makeNode } from "../graph/make_node.ts";
import {
  type Block,
  names,
  refuse,
  Tensor,
  type Trace,
  wrap,
} from "./tensor.ts";
import type { CanReturn, Known, KnownParam, ParamName } from "./types.ts";

/** A length known when a program starts, at most `bound`. */
export interface UpTo {
  readonly bound: number;
}

/**
 * An axis of dynamic length, at most `bound`.
 *
 * Errors: a bound that is not an integer from 1 to 2^24.
 *
 * @example
 * ```ts
 * const double = model({ token: upTo(4096), embed: 64 }, (m) => {
 *   const x = m.input("x", "token embed");
 *   return { y: add(x, x) };
 * });
 * console.assert(trace(double).axes.token?.dynamic === true);
 * ```
 */
export function upTo(bound: number): UpTo {
  if (!isAxisSize(bound)) {
    throw new ModelError(
      `Cannot bound an axis by ${bound}: a bound is a whole number from 1 to ${MAX_AXIS}`,
      callSite(upTo),
    );
  }
  return { bound };
}

/** The axes of a model: a size or a bound each. */
export interface AxisSizes {
  readonly [axis: string]: number | UpTo;
}

/** Options of the declaration of an input, parameter or state. */
export interface DeclareOptions<D extends DType> {
  /** Compute dtype. Default: "f32". */
  readonly dtype?: D;
}

/**
 * The object with which a model function declares its tensors. `Names` are the axes of the model, or of a block and its
 * enclosing scopes. A function that accepts a scope can be called with any scope that has its axes.
 */
export interface Scope<in Names extends string = string> {
  /**
   * Calls `body` in a scope with additional local axes `axes`. The same name outside or in another block is another
   * axis of any size; placements and plans call it `layers.3.moe.expert`. Axes that an op names inside, such as
   * "choice" of `route`, are local too. Names of parameters and states get the block's name as prefix,
   * `layers.3.moe.router`; names of nested blocks are joined. A second call with the same name and axes continues the
   * block.
   *
   * Axes, dtype: those of the result of `body`. Errors: a name with characters other than letters, digits, '_', '-' and
   * '.'; an axis that the block has with another size; a result with a local axis.
   *
   * @example
   * ```ts
   * const hidden = (m: Scope<"token" | "embed" | "ffn">, x: Tensor<"token embed", "f32">) =>
   *   dot(dot(x, m.param("up", "ffn embed"), "embed"), m.param("down", "embed ffn"), "ffn");
   * const two = model({ token: 1, embed: 2 }, (m) => {
   *   const x = m.input("x", "token embed");
   *   const y = m.block("layers.0", { ffn: 4 }, (m) => hidden(m, x));
   *   return { y: m.block("layers.1", { ffn: 6 }, (m) => hidden(m, y)) };
   * });
   * console.assert(trace(two).axes["layers.1.ffn"]?.size === 6);
   * ```
   */
  block<
    const L extends AxisSizes,
    const A extends string,
    const D extends DType,
  >(
    name: string,
    axes: L,
    body: (
      m: Scope<Names | (keyof L & string)>,
    ) => CanReturn<A, keyof NoInfer<L>, Tensor<A, D>>,
  ): Tensor<A, D>;
  /**
   * A tensor given at run time. Its name is its safetensors key. Ids and positions are "i32".
   *
   * Errors: an axis that the model does not have; a repeated axis; the same name declared with another type.
   */
  input<
    const S extends string,
    const D extends DType = "f32",
  >(
    name: string,
    axes: Known<Names, S>,
    options?: DeclareOptions<D>,
  ): Tensor<S, NoInfer<D>>;
  /**
   * A tensor of the checkpoint, with axes in the order of the file. `{expert}` in the name stacks one tensor per index
   * of the axis `expert`, which must be the first axis. The dtype is the compute dtype; the file determines the stored
   * dtype.
   *
   * Errors: as `input`; a stacked axis that is not the first.
   */
  param<
    const S extends string,
    const D extends DType = "f32",
    const X extends string = never,
  >(
    name: ParamName<X>,
    axes: KnownParam<Names, S, NoInfer<X>>,
    options?: DeclareOptions<D>,
  ): Tensor<S, NoInfer<D>>;
  /**
   * A persistent tensor, initially zero. The model returns its next value under the same name.
   *
   * Errors: as `input`; a state that is not returned.
   */
  state<
    const S extends string,
    const D extends DType = "f32",
  >(
    name: string,
    axes: Known<Names, S>,
    options?: DeclareOptions<D>,
  ): Tensor<S, NoInfer<D>>;
}

/** Result of a model function: outputs by name, and next values of states by name. */
export interface Outputs {
  readonly [name: string]: Tensor;
}

/** A model: its axes, and its function. `Name` are the names of its outputs. */
export interface Model<out Name extends string = string>
  extends Traceable<Name> {}

const MODELS = new WeakSet<object>();

/** Whether a value is the result of `model`. */
export function isModel(value: unknown): value is Model {
  return typeof value === "object" && value !== null && MODELS.has(value);
}

const EXAMPLES = new WeakMap<object, () => Model | undefined>();

/** Declares the model that `check` and editors trace for a value that builds models. Undefined: none. */
export function setExample(
  value: object,
  example: () => Model | undefined,
): void {
  EXAMPLES.set(value, example);
}

/** Whether a value is a model or builds models. */
export function hasExample(value: unknown): value is object {
  return isModel(value) ||
    typeof value === "object" && value !== null && EXAMPLES.has(value);
}

/** The model to trace for an exported value: the value itself or its example. */
export function exampleOf(value: object): Model | undefined {
  return isModel(value) ? value : EXAMPLES.get(value)?.();
}

/**
 * Declares a model. `axes` binds each axis name to one size, or to `upTo(n)`, for the entire model. `build` declares
 * inputs, parameters and states with its argument and returns the outputs by name. It runs when the model is traced, so
 * it may use any JavaScript: loops unroll, and configurations are values.
 *
 * Errors: an axis name that is empty or contains a space; a size that is not an integer from 1 to 2^24; an output that
 * is not a tensor.
 *
 * @example
 * ```ts
 * const layer = model({ token: upTo(16), embed: 8, ffn: 32 }, (m) => {
 *   const x = m.input("x", "token embed");
 *   const up = dot(x, m.param("up", "ffn embed"), "embed");
 *   return { y: dot(up, m.param("down", "embed ffn"), "ffn") };
 * });
 * console.assert(trace(layer).outputs.y?.axes.join(" ") === "token embed");
 * ```
 */
export function model<const Sizes extends AxisSizes, const R extends Outputs>(
  axes: Sizes,
  build: (m: Scope<keyof Sizes & string>) => R,
): Model<keyof R & string> {
  const span = callSite(model);
  const sizes = axisSizes(axes, span);
  const made: Model<keyof R & string> = {
    axes: sizes,
    span,
    build: ({ training = false, problems } = {}) =>
      run(
        {
          axes: { ...sizes },
          training,
          dispatched: [],
          blocks: [],
          problems,
          block: {
            path: "",
            names: new Map(Object.keys(sizes).map((name) => [name, name])),
          },
        },
        build as Build,
        span,
      ),
  };
  MODELS.add(made);
  return made;
}

function axisSizes(
  axes: AxisSizes,
  span: Span | undefined,
): { readonly [name: string]: AxisSize } {
  return Object.fromEntries(
    Object.entries(axes).map((
      [name, size],
    ) => [name, axisSize(name, size, span)]),
  );
}

function isAxisSize(size: number): boolean {
  return Number.isInteger(size) && size >= 1 && size <= MAX_AXIS;
}

function axisSize(
  name: string,
  size: number | UpTo,
  span: Span | undefined,
): AxisSize {
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
    throw new ModelError(
      `Cannot name an axis '${name}': a name is letters, digits and '_', and starts with no digit`,
      span,
    );
  }
  const length = typeof size === "number" ? size : size.bound;
  if (!isAxisSize(length)) {
    throw new ModelError(
      `Cannot give axis '${name}' the size ${length}: a size is a whole number from 1 to ${MAX_AXIS}`,
      span,
    );
  }
  return { size: length, dynamic: typeof size !== "number" };
}

/** The function of any model. */
type Build = (m: Scope) => unknown;

function run(trace: Trace, build: Build, span: Span | undefined): Built {
  const declared = new Map<string, Node>();
  const returned: unknown = build(makeScope(trace, declared, trace.block));
  if (
    typeof returned !== "object" || returned === null ||
    returned instanceof Tensor
  ) {
    throw new ModelError(
      `Cannot build a model: its function returned ${
        returned instanceof Tensor ? "a tensor" : "no outputs"
      }. Return an object of tensors by name`,
      span,
    );
  }
  const outputs: { [name: string]: Node } = {};
  for (const [name, value] of Object.entries(returned)) {
    if (!(value instanceof Tensor)) {
      throw new ModelError(`Cannot return '${name}': it is no tensor`, span);
    }
    if (value.trace !== trace) {
      throw new ModelError(
        `Cannot return '${name}': it belongs to another model`,
        value.node.span,
      );
    }
    outputs[name] = value.node;
  }
  return {
    axes: trace.axes,
    outputs,
    declared: [...declared.values()],
    dispatched: trace.dispatched,
  };
}

type Leaf = "input" | "param" | "state";

type AnyOptions = DeclareOptions<DType>;

/** Creates the scope of declarations. It is typed loosely to reduce type-checking time; users see the interface. */
function makeScope(
  trace: Trace,
  declared: Map<string, Node>,
  block: Block,
): Scope {
  function declare(
    kind: Leaf,
    op: (...args: never[]) => unknown,
    name: string,
    axes: string,
    dtype: DType,
  ): Tensor<never, never> {
    const span = callSite(op);
    const { problems } = trace;
    const asked = names(axes);
    const known = [...block.names.keys()];
    const twice = asked.find((axis, i) => asked.indexOf(axis, i + 1) >= 0);
    const wrong = without(asked, known).length > 0
      ? say.unknownAxis(asked, known)
      : twice === undefined
      ? undefined
      : say.repeatedAxis(asked, twice);
    if (wrong !== undefined) report(problems, new ModelError(wrong, span), []);
    const list = [...new Set(asked)].filter((axis) => known.includes(axis));
    if (name === "") {
      throw new ModelError(
        `Cannot declare '${axes}': its name is empty`,
        span,
      );
    }
    if (!DTYPES.includes(dtype)) {
      throw new ModelError(
        `Cannot declare '${name}' as '${
          String(dtype)
        }': a tensor is computed in ${
          choices(DTYPES)
        }. Choose one; its file may store another`,
        span,
      );
    }
    const full = kind === "input" ? name : nameIn(block, name);
    const stack = kind === "param" ? /\{([^}]*)\}/.exec(name)?.[1] : undefined;
    const node = makeNode(
      kind,
      [],
      stack === undefined
        ? { name: full }
        : { name: full, stack: block.names.get(stack) ?? stack },
      {
        span,
        block: block.path,
        problems,
        given: { axes: list.map((axis) => block.names.get(axis)!), dtype },
      },
    );
    if (wrong !== undefined) {
      problems?.wrong.add(node as Node);
      return wrap(node as Node, trace);
    }
    const before = declared.get(full);
    if (before === undefined) {
      declared.set(full, node as Node);
      return wrap(node as Node, trace);
    }
    if (
      before.primitive !== kind || before.dtype !== dtype ||
      !sameAxes(before.axes, node.axes)
    ) {
      throw new ModelError(
        `Cannot declare ${kind} '${full}' as ${dtype}[${axes}]: it is ${before.primitive} ${before.dtype}[${
          words(before.axes)
        }]${atSpan(before.span)} already`,
        span,
      );
    }
    return wrap(before, trace);
  }
  const scope = {
    input: (name: string, axes: string, options?: AnyOptions) =>
      declare("input", scope.input, name, axes, options?.dtype ?? "f32"),
    param: (name: string, axes: string, options?: AnyOptions) =>
      declare("param", scope.param, name, axes, options?.dtype ?? "f32"),
    state: (name: string, axes: string, options?: AnyOptions) =>
      declare("state", scope.state, name, axes, options?.dtype ?? "f32"),
    block: (name: string, axes: AxisSizes, body: (m: Scope) => unknown) => {
      const span = callSite(scope.block);
      const inner = openBlock(trace, block, { name, axes, span });
      const before = trace.block;
      trace.block = inner;
      try {
        return closeBlock(inner, body(makeScope(trace, declared, inner)), span);
      } finally {
        trace.block = before;
      }
    },
  };
  return scope as unknown as Scope;
}

/** The full name of a parameter, state or block that is declared in a block. */
function nameIn({ path }: Block, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}

/** Opens the scope of a block: its axes and those of the enclosing scopes. */
function openBlock(
  trace: Trace,
  outer: Block,
  { name, axes, span }: {
    readonly name: string;
    readonly axes: AxisSizes;
    readonly span: Span | undefined;
  },
): Block {
  if (!/^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/.test(name)) {
    throw new ModelError(
      `Cannot name a block '${name}': a name is letters, digits, '_' and '-', in parts joined by '.'`,
      span,
    );
  }
  const path = nameIn(outer, name);
  const known = new Map(outer.names);
  for (const [axis, size] of Object.entries(axisSizes(axes, span))) {
    const full = axisIn(path, axis);
    const before = trace.axes[full] ?? size;
    if (before.size !== size.size || before.dynamic !== size.dynamic) {
      throw new ModelError(
        `Cannot declare axis '${full}' of ${size.size}: it is ${before.size} already. Give the block another name`,
        span,
      );
    }
    trace.axes[full] = before;
    known.set(axis, full);
  }
  return { path, names: known };
}

/** Checks that the result of a block has no local axis. */
function closeBlock(
  { path }: Block,
  value: unknown,
  span: Span | undefined,
): Tensor {
  if (!(value instanceof Tensor)) {
    throw new ModelError(
      `Cannot return from block '${path}': it is no tensor`,
      span,
    );
  }
  const { axes } = value.node;
  const local = axes.filter((axis) => {
    const of = blockOfAxis(axis);
    return of !== "" && isWithin(of, path);
  });
  if (local.length === 0) return value;
  const error = new ModelError(say.leave(axes, local), span);
  return refuse(error, [value], without(axes, local));
}
