/** The picture of a data flow. Steps are boxes and values are labels between them, in layers from top to bottom. */

import { Graph, layout } from "@dagrejs/dagre";
import type { Flow, FlowNode, FlowValue } from "../flow.ts";
import { stepLink } from "../links.ts";
import type { Ink } from "../palette.ts";
import type { ProgramView } from "../plan_view.ts";
import { type Figure, type Point, type Shape, shortened } from "./figure.ts";

/** Width of a character relative to the text size. */
const CHARACTER = 0.58;
const NAME = 12, DETAIL = 10.5;
/** Height of a box with two lines, and of each further line, in pixels. */
const HEIGHT = 36, LINE = 14;
const MARGIN = 14;

/** Options of a flow picture. */
export interface FlowPictureOptions {
  readonly program: ProgramView;
  /** The common title of the steps. */
  readonly title: string;
  /** The index of a highlighted step. */
  readonly step?: number | undefined;
}

/** Draws the graph as a figure. */
export function flowPicture(flow: Flow, options: FlowPictureOptions): Figure {
  const graph = new Graph();
  graph.setGraph({
    rankdir: "TB",
    nodesep: 14,
    ranksep: 20,
    edgesep: 10,
    marginx: MARGIN,
    marginy: MARGIN,
  });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const node of flow.nodes) {
    graph.setNode(node.key, { width: widthOf(node), height: heightOf(node) });
  }
  for (const { from, to, through } of flow.edges) {
    // Values are placed closer to the steps that compute them than tables are.
    graph.setEdge(from, to, { weight: through ? 1 : 4 });
  }
  layout(graph);
  const steps = flow.nodes.filter(({ kind }) => kind === "step").length;
  const { width = 0, height = 0 } = graph.graph();
  return {
    size: [Math.max(600, width), height],
    label: `data flow of ${options.title}: ${steps} steps, ${
      flow.nodes.length - steps
    } values`,
    shapes: [
      ...flow.edges.flatMap(({ from, to, through }): Shape[] => {
        const { points } = graph.edge(from, to) as {
          readonly points: readonly {
            readonly x: number;
            readonly y: number;
          }[];
        };
        const path: Shape = {
          kind: "path",
          ink: "soft",
          width: 1.2,
          d: smooth(points.map(({ x, y }) => [x, y])),
          opacity: through ? 0.45 : 0.9,
        };
        const { x, y } = points.at(-1)!;
        const head: Shape = {
          kind: "path",
          ink: "soft",
          width: 1.2,
          d: `M${fixed(x - 3.5)} ${fixed(y - 6)} L${fixed(x)} ${
            fixed(y - 0.5)
          } L${fixed(x + 3.5)} ${fixed(y - 6)}`,
          opacity: through ? 0.45 : 0.9,
        };
        return [
          through ? { ...path, title: `through ${through.join(", ")}` } : path,
          head,
        ];
      }),
      ...flow.nodes.flatMap((node) => {
        const { x, y } = graph.node(node.key) as { x: number; y: number };
        return nodeShapes(node, [x, y], options);
      }),
    ],
  };
}

function textOf(node: FlowNode): readonly [name: string, detail: string] {
  return node.kind === "step"
    ? [`${node.index}. ${node.name}`, node.how]
    : [`${node.name}, ${node.size}`, shortened(node.type, LONGEST)];
}

/** Maximum number of characters in a line. */
const LONGEST = 64;

/** Lists the weights and states of a step, one per line. */
function linesOf(node: FlowNode): readonly (readonly [string, Ink])[] {
  return node.kind === "value"
    ? []
    : node.uses.map(({ name, type, buffer }) => [
      `${name} ${type}`,
      inkOf(buffer),
    ]);
}

function widthOf(node: FlowNode): number {
  const [name, detail] = textOf(node);
  const lines = [detail, ...linesOf(node).map(([text]) => text)];
  return 34 +
    CHARACTER *
      Math.max(NAME * name.length, ...lines.map((l) => DETAIL * l.length));
}

function heightOf(node: FlowNode): number {
  return HEIGHT + LINE * linesOf(node).length;
}

function nodeShapes(
  node: FlowNode,
  [x, y]: Point,
  { program, step }: FlowPictureOptions,
): Shape[] {
  const [width, height] = [widthOf(node), heightOf(node)];
  const [name, detail] = textOf(node);
  const lines = [name, detail, ...linesOf(node).map(([text]) => text)];
  const corner = [x - width / 2, y - height / 2] as const;
  const isStep = node.kind === "step";
  const words = (text: string, dy: number, ink: Ink): Shape => ({
    kind: "text",
    text,
    at: [x + (isStep ? 3 : 0), corner[1] + dy],
    anchor: "middle",
    size: ink === "ink" ? NAME : DETAIL,
    ink,
    bold: ink === "ink" && isStep,
  });
  return [
    isStep
      ? {
        kind: "rect",
        at: corner,
        size: [width, height],
        radius: 6,
        ink: "card",
        border: node.index === step ? "ink" : node.role,
        title: lines.join("\n"),
        link: stepLink(program, node.index),
        action: `Open step ${lines.join(", ")}`,
      }
      : {
        kind: "rect",
        at: corner,
        size: [width, height],
        radius: height / 2,
        ink: "paper",
        border: node.buffer.kind === "scratch" ? "line" : inkOf(node.buffer),
        title:
          `${node.buffer.name}\n${node.buffer.kind}\n${detail}\n${node.size}`,
      },
    ...isStep
      ? [{
        kind: "rect" as const,
        at: corner,
        size: [6, height] as const,
        ink: node.role,
        radius: 3,
      }]
      : [],
    words(name, 15, "ink"),
    words(detail, 29, "soft"),
    ...linesOf(node).flatMap(([text, ink], i): Shape[] => [
      {
        kind: "rect",
        at: [corner[0] + 12, corner[1] + 36 + LINE * i],
        size: [7, 7],
        ink,
        radius: 2,
      },
      {
        kind: "text",
        text,
        at: [corner[0] + 24, corner[1] + 43 + LINE * i],
        size: DETAIL,
        ink: "soft",
      },
    ]),
  ];
}

/** Values that are in memory before the steps have the color of their kind. */
function inkOf({ kind }: FlowValue["buffer"]): Ink {
  return kind === "weight" ? "weights" : kind === "state" ? "state" : "soft";
}

/** Returns a curve through points: straight lines with round corners. */
function smooth(points: readonly Point[]): string {
  const [first, ...rest] = points;
  const last = rest.at(-1)!;
  const inner = rest.slice(0, -1);
  let d = `M${fixed(first![0])} ${fixed(first![1])}`;
  for (const [i, [x, y]] of inner.entries()) {
    const [nextX, nextY] = inner[i + 1] ?? last;
    const [endX, endY] = i + 1 < inner.length
      ? [(x + nextX) / 2, (y + nextY) / 2]
      : last;
    d += ` Q${fixed(x)} ${fixed(y)} ${fixed(endX)} ${fixed(endY)}`;
  }
  return inner.length === 0 ? `${d} L${fixed(last[0])} ${fixed(last[1])}` : d;
}

function fixed(n: number): string {
  return n.toFixed(1);
}
