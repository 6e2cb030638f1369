/** What no lowering could do: refused here, at the place in the model, before anything is lowered. */

import { ModelError, PlacementError } from "../../spec/errors.ts";
import type { Graph, Node, NodeOf, RoutingNode } from "../graph/graph.ts";
import { isSpread } from "./gather.ts";
import type { Placed } from "./placed.ts";
import { usersOf } from "./users.ts";
import { wholeAxes } from "./whole_axes.ts";

/** Hold every node against the placement. Throws ModelError or PlacementError. */
export function checkPlaced(graph: Graph, placed: Placed): void {
  for (const node of graph.nodes) {
    checkWhole(node, placed);
    checkTogether(node, placed);
    if (node.primitive === "dispatch") checkRoute(node, placed);
  }
  checkStates(graph);
}

/** The tensor by whose values tokens must lie together on a rank: those of a sequence. */
function togetherBy(node: Node): Node | undefined {
  switch (node.primitive) {
    case "attention":
      return node.inputs[3];
    case "cacheWrite":
      return node.inputs[2];
    default:
      return undefined;
  }
}

function checkTogether(node: Node, { axes }: Placed): void {
  const by = togetherBy(node);
  const axis = by?.axes.find((axis) => axes[axis]?.over?.length);
  if (by === undefined || axis === undefined) return;
  const { over, deal } = axes[axis]!;
  const cannot = `Cannot place axis '${axis}' over '${over!.join("+")}': ${
    describe(node)
  } needs`;
  if (by.primitive !== "input") {
    throw new ModelError(
      `${cannot} tokens of one sequence on one rank, and which those are is computed. Give it as an input, or leave the axis unplaced`,
      node.span,
    );
  }
  if (deal?.by === "sequence" && deal.input === by.params.name) return;
  throw new ModelError(
    `${cannot} tokens with one '${by.params.name}' on one rank, and they are dealt by ${
      deal?.by === "sequence" ? `'${deal.input}'` : "blocks"
    }. Use one input for both, or leave the axis unplaced`,
    node.span,
  );
}

/** Ranks that share experts must hold different tokens, or each would send all of them. */
function checkRoute(
  node: NodeOf<"dispatch">,
  { axes, mesh }: Placed,
): void {
  const { expert, tokens } = (node.inputs[1] as RoutingNode).params;
  const held = new Set(tokens.flatMap((axis) => axes[axis]?.over ?? []));
  for (const name of axes[expert]?.over ?? []) {
    const size = mesh.find((axis) => axis.name === name)?.size ?? 1;
    if (size === 1 || held.has(name)) continue;
    throw new PlacementError(
      `Cannot place axis '${expert}' over '${name}': the tokens that are routed to it are not. Place '${
        tokens[0]
      }' over '${name}' too`,
    );
  }
}

function describe(node: Node): string {
  if (node.primitive === "map") return node.params.verb;
  if (node.primitive === "reduce") return node.params.kind;
  if (node.primitive === "cacheWrite") return "attention";
  if (node.primitive === "param") return `parameter '${node.params.name}'`;
  return node.primitive === "state"
    ? `state '${node.params.name}'`
    : node.primitive;
}

function checkWhole(node: Node, placed: Placed): void {
  for (const axis of wholeAxes(node, placed.axes)) {
    if (!isSpread(placed, axis)) continue;
    const where = placed.axes[axis]!.over!;
    throw new ModelError(
      `Cannot place axis '${axis}' over '${where.join("+")}': ${
        describe(node)
      } needs all of it on one rank. Leave the axis unplaced`,
      node.span,
    );
  }
}

/** States are updated in place: whoever reads one before it is written might see it after. */
function checkStates(graph: Graph): void {
  const users = usersOf(graph);
  for (const state of graph.nodes) {
    if (state.primitive !== "state") continue;
    const { name } = state.params;
    const dynamic = state.axes.find((axis) => graph.axes[axis]!.dynamic);
    if (dynamic !== undefined) {
      throw new ModelError(
        `Cannot keep state '${name}': the length of '${dynamic}' is known only at run time. Give the axis a fixed size`,
        state.span,
      );
    }
    const uses = new Set(users.get(state));
    const writes = [...uses].filter(isWrite);
    const again = writes.flatMap((write) =>
      (users.get(write) ?? []).filter(isWrite)
    );
    const second = writes[1] ?? again[0];
    if (second) {
      throw new ModelError(
        `Cannot write state '${name}' twice: it is updated in place. Give each attention states of its own`,
        second.span,
      );
    }
    const reader = [...uses].find((user) => !isWrite(user)) ??
      Object.values(graph.outputs).find((output) => output === state);
    if (writes.length && reader) {
      throw new ModelError(
        `Cannot read state '${name}' before it is written: it is updated in place. Read what attention makes of it`,
        reader.span,
      );
    }
  }
}

function isWrite(node: Node): boolean {
  return node.primitive === "cacheWrite";
}
