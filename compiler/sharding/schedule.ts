/**
 * Schedule: orders the nodes of a training step so that pipeline stages work on different micro-batches at the same
 * time. Every rank executes its own steps in this order. Postcondition: operands precede users; values do not change.
 *
 * A task is the forward pass, the backward pass or, if they are split, the gradients of weights of one micro-batch on
 * one stage. Tasks start in the order of `listTasks`, by the estimated time of their nodes.
 */

import type { Plan } from "../../spec/plan/plan.ts";
import {
  bubbleOf,
  listTasks,
  type ScheduleName,
  SCHEDULES,
  type Task,
} from "../../spec/schedule.ts";
import { sum } from "../../spec/sum.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { usersOf } from "../graph/users.ts";
import type { Stages } from "./stages.ts";

/** The nodes of a task, in order. */
interface NodeTask extends Task {
  readonly nodes: Node[];
}

/** An ordered graph, and its schedule for the plan. */
export interface Scheduled {
  readonly graph: Graph;
  readonly pipeline?: NonNullable<Plan["pipeline"]>;
}

/** Orders a graph whose nodes have micro-batches and stages. Other graphs are unchanged. */
export function scheduleStages(
  graph: Graph,
  stages: Stages | undefined,
  name: ScheduleName,
): Scheduled {
  const micros = new Set(graph.nodes.flatMap(({ micro }) => micro ?? []));
  if (!stages || micros.size === 0) return { graph };
  const schedule = SCHEDULES[name];
  const upstream = schedule.splits ? neededUpstream(graph) : undefined;
  const tasks = new Map<string, NodeTask>();
  const taskOf = new Map<Node, NodeTask>();
  const hops = new Map<Node, number>();
  const first: Node[] = [];
  const last = new Set<Node>();
  for (const node of graph.nodes) {
    const { micro, phase, sharding, inputs } = node;
    const stage = node.primitive === "send"
      ? node.params.stages[0]
      : sharding?.stage;
    if (isLeaf(node)) {
      first.push(node);
      continue;
    }
    const late = phase === "update" ||
      inputs.some((input) => last.has(input));
    if (late || micro === undefined && phase !== undefined) {
      last.add(node);
      continue;
    }
    if (micro === undefined || stage === undefined) {
      first.push(node);
      continue;
    }
    // A task ends where a value returns from another stage: tasks do not wait for one another.
    const hop = Math.max(
      0,
      ...inputs.map((input) =>
        (hops.get(input) ?? 0) +
        (input.primitive === "send" && input.micro === micro ? 1 : 0)
      ),
    );
    hops.set(node, hop);
    const kind = phase === undefined
      ? "forward"
      // The first stage sends no gradients.
      : upstream === undefined || upstream.has(node) || stage === 0
      ? "backward"
      : "weights";
    const key = `${kind} ${micro} ${stage} ${hop}`;
    const task = tasks.get(key) ??
      { kind, micro, stage, seconds: 0, after: [], nodes: [] } as NodeTask;
    tasks.set(key, task);
    task.nodes.push(node);
    taskOf.set(node, task);
  }
  const all = [...tasks.values()].map((task): NodeTask => ({
    ...task,
    seconds: task.nodes.reduce((n, node) => n + secondsOf(graph, node), 0),
  }));
  const made = new Map([...tasks.values()].map((task, i) => [task, all[i]!]));
  for (const [before, task] of made) {
    const after = new Set(
      task.nodes.flatMap(({ inputs }) =>
        inputs.flatMap((input) => {
          const other = taskOf.get(input);
          return other && other !== before ? made.get(other)! : [];
        })
      ),
    );
    (task.after as Task[]).push(...after);
  }
  const times = listTasks(all, schedule);
  const events = times.flatMap(({ task, start, end }) => {
    const { nodes } = task as NodeTask;
    const sends = nodes.filter(({ primitive }) => primitive === "send");
    const rest = nodes.filter(({ primitive }) => primitive !== "send");
    return [
      { at: start, sends: false, nodes: rest },
      { at: end, sends: true, nodes: sends },
    ];
  }).sort((a, b) => a.at - b.at || Number(b.sends) - Number(a.sends));
  const nodes = [...first, ...events.flatMap(({ nodes }) => nodes), ...last];
  const bubble = Number(bubbleOf(times).toPrecision(6));
  return {
    graph: { ...graph, nodes },
    pipeline: { schedule: name, microBatches: micros.size, bubble },
  };
}

function isLeaf({ primitive }: Node): boolean {
  return primitive === "input" || primitive === "param" ||
    primitive === "state";
}

/** The backward nodes that another stage waits for. Others compute only gradients of weights. */
function neededUpstream(graph: Graph): Set<Node> {
  const users = usersOf(graph);
  const needed = new Set<Node>();
  for (const node of graph.nodes.toReversed()) {
    if (node.phase !== "backward" || node.micro === undefined) continue;
    const sent = node.primitive === "send" ||
      users.get(node)?.some((user) => needed.has(user));
    if (sent) needed.add(node);
  }
  return needed;
}

/** Multiply-adds in the time in which an element is read or written: 4 bytes, 40 multiply-adds per byte. */
const ELEMENT = 160;

/**
 * Relative time of a node: the longer of its arithmetic and its memory traffic. A stage does not wait for its sends.
 */
function secondsOf({ axes }: Graph, node: Node): number {
  const size = (names: readonly string[]) =>
    names.reduce((n, name) => n * (axes[name]?.size ?? 1), 1);
  const { primitive } = node;
  if (primitive === "send") return 0;
  const all = [node, ...node.inputs];
  // Other ops, such as a gather, read as much as they write.
  const traffic = ELEMENT *
    (primitive === "map" || primitive === "reduce"
      ? sum(all.map(({ axes }) => size(axes)))
      : 2 * size(node.axes));
  return primitive === "dot" || primitive === "reduceSum" ||
      primitive === "attention" || primitive === "attentionGrad"
    ? Math.max(size([...new Set(all.flatMap(({ axes }) => axes))]), traffic)
    : traffic;
}
