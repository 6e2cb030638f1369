/** Ops with the last tokens of a sequence: convolution, recurrence, and shifts. */

import type { Node, NodeOf } from "../../graph/graph.ts";
import { conv1d, conv1dGrid } from "../../kernels/conv1d.ts";
import {
  linearRecurrence,
  recurrenceGrid,
  type RecurrenceOperand,
  type RecurrenceOptions,
} from "../../kernels/linear_recurrence.ts";
import { kernelFrom } from "../../kernels/kernel.ts";
import { shift } from "../../kernels/shift.ts";
import { STATES } from "../../../spec/pages.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import {
  addLaunch,
  amendBuffer,
  type Lowering,
  MAIN,
  sizeOf,
} from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

function lengthsOf(lowering: Lowering, axes: readonly string[]): number[] {
  return axes.map((axis) => lowering.placed.axes[axis]!.size);
}

/** Buffers of operands by binding. The first operand, `state`, is updated in place. */
function operandBuffers(
  lowering: Lowering,
  { inputs: [state, ...rest] }: Node,
  names: readonly string[],
): { readonly [binding: string]: string } {
  const { buffer } = lowering.values.storages.get(state!)!;
  amendBuffer(lowering, buffer, { written: { [MAIN]: "before reads" } });
  return {
    state: buffer,
    ...Object.fromEntries(
      rest.map((input, i) => [
        names[i]!,
        rowMajorBuffer(lowering, input, input.axes),
      ]),
    ),
  };
}

/** Sequences of a rank, and whether `table`, the last operand, has the rows of their states. */
function sequencesOf(
  lowering: Lowering,
  [state]: readonly Node[],
  table: Node | undefined,
): { readonly sequences: number; readonly rows?: true } {
  const [sequences] = lengthsOf(lowering, (table ?? state!).axes) as [number];
  return table ? { sequences, rows: true } : { sequences };
}

/** One launch. */
export function lowerConv1d(lowering: Lowering, node: NodeOf<"conv1d">): void {
  const [state, x] = node.inputs as [Node, Node];
  const [slots, channels] = lengthsOf(lowering, state.axes.slice(1)) as [
    number,
    number,
  ];
  const options = {
    name: `conv1d_${channels}x${slots + 1}`,
    channels,
    width: slots + 1,
    ...sequencesOf(lowering, node.inputs, node.inputs[5]),
    tokens: tokenCount(lowering, [x.axes[0]!]),
  };
  const names = ["x", "weight", "sequence", "position", STATES.input];
  addLaunch(lowering, node, kernelFrom(conv1d, options), {
    bindings: {
      ...operandBuffers(lowering, node, names),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: conv1dGrid(options),
  });
}

/** The kernel's name for the first operand of each buffer. */
function namesOf(
  buffers: { readonly [O in RecurrenceOperand]: string },
): RecurrenceOptions["names"] {
  const first = (operand: RecurrenceOperand) =>
    OPERANDS.find((other) => buffers[other] === buffers[operand])!;
  return {
    query: first("query"),
    keys: first("keys"),
    values: first("values"),
    decay: first("decay"),
    rate: first("rate"),
  };
}

const OPERANDS = ["query", "keys", "values", "decay", "rate"] as const;

/** One launch. */
export function lowerLinearRecurrence(
  lowering: Lowering,
  node: NodeOf<"linearRecurrence">,
): void {
  const { rule, token, kvHead } = node.params;
  const [state, , , , decay] = node.inputs as [Node, Node, Node, Node, Node];
  const [heads, dim, valueDim] = lengthsOf(lowering, state.axes.slice(1)) as [
    number,
    number,
    number,
  ];
  const [kvHeads] = lengthsOf(lowering, [kvHead]) as [number];
  const of = { query: kvHeads, key: kvHeads, value: heads };
  const buffers = operandBuffers(lowering, node, [
    ...OPERANDS,
    "sequence",
    "position",
    STATES.input,
  ]) as { readonly [O in RecurrenceOperand]: string };
  const options: RecurrenceOptions = {
    name: `linearRecurrence_${rule}_${heads}x${dim}x${valueDim}`,
    rule,
    stateful: true,
    decayOf: decay.axes.length === 3 ? "key" : "head",
    heads,
    of,
    names: namesOf(buffers),
    dim,
    valueDim,
    columns: lowering.options.tuning.recurrence,
    ...sequencesOf(lowering, node.inputs, node.inputs[8]),
    tokens: tokenCount(lowering, [token]),
  };
  addLaunch(lowering, node, kernelFrom(linearRecurrence, options), {
    bindings: {
      ...buffers,
      y: storageFor(lowering, node).buffer,
    },
    workgroups: recurrenceGrid(options),
  });
}

/** One launch. */
export function lowerLinearScan(
  lowering: Lowering,
  node: NodeOf<"linearScan">,
): void {
  const { rule, token, head, dim, valueDim, reverse } = node.params;
  const [query, key, value, decay, rate, sequence, position] = node.inputs as [
    ...[Node, Node, Node, Node, Node, Node, Node],
  ];
  const [heads, width, valueWidth] = lengthsOf(lowering, [
    head,
    dim,
    valueDim,
  ]) as [number, number, number];
  const headsOf = ({ axes }: Node) => lengthsOf(lowering, [axes[1]!])[0]!;
  const buffer = (x: Node) => rowMajorBuffer(lowering, x, x.axes);
  const buffers = {
    query: buffer(query),
    keys: buffer(key),
    values: buffer(value),
    decay: buffer(decay),
    rate: buffer(rate),
  };
  const options: RecurrenceOptions = {
    names: namesOf(buffers),
    name: `linearScan_${rule}_${heads}x${width}x${valueWidth}`,
    rule,
    stateful: false,
    ...reverse ? { reverse } : {},
    decayOf: decay.axes.length === 2
      ? "head"
      : decay.axes[2] === dim
      ? "key"
      : "value",
    heads,
    of: { query: headsOf(query), key: headsOf(key), value: headsOf(value) },
    dim: width,
    valueDim: valueWidth,
    columns: lowering.options.tuning.recurrence,
    sequences: 1,
    tokens: tokenCount(lowering, [token]),
  };
  addLaunch(lowering, node, kernelFrom(linearRecurrence, options), {
    bindings: {
      ...buffers,
      sequence: buffer(sequence),
      position: buffer(position),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: recurrenceGrid(options),
  });
}

/** The next state is the buffer that its update has written. */
export function lowerNextState(
  lowering: Lowering,
  node: NodeOf<"nextState">,
): void {
  const { storages } = lowering.values;
  storages.set(node, storages.get(node.inputs[0]!.inputs[0]!)!);
}

/** One launch. */
export function lowerShift(lowering: Lowering, node: NodeOf<"shift">): void {
  const [x, sequence, position] = node.inputs as [Node, Node, Node];
  const [token, ...rest] = x.axes as [string, ...string[]];
  const { by } = node.params;
  const width = lengthsOf(lowering, rest).reduce((n, size) => n * size, 1);
  const kernel = shift({
    name: `shift_${by}_${width}`,
    width,
    by,
    tokens: tokenCount(lowering, [token]),
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      x: rowMajorBuffer(lowering, x, x.axes),
      sequence: rowMajorBuffer(lowering, sequence, sequence.axes),
      position: rowMajorBuffer(lowering, position, position.axes),
      y: storageFor(lowering, node).buffer,
    },
    workgroups: elementwiseGrid(sizeOf(lowering, node.axes)),
  });
}
