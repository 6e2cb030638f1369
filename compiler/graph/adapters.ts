/**
 * Low-rank adapters (LoRA, Hu et al. 2021, equation 3): `y = W x + scale · B (A x)` for matrices W of a model, as a
 * rewrite of its graph. A has axes `lora` and those that W contracts, B those of W's output and `lora`; adapters of
 * experts also have the expert axis. Names and layouts are those of PEFT: linear modules, or `target_parameters` for
 * experts in one tensor (its `ParamWrapper`).
 */

import { add, f32, mul } from "../../spec/kernel/build.ts";
import { ModelError } from "../../spec/errors.ts";
import { isRouting, type Node, type NodeOf } from "./graph.ts";
import { mapNodes } from "./map_nodes.ts";
import { without } from "./messages.ts";
import { builderContext, NodeBuilder } from "./gradients/node_builder.ts";
import { type Built, inOrder, type Traceable } from "./trace.ts";

/** Adapters of a model. */
export interface Adapters {
  /** Length of the axis between A and B. */
  readonly rank: number;
  /** Factor of their product. */
  readonly scale: number;
  /**
   * Whether a matrix has an adapter, by its parameter: `layers.0.mlp.experts.{expert}.up_proj.weight`. `fused`: the
   * parameter has the matrices of all experts.
   */
  readonly adapts: (parameter: string, fused: boolean) => boolean;
}

/** Names of the two matrices of an adapter. */
export interface AdapterNames {
  readonly a: string;
  readonly b: string;
}

/** Prefix of PEFT's tensor names. */
const PREFIX = "base_model.model.";

/** The adapter's matrices for the parameter of a module, under PEFT's names. */
export function adapterNames(parameter: string): AdapterNames {
  const module = PREFIX + parameter.replace(/\.weight$/, "");
  return { a: `${module}.lora_A.weight`, b: `${module}.lora_B.weight` };
}

/**
 * The modules that PEFT adds for fused parameters. Those of one module are nested, the first one innermost:
 * `mlp.experts.base_layer` for `mlp.experts.gate_up_proj`, then `mlp.experts` for `mlp.experts.down_proj`.
 *
 * @param parameters in the order of the module
 */
export function fusedModules(
  parameters: readonly string[],
): ReadonlyMap<string, string> {
  const moduleOf = (parameter: string) => parameter.replace(/\.[^.]+$/, "");
  return new Map(parameters.map((parameter, i) => {
    const module = moduleOf(parameter);
    const outer = parameters.slice(i + 1).filter((other) =>
      moduleOf(other) === module
    );
    return [parameter, module + ".base_layer".repeat(outer.length)];
  }));
}

/** Whether a tensor or parameter is a matrix of an adapter. */
export function isAdapter(name: string): boolean {
  return name.startsWith(PREFIX) && /\.lora_[AB]\.weight$/.test(name);
}

/** All parameters, or only adapters (`withAdapters`). */
export type TrainedParameters = "all" | "adapters";

/** Whether a parameter is trained. */
export function isTrained(
  name: string,
  trained: TrainedParameters = "all",
): boolean {
  return trained === "all" || isAdapter(name);
}

/** The parameter of an adapter's matrix, and which one it is. Undefined for other names. */
export function adaptedParameter(
  name: string,
):
  | { readonly parameter: string; readonly matrix: keyof AdapterNames }
  | undefined {
  const [, module, matrix] = /^base_model\.model\.(.+)\.lora_([AB])\.weight$/
    .exec(name) ?? [];
  if (module === undefined) return undefined;
  return {
    parameter: `${module}.weight`,
    matrix: matrix === "A" ? "a" : "b",
  };
}

/** A product with a matrix of the checkpoint. */
interface Product {
  readonly dot: NodeOf<"dot">;
  readonly matrix: NodeOf<"param">;
  /** The other operand. */
  readonly input: Node;
  /** Axes of both that are not contracted: those of experts. */
  readonly batch: readonly string[];
  /** Whether one tensor has the matrices of all experts. */
  readonly fused: boolean;
}

/** The product of a node, if it contracts f32 values with one parameter, of each expert or of none. */
function productOf(
  node: Node,
  experts: ReadonlySet<string>,
): Product | undefined {
  if (node.primitive !== "dot" || node.dtype !== "f32") return undefined;
  const [a, b] = node.inputs as readonly [Node, Node];
  const [matrix, input] = b.primitive === "param" ? [b, a] : [a, b];
  if (matrix.primitive !== "param" || input.primitive === "param") {
    return undefined;
  }
  const { over } = node.params;
  const batch = matrix.axes.filter((axis) =>
    input.axes.includes(axis) && !over.includes(axis)
  );
  const fused = batch.length > 0 && matrix.params.stack === undefined;
  if (fused && !(batch.length === 1 && experts.has(batch[0]!))) {
    return undefined;
  }
  return { dot: node, matrix, input, batch, fused };
}

/**
 * A model with adapters. Its other parameters are unchanged; with B = 0, so are its results. Throws ModelError when it
 * is traced, if no matrix has an adapter.
 */
export function withAdapters<Name extends string>(
  model: Traceable<Name>,
  adapters: Adapters,
): Traceable<Name> {
  return {
    ...model,
    build: (options) => adapted(model.build(options), adapters),
  };
}

function adapted(built: Built, { rank, scale, adapts }: Adapters): Built {
  const { outputs, declared, dispatched } = built;
  const nodes = inOrder([
    ...Object.values(outputs),
    ...declared,
    ...dispatched,
  ]);
  const axis = freeAxis(built);
  const axes = { ...built.axes, [axis]: { size: rank, dynamic: false } };
  const context = builderContext(axes, nodes);
  const made = new Map<string, Node>();
  const changed = new Map<Node, Node>();
  const experts = new Set(
    nodes.filter(isRouting).map(({ params }) => params.expert),
  );
  const adaptedProduct = (node: Node) => {
    const product = productOf(node, experts);
    return product && adapts(product.matrix.params.name, product.fused)
      ? product
      : undefined;
  };
  const modules = fusedModules([
    ...new Set(
      nodes.map(adaptedProduct).flatMap((product) =>
        product?.fused ? [product.matrix.params.name] : []
      ),
    ),
  ]);
  mapNodes({ axes, nodes, outputs: {}, states: {} }, (node, before) => {
    const product = adaptedProduct(node);
    const after = product ? withAdapter(product) : node;
    changed.set(before, after);
    return after;
  });
  if (made.size === 0) {
    throw new ModelError(
      "Cannot adapt the model: no matrix is a target. Name modules such as 'q_proj', or 'attention' or 'experts'",
      undefined,
    );
  }
  const now = (node: Node) => changed.get(node)!;
  return {
    axes,
    outputs: Object.fromEntries(
      Object.entries(outputs).map(([name, node]) => [name, now(node)]),
    ),
    declared: [...declared.map(now), ...made.values()],
    dispatched: dispatched.map(now),
  };

  function withAdapter({ dot, matrix, input, batch, fused }: Product): Node {
    const { over } = dot.params;
    const { name, stack } = matrix.params;
    const names = adapterNames(modules.get(name) ?? name);
    const out = without(matrix.axes, [...batch, ...over]);
    const b = new NodeBuilder(context, dot);
    const param = (name: string, axes: readonly string[]) => {
      const known = made.get(name);
      if (known) return known;
      const params = stack === undefined ? { name } : { name, stack };
      const node = b.make("param", [], params, { axes, dtype: "f32" });
      made.set(name, node);
      return node;
    };
    const contracted = without(matrix.axes, [...batch, ...out]);
    const down = param(names.a, [...batch, axis, ...contracted]);
    // A file has `expert rank` rows of A, and `rank expert` columns of B.
    const up = param(
      names.b,
      fused ? [...out, axis, ...batch] : [...batch, ...out, axis],
    );
    const low = b.make("dot", [input, down], { over });
    const high = b.make("dot", [low, up], { over: [axis] });
    return b.map(
      (y, change) => add(y!, mul(f32(scale), change!)),
      dot,
      b.ordered(high, dot.axes),
    );
  }
}

/** A name of the axis between A and B that the model does not have. */
function freeAxis({ axes }: Built): string {
  let name = "lora";
  while (Object.hasOwn(axes, name)) name += "_";
  return name;
}
