/** Parameters and what an optimizer remembers of them, between a session and files. */

import { type Optimizer, REMEMBERED } from "../../compiler/mod.ts";
import type { HostTensor, Session } from "../../runtime/mod.ts";
import type { Plan, PlanWeight } from "../../spec/plan.ts";
import type { Tensors } from "../run.ts";

/** The source tensors of a weight, one for each index of a stacked axis. */
export function sourcesOf(
  plan: Plan,
  { source, pick }: PlanWeight,
): string[] {
  if (!pick?.stacked) return [source];
  return Array.from(
    { length: plan.axes[pick.axis]!.size },
    (_, i) => source.replaceAll(`{${pick.axis}}`, String(i)),
  );
}

/** The parameters as a checkpoint has them, tensor by tensor; none in a process that is not of rank 0. */
export async function readParameters(
  plan: Plan,
  session: Session,
): Promise<Tensors> {
  const read: { [name: string]: HostTensor } = {};
  for (const weight of plan.weights) {
    const tensor = (await session.read([weight.buffer]))[weight.buffer];
    if (tensor) Object.assign(read, asInFiles(plan, weight, tensor));
  }
  return read;
}

/** From the axes of a buffer to those of the file. */
function asInFiles(
  plan: Plan,
  weight: PlanWeight,
  tensor: HostTensor,
): Tensors {
  const held = plan.buffers[weight.buffer]!.axes.map(({ axis }) => axis);
  const wanted = weight.pick?.stacked
    ? [weight.pick.axis, ...weight.axes]
    : weight.axes;
  const data = reordered(tensor, wanted.map((axis) => held.indexOf(axis)));
  const names = sourcesOf(plan, weight);
  const size = data.length / names.length;
  return Object.fromEntries(
    names.map((name, i) => [name, {
      dtype: "f32",
      shape: weight.shape,
      data: data.subarray(i * size, (i + 1) * size),
    }]),
  );
}

/** The elements of a tensor with its axes in another order. */
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

/** The states of an optimizer in a plan. */
export function rememberedStates(plan: Plan, { kind }: Optimizer): string[] {
  return Object.values(plan.buffers).flatMap((buffer) => {
    const own = REMEMBERED[kind].some((what) =>
      buffer.name.startsWith(`${what}.`)
    );
    return buffer.kind === "state" && own ? [buffer.name] : [];
  });
}
