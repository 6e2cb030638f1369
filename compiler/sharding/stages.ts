/**
 * Stages: assigns the layers of a model to the coordinates of a mesh axis (pipeline parallelism). A value is present on
 * the ranks of one stage, which is a part of its sharding; `reshard` sends it to other stages. Inputs, and values that
 * depend on inputs only, are present on all.
 */

import { type Mesh, stageAxis } from "../../spec/mesh.ts";
import { layerBlock } from "../../spec/plan/layers.ts";
import { PlacementError } from "../../spec/errors.ts";
import { type StageRange, stageRanges, stagesText } from "../../spec/stages.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { paramFacts } from "../graph/param_facts.ts";
import { usersOf } from "../graph/users.ts";
import { updateValues } from "./updates.ts";

/** The mesh axis of stages, and the stage of each node. Nodes without one are on all stages. */
export interface Stages {
  readonly over: string;
  readonly of: ReadonlyMap<Node, number>;
}

/**
 * Assigns a stage to each node. A node of a layer is on the stage of the layer; the embedding is on the first stage,
 * and other nodes are on the last stage of their operands with the most axes, in the backward pass on the first.
 * Updated parameters and states are on the stage of their first user; other parameters, such as tied embeddings in
 * inference, are on every stage that uses them.
 *
 * `given`: the layers of each stage, or `cost`, see `stageRanges`. Throws PlacementError.
 */
export function stagesOf(
  graph: Graph,
  mesh: Mesh,
  given?: string,
): Stages | undefined {
  const axis = stageAxis(mesh);
  if (!axis) {
    if (given === undefined) return undefined;
    throw new PlacementError(
      `Cannot use stages '${given}': the mesh has no axis 'pp'. Add it to the mesh, such as pp=2`,
    );
  }
  const layers = layersOf(graph);
  const ranges = stageRanges(axis.size, costsOf(graph, layers), given);
  checkRanges(ranges, layers.size, axis.size);
  const stageOfLayer = new Map(
    [...layers].map((layer, i) =>
      [
        layer,
        ranges.findIndex(([first, last]) => first <= i && i <= last),
      ] as const
    ),
  );
  return { over: axis.name, of: assign(graph, stageOfLayer) };
}

/** Multiply-adds per token of each layer. Those of no layer are of the last one, such as the vocabulary. */
function costsOf(graph: Graph, layers: ReadonlySet<string>): number[] {
  const costs = new Map([...layers].map((layer) => [layer, 0]));
  const last = [...layers].at(-1)!;
  const users = usersOf(graph);
  const facts = new Map(paramFacts(graph).map((one) => [one.name, one]));
  for (const node of graph.nodes) {
    if (node.primitive !== "param") continue;
    const { use, active } = facts.get(node.params.name)!;
    if (use !== "matrix") continue;
    const block = users.get(node)?.[0]?.block ?? "";
    const layer = layerBlock(block) ?? last;
    costs.set(layer, costs.get(layer)! + active);
  }
  return [...costs.values()];
}

/** The blocks of layers of a graph, in order. */
function layersOf({ nodes }: Graph): Set<string> {
  return new Set(
    nodes.flatMap(({ block = "", phase }) =>
      phase === undefined ? layerBlock(block) ?? [] : []
    ),
  );
}

function checkRanges(
  ranges: readonly StageRange[],
  layers: number,
  stages: number,
): void {
  if (layers < stages) {
    throw new PlacementError(
      `Cannot place ${layers} layers on ${stages} stages: a stage would have none. ${
        layers === 0
          ? "Number the blocks of layers, such as layers.0, or leave pp out"
          : `Use pp=${layers} or less`
      }`,
    );
  }
  const covers = ranges.every(([first, last], i) =>
    last >= first && first === (i === 0 ? 0 : ranges[i - 1]![1] + 1)
  );
  if (covers && ranges.length === stages && ranges.at(-1)![1] === layers - 1) {
    return;
  }
  throw new PlacementError(
    `Cannot place layers on stages ${
      stagesText(ranges)
    }: they do not split layers 0-${
      layers - 1
    } into ${stages} parts in order. Give stages such as ${
      stagesText(stageRanges(stages, new Array<number>(layers).fill(1)))
    }`,
  );
}

function assign(
  graph: Graph,
  stageOfLayer: ReadonlyMap<string, number>,
): Map<Node, number> {
  const of = new Map<Node, number>();
  const updates = updateValues(graph);
  const users = usersOf(graph);
  const isLeaf = ({ primitive }: Node) =>
    primitive === "param" || primitive === "state";
  const updated = (node: Node) =>
    node.primitive === "state" ||
    node.primitive === "param" && Object.hasOwn(graph.states, node.params.name);
  const layerStage = ({ block = "" }: Node) =>
    stageOfLayer.get(layerBlock(block) ?? "");
  const free = new Set<Node>();
  /** The stage of a node that is no leaf. */
  const stageOf = (node: Node): number | undefined => {
    const parameter = updates.get(node);
    if (parameter && node.phase === "update") return of.get(parameter);
    const all = node.inputs.filter((input) => of.has(input));
    if (all.length === 0 && !node.inputs.some(isLeaf)) return undefined;
    const values = all.filter((input) => !isLeaf(input));
    const staged = values.length > 0 ? values : all;
    const largest = Math.max(...staged.map(({ axes }) => axes.length));
    const stages = staged.filter(({ axes }) => axes.length === largest)
      .map((input) => of.get(input)!);
    // The sum of the gradients of a tied embedding is where its update is.
    const nearest = node.phase === "backward" && largest > 0
      ? Math.min(...stages)
      : Math.max(0, ...stages);
    return layerStage(node) ?? nearest;
  };
  for (const node of graph.nodes) {
    if (node.primitive === "input") {
      free.add(node);
      continue;
    }
    if (isLeaf(node)) continue;
    const stage = stageOf(node);
    if (stage === undefined) continue;
    of.set(node, stage);
    for (const input of node.inputs) {
      if (!updated(input) || of.has(input)) continue;
      of.set(input, updates.has(node) ? of.get(updates.get(node)!)! : stage);
    }
  }
  for (const leaf of graph.nodes.filter(updated)) {
    const first = users.get(leaf)?.find((user) => of.has(user));
    if (!of.has(leaf) && first) of.set(leaf, of.get(first)!);
  }
  return of;
}
