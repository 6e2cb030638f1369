/** Tracing: runs a model's function once and collects and checks the nodes of its outputs. */

import { atSpan, ModelError, type Span } from "../../spec/errors.ts";
import { checkDispatched } from "./routing/dispatched.ts";
import type { AxisSize, Graph, Node } from "./graph.ts";
import { updatedState } from "./in_place.ts";
import { type Problems, report } from "./problems.ts";
import { deriveSizes } from "./sizes.ts";

/** Result of one run of a model function: the unchecked graph. */
export interface Built {
  /** Declared axes, including those of blocks. */
  readonly axes: { readonly [name: string]: AxisSize };
  /** Returned values by name. */
  readonly outputs: { readonly [name: string]: Node };
  /** Inputs, parameters and states, used or not. */
  readonly declared: readonly Node[];
  /** Every dispatch, used or not. */
  readonly dispatched: readonly Node[];
}

/** Options of `trace`. */
export interface TraceOptions {
  /** Whether the graph is for a training step, with the capacity factors of training. Default: false. */
  readonly training?: boolean;
  /** Collects mistakes instead of throwing the first. */
  readonly problems?: Problems;
}

/** A model as tracing sees it. `Name`: names of its outputs. */
export interface Traceable<out Name extends string = string> {
  /** The declared axes. */
  readonly axes: { readonly [name: string]: AxisSize };
  /** Source position of the declaration. */
  readonly span: Span | undefined;
  /** Runs its function once. */
  readonly build: (options?: TraceOptions) => Built;
  /** Never present: carries the names in the type. */
  readonly returns?: Name;
}

/** A graph with known output names. A missing one updates a state. */
export type TracedGraph<Name extends string> = Graph & {
  readonly outputs: { readonly [N in Name]?: Node };
  /** Axes declared by the model and its blocks. */
  readonly declared: { readonly [name: string]: AxisSize };
};

/**
 * Traces a model. Its function runs once, with symbolic tensors.
 *
 * Throws ModelError for mistakes that depend on the entire model: sizes, values that are dispatched and combined by two
 * routings or never combined, states that are not returned.
 */
export function trace<Name extends string>(
  model: Traceable<Name>,
  options: TraceOptions = {},
): TracedGraph<Name> {
  const built = model.build(options);
  const { outputs: returned, declared, dispatched } = built;
  const leaves = new Map<string, Node>();
  for (const node of declared) {
    if ("name" in node.params) leaves.set(node.params.name, node);
  }
  const outputs: { [name: string]: Node } = {};
  const states: { [name: string]: Node } = {};
  for (const [name, node] of Object.entries(returned)) {
    const leaf = leaves.get(name);
    if (leaf?.primitive === "state") {
      checkUpdate(name, leaf, { node, problems: options.problems });
      states[name] = node;
    } else {
      outputs[name] = node;
    }
  }
  if (Object.keys(returned).length === 0) {
    throw new ModelError(
      "Cannot trace the model: it returns no outputs. Return an object of tensors by name",
      model.span,
    );
  }
  const results = Object.values(returned);
  const nodes = inOrder(results);
  const { problems } = options;
  checkStates(nodes, states, problems);
  checkDispatched(nodes, results, { dispatched, problems });
  const axes = deriveSizes(built.axes, nodes, problems);
  const graph: Graph = { axes, nodes, outputs, states };
  return { ...graph, declared: built.axes } as TracedGraph<Name>;
}

/** All nodes that `results` depend on, inputs before users, in the order of outputs. */
export function inOrder(results: readonly Node[]): Node[] {
  const nodes: Node[] = [];
  const done = new Set<Node>();
  const stack: { readonly node: Node; next: number }[] = [];
  for (const result of results) {
    if (!done.has(result)) stack.push({ node: result, next: 0 });
    while (stack.length > 0) {
      const top = stack[stack.length - 1]!;
      const input = top.node.inputs[top.next++];
      if (input === undefined) {
        stack.pop();
        if (!done.has(top.node)) {
          done.add(top.node);
          nodes.push(top.node);
        }
      } else if (!done.has(input)) {
        stack.push({ node: input, next: 0 });
      }
    }
  }
  return nodes;
}

function checkUpdate(
  name: string,
  leaf: Node,
  { node, problems }: {
    readonly node: Node;
    readonly problems: Problems | undefined;
  },
): void {
  if (updatedState(node) === leaf) return;
  report(
    problems,
    new ModelError(
      `Cannot return '${name}': it is a state, and the returned value is not its next value. Return the next value from attention`,
      node.span,
    ),
    [node],
  );
}

/** Checks that every written state is returned. The next run would not see it otherwise. */
function checkStates(
  nodes: readonly Node[],
  states: { readonly [name: string]: Node },
  problems: Problems | undefined,
): void {
  for (const node of nodes) {
    if (node.primitive !== "state" || node.params.name in states) continue;
    report(
      problems,
      new ModelError(
        `Cannot leave state '${node.params.name}': its next value is not returned${
          declaredAt(node.span)
        }. Return it under this name`,
        node.span,
      ),
      [node],
    );
  }
}

function declaredAt(span: Span | undefined): string {
  return span ? `, declared${atSpan(span)}` : "";
}
