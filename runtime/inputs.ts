/** Inputs of a run: checks, and distribution to the ranks. */

import { modelAxis } from "../spec/axis_parts.ts";
import { DataError } from "../spec/errors.ts";
import { shown } from "../spec/shown.ts";
import { groupOf } from "../spec/mesh.ts";
import {
  onRank,
  type Plan,
  type PlanBuffer,
  type Port,
  type Program,
} from "../spec/plan/plan.ts";
import {
  ARRAYS,
  bytesOf,
  elementCount,
  type HostTensor,
  words,
} from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import {
  forEachRun,
  isSplit,
  localSpan,
  type RunAxes,
  type SplitAxis,
} from "./shard.ts";

/** Inputs by name. */
export type Inputs = { readonly [name: string]: HostTensor };

/** Throws DataError for a name that is not an input of the program. */
export function checkInputNames(
  { name, inputs }: { readonly name: string; readonly inputs: object },
  names: readonly string[],
): void {
  const other = names.find((each) => !Object.hasOwn(inputs, each));
  if (other === undefined) return;
  throw new DataError(
    `Cannot run program '${name}': it has no input '${
      shown(other)
    }'. Its inputs are ${
      Object.keys(inputs).map((each) => `'${each}'`).join(", ")
    }`,
  );
}

/** Throws DataError for a value of a batch that is not a tensor, before anything reads the batch. */
export function checkTensors(inputs: Inputs, cannot: string): void {
  for (const [name, value] of Object.entries<unknown>(inputs)) {
    if (isTensor(value)) continue;
    throw new DataError(
      `${cannot}: the input '${name}' is ${
        typeName(value)
      }, not { dtype, shape, data }. Give it with its dtype and shape`,
    );
  }
}

/** Whether a value has the fields of a tensor, whatever its data are. */
function isTensor(value: unknown): value is HostTensor {
  return typeof value === "object" && value !== null && "data" in value &&
    "shape" in value && Array.isArray(value.shape);
}

/** Checks names, dtypes, shapes and ranges. Returns the length of every axis that the inputs determine. */
export function checkInputs(
  plan: Plan,
  program: Program,
  inputs: Inputs,
): Map<string, number> {
  const cannot = `Cannot run program '${program.name}'`;
  checkInputNames(program, Object.keys(inputs));
  const lengths = new Map<string, { length: number; input: string }>();
  for (const [name, port] of Object.entries(program.inputs)) {
    const tensor = Object.hasOwn(inputs, name) ? inputs[name] : undefined;
    const axes = port.axes.map((axis) => modelAxis(plan, axis));
    // Computed only for errors, because inputs are checked in every step.
    const wanted = () => `${port.dtype} [${axes.join(" ")}]`;
    if (!tensor) {
      throw new DataError(
        `${cannot}: the input '${name}' is missing. Give it as ${wanted()}`,
      );
    }
    if (!isTensor(tensor)) {
      throw new DataError(
        `${cannot}: the input '${name}' is ${
          typeName(tensor)
        }, not { dtype, shape, data }. Give it as ${wanted()}`,
      );
    }
    if (
      tensor.dtype !== port.dtype || tensor.shape.length !== port.axes.length
    ) {
      throw new DataError(
        `${cannot}: the input '${name}' is ${tensor.dtype} [${
          tensor.shape.join(", ")
        }]. Give it as ${wanted()}`,
      );
    }
    const array = ARRAYS[tensor.dtype].name;
    if (Object.prototype.toString.call(tensor.data) !== `[object ${array}]`) {
      throw new DataError(
        `${cannot}: the data of the input '${name}' are ${
          typeName(tensor.data)
        }, and its dtype is ${tensor.dtype}. Give a ${array}`,
      );
    }
    if (tensor.data.length !== elementCount(tensor.shape)) {
      throw new DataError(
        `${cannot}: the input '${name}' has ${tensor.data.length} elements and its shape [${
          tensor.shape.join(", ")
        }] has ${elementCount(tensor.shape)}. Make them equal`,
      );
    }
    for (const [i, axis] of axes.entries()) {
      checkLength(plan, cannot, name, axis, tensor.shape[i]!, lengths);
    }
    checkRange(cannot, name, port.below, tensor);
    checkNumbers(cannot, name, tensor);
  }
  for (const [name, { indexes }] of Object.entries(program.inputs)) {
    if (indexes === undefined) continue;
    const { size, exact, dynamic } = plan.axes[indexes]!;
    const length = lengths.get(modelAxis(plan, indexes))?.length ??
      (exact || !dynamic ? size : 0);
    checkRange(cannot, name, length, inputs[name]!);
  }
  return new Map([...lengths].map(([axis, { length }]) => [axis, length]));
}

/** The type of a value that is not what its caller declares: `a number`, `an Int32Array`. */
function typeName(value: unknown): string {
  const name = typeof value === "object"
    ? Object.prototype.toString.call(value).slice(8, -1)
    : typeof value;
  return `${/^[AEIOU]/i.test(name) ? "an" : "a"} ${name}`;
}

function checkLength(
  plan: Plan,
  cannot: string,
  input: string,
  axis: string,
  length: number,
  lengths: Map<string, { length: number; input: string }>,
): void {
  const { size, dynamic, exact } = plan.axes[axis]!;
  const free = dynamic && !exact;
  if (free ? length > size : length !== size) {
    throw new DataError(
      `${cannot}: axis '${axis}' of the input '${input}' has length ${length}. It must be ${
        free ? "at most " : ""
      }${size}`,
    );
  }
  const known = lengths.get(axis);
  if (known && known.length !== length) {
    throw new DataError(
      `${cannot}: axis '${axis}' has length ${known.length} in the input '${known.input}' and ${length} in '${input}'. Give both the same length`,
    );
  }
  if (!known) lengths.set(axis, { length, input });
}

function checkRange(
  cannot: string,
  name: string,
  below: number | undefined,
  { data }: HostTensor,
): void {
  if (below === undefined) return;
  // A loop instead of findIndex: it runs for every token of every step.
  for (let at = 0; at < data.length; at++) {
    const value = data[at]!;
    if (value >= 0 && value < below) continue;
    throw new DataError(
      `${cannot}: the input '${name}' is ${value} at index ${at}. Its values must be 0 to ${
        below - 1
      }`,
    );
  }
}

/** NaN would appear in unrelated results. Infinities are allowed: masks use them. */
function checkNumbers(
  cannot: string,
  name: string,
  { data, dtype, shape }: HostTensor,
): void {
  if (dtype !== "f32") return;
  for (let at = 0; at < data.length; at++) {
    if (data[at] === data[at]) continue;
    const index = shape.map((_, i) => {
      const inner = elementCount(shape.slice(i + 1));
      return Math.floor(at / inner) % shape[i]!;
    });
    throw new DataError(
      `${cannot}: the input '${name}' is NaN at [${
        index.join(", ")
      }]. Give it numbers`,
    );
  }
}

/** The dynamic lengths on each rank, in the order of `plan.counts`. */
export function countsOf(plan: Plan, axes: RunAxes): number[][] {
  return Array.from(
    { length: plan.ranks },
    (_, rank) =>
      plan.counts.map((axis) =>
        axes.local(axis, rank)?.length ?? axes.length(axis)
      ),
  );
}

/** The sharding of a port's tensor. */
export function splitAxes(
  port: Port,
  buffer: PlanBuffer,
  rank: number,
  axes: RunAxes,
): SplitAxis[] {
  return port.axes.map((axis, i) => {
    const last = i === port.axes.length - 1 && i > 0;
    const { size, dynamic } = buffer.axes[i]!;
    const length = axes.length(axis);
    const local = axes.split(buffer, i) ? axes.local(axis, rank) : undefined;
    // The stride of a dynamic axis is its length in this run.
    const held = dynamic ? local?.length ?? length : onRank(size, rank);
    return { length, local, room: last ? buffer.rowStride ?? held : held };
  });
}

/** Writes a rank's shard of an input. */
export function writeInput(
  input: { readonly name: string; readonly port: Port },
  tensor: HostTensor,
  memory: RankMemory,
  axes: RunAxes,
): void {
  const { name, port } = input;
  const buffer = memory.plan(port.buffer);
  if (port.axes.length === 1) return writeList(input, tensor, memory, axes);
  const split = splitAxes(port, buffer, memory.rank, axes);
  for (const [i, { length, local }] of split.entries()) {
    const room = onRank(buffer.axes[i]!.size, memory.rank);
    const items = local?.length ?? length;
    if (items > room) {
      const axis = port.axes[i];
      throw tooLong(name, memory.rank, { axis, length: items, room });
    }
  }
  const source = words(tensor);
  const replicated = split.every(({ length, local, room }, i) =>
    !local && (i === 0 || length === room)
  );
  if (replicated) {
    if (source.length > 0) {
      memory.write(port.buffer, 0, bytesOf(source));
    }
    return;
  }
  const part = new Uint32Array(localSpan(split));
  forEachRun(split, (global, local, count) => {
    if (count === 1) part[local] = source[global]!;
    else part.set(source.subarray(global, global + count), local);
  });
  if (part.length > 0) {
    memory.write(port.buffer, 0, bytesOf(part));
  }
}

/** An input of one axis whose items are the first elements of rows of an output of the run before. */
export interface FedInput {
  readonly input: string;
  readonly output: string;
  /** The row of each item. */
  readonly rows: readonly number[];
}

/** Copies an input from an output on the device. */
export function feedInput(
  { inputs, outputs }: Program,
  memory: RankMemory,
  { input, output, rows }: FedInput,
): void {
  const [from, to] = [outputs[output]!.buffer, inputs[input]!.buffer];
  const width = elementCount(
    memory.plan(from).axes.slice(1).map(({ size }) =>
      onRank(size, memory.rank)
    ),
  );
  const [source, target] = [memory.buffer(from), memory.buffer(to)];
  const inOrder = width === 1 && rows.every((row, i) => row === i);
  if (inOrder) return memory.device.copy(source, 0, target, 0, 4 * rows.length);
  for (const [i, row] of rows.entries()) {
    memory.device.copy(source, 4 * row * width, target, 4 * i, 4);
  }
}

/** Writes a rank's items of an input of one axis, such as one number per token. */
function writeList(
  { name, port }: { readonly name: string; readonly port: Port },
  tensor: HostTensor,
  memory: RankMemory,
  axes: RunAxes,
): void {
  const buffer = memory.plan(port.buffer);
  const axis = port.axes[0]!;
  const items = axes.split(buffer, 0)
    ? axes.local(axis, memory.rank)
    : undefined;
  const source = words(tensor);
  const length = items?.length ?? source.length;
  const room = onRank(buffer.axes[0]!.size, memory.rank);
  if (length > room) throw tooLong(name, memory.rank, { axis, length, room });
  if (length === 0) return;
  const numbers = port.indexes === undefined
    ? undefined
    : axes.numbers(port.indexes);
  let part = source;
  if (items || numbers) {
    part = new Uint32Array(length);
    for (let i = 0; i < length; i++) {
      const value = source[items ? items[i]! : i]!;
      part[i] = numbers ? numbers[value]! : value;
    }
  }
  memory.write(port.buffer, 0, bytesOf(part));
}

function tooLong(
  name: string,
  rank: number,
  { axis, length, room }: {
    readonly axis: string | undefined;
    readonly length: number;
    readonly room: number;
  },
): DataError {
  return new DataError(
    `Cannot give input '${name}' to rank ${rank}: it gets ${length} items of axis '${axis}', and the maximum is ${room}. Give shorter inputs or compile for longer ones`,
  );
}

/** The ranks that are the first of those with the same shard, by port. */
const speakers = new WeakMap<Port, ReadonlySet<number>>();

/** Whether a rank is the first of those with the same shard of a port's tensor. */
export function speaksFor(plan: Plan, rank: number, port: Port): boolean {
  let ranks = speakers.get(port);
  if (!ranks) speakers.set(port, ranks = speakersOf(plan, port));
  return ranks.has(rank);
}

function speakersOf(plan: Plan, port: Port): ReadonlySet<number> {
  const buffer = plan.buffers[port.buffer]!;
  const over = new Set(
    port.axes.flatMap((axis, i) =>
      isSplit(plan, buffer, i) ? plan.axes[axis]?.over ?? [] : []
    ),
  );
  const others = plan.mesh.map(({ name }) => name)
    .filter((name) => !over.has(name));
  const ranks = Array.from({ length: plan.ranks }, (_, rank) => rank);
  return new Set(ranks.filter((rank) =>
    groupOf(plan.mesh, rank, others)
      .find((other) => onRank(buffer.bytes, other) > 0) === rank
  ));
}
