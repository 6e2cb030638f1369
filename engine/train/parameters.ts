/** Parameters and optimizer state as written by each rank, in pieces that are read one by one. */

import {
  isSliced,
  sourceName,
  sourceNames,
  stackedOn,
} from "../../spec/axis_parts.ts";
import {
  isTrained,
  MASTER,
  type Optimizer,
  OPTIMIZER_STATES,
  type TrainedParameters,
} from "../../compiler/mod.ts";
import {
  fileShape,
  type FileTensor,
  heldIndices,
  type HostTensor,
  narrow,
  type Session,
} from "../../runtime/mod.ts";
import { isHalf } from "../../spec/dtype.ts";
import type { Plan, PlanWeight } from "../../spec/plan/plan.ts";
import { type Block, blocksOf, sliceBlock, writersOf } from "./parts.ts";

/** Tensors of a file that are read together. */
export interface Piece {
  readonly tensors: readonly WrittenTensor[];
  read(): Promise<readonly FileTensor[]>;
}

/** A tensor of a file. */
export interface WrittenTensor extends Pick<FileTensor, "dtype" | "shape"> {
  /** Its name in the file. */
  readonly name: string;
  /** The state and block, for a block of a state. Parameters are complete. */
  readonly of?: { readonly state: string; readonly start: readonly number[] };
}

/** Source of pieces. */
export interface Reading {
  /** The trained parameters, which are written. Default: all. */
  readonly trained?: TrainedParameters | undefined;
  readonly plan: Plan;
  readonly session: Session;
  /** The ranks in this process. */
  readonly ranks: readonly number[];
}

/** The parameters written by a rank, with the tensors of a checkpoint. */
export function parameterPieces(
  { plan, session, ranks, trained }: Reading,
  rank: number,
): Piece[] {
  return plan.weights.flatMap((weight, turn): Piece[] => {
    const { buffer, stack, stored: dtype } = weight;
    const shape = fileShape(weight);
    if (!isTrained(weight.source, trained)) return [];
    const read = async (tensor: Promise<HostTensor | undefined>) => {
      const found = await tensor;
      return found ? asInFiles(plan, weight, found) : [];
    };
    if (isSliced(plan, weight)) {
      // No rank has all of this tensor. It is gathered on rank 0, and processes of other ranks must join.
      if (rank !== 0 && ranks.length > 1) return [];
      return [{
        tensors: rank === 0
          ? sourceNames(plan, weight).map((name) => ({ name, dtype, shape }))
          : [],
        read: () =>
          read(session.read([buffer]).then((tensors) => tensors[buffer])),
      }];
    }
    if (!writersOf(plan, buffer, turn).includes(rank)) return [];
    const names = stack === undefined
      ? sourceNames(plan, weight)
      : stackedOn(plan, weight, rank)
        .map((index) => sourceName(plan, weight, index));
    return [{
      tensors: names.map((name) => ({ name, dtype, shape })),
      read: () => read(session.readPart(buffer, rank)),
    }];
  });
}

/** The optimizer state written by a rank. */
export function statePieces(
  { plan, session }: Reading,
  optimizer: Optimizer,
  rank: number,
): Piece[] {
  return optimizerStates(plan, optimizer).flatMap((state, turn): Piece[] => {
    if (!writersOf(plan, state, turn).includes(rank)) return [];
    const shape = shapeOf(plan, state);
    const blocks = blocksOf(shape, heldIndices(plan, { name: state, rank }));
    return [{
      tensors: blocks.map((block) => ({
        name: nameOf(state, shape, block),
        dtype: "f32",
        shape: block.map(({ length }) => length),
        of: { state, start: block.map(({ first }) => first) },
      })),
      read: async () => {
        const part = await session.readPart(state, rank);
        return blocks.map((block) => sliceBlock(part, block));
      },
    }];
  });
}

/** The states of an optimizer in a plan. */
export function optimizerStates(plan: Plan, { kind }: Optimizer): string[] {
  return Object.values(plan.buffers).flatMap((buffer) => {
    const named = [...OPTIMIZER_STATES[kind], MASTER[kind]].some((what) =>
      buffer.name.startsWith(`${what}.`)
    );
    return buffer.kind === "state" && named ? [buffer.name] : [];
  });
}

/** The global lengths of a state's axes. */
export function shapeOf(plan: Plan, state: string): number[] {
  return plan.buffers[state]!.axes.map(({ axis }) => plan.axes[axis]!.size);
}

/** `adamw.mean.NAME` for a complete state, `adamw.mean.NAME[0:4,0:32]` for a block with its indices. */
function nameOf(state: string, shape: readonly number[], block: Block): string {
  if (block.every(({ length }, axis) => length === shape[axis])) return state;
  const ranges = block.map(({ first, length }) => `${first}:${first + length}`);
  return `${state}[${ranges.join()}]`;
}

/** Converts a buffer to the axes and dtype of the file: one tensor, or one per index of a stacked axis. */
export function asInFiles(
  plan: Plan,
  weight: PlanWeight,
  tensor: HostTensor,
): FileTensor[] {
  const { buffer, axes, stack, stored: dtype } = weight;
  const held = plan.buffers[buffer]!.axes.map(({ axis }) => axis);
  const wanted = stack === undefined ? axes : [stack, ...axes];
  const order = wanted.map((axis) => held.indexOf(axis));
  const values = reordered(tensor, order);
  const data = isHalf(dtype) ? narrow(dtype, values) : values;
  const count = stack === undefined ? 1 : tensor.shape[order[0]!]!;
  const size = data.length / count;
  return Array.from({ length: count }, (_, i) => ({
    dtype,
    shape: fileShape(weight),
    data: data.subarray(i * size, (i + 1) * size),
  }));
}

/** Transposes the elements of a tensor. */
function reordered(
  { shape, data }: HostTensor,
  order: readonly number[],
): Float32Array {
  const strides = shape.map((_, i) =>
    shape.slice(i + 1).reduce((n, size) => n * size, 1)
  );
  const result = new Float32Array(data.length);
  let to = 0;
  const visit = (depth: number, from: number): void => {
    const axis = order[depth];
    if (axis === undefined) {
      result[to++] = data[from]!;
      return;
    }
    for (let i = 0; i < shape[axis]!; i++) {
      visit(depth + 1, from + i * strides[axis]!);
    }
  };
  visit(0, 0);
  return result;
}
