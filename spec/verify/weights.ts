/** Rules of weights: every weight buffer is filled once, from tensors of the right shape. */

import { shortAxis } from "../axis_name.ts";
import { modelAxis } from "../axis_parts.ts";
import type { PlanWeight } from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";

/** Checks that every weight buffer has one source with its axes, shape and dtype. */
export function checkWeights(facts: Facts, report: Report): void {
  const filled = new Map<string, number>();
  for (const weight of facts.plan.weights) {
    filled.set(weight.buffer, (filled.get(weight.buffer) ?? 0) + 1);
    for (const because of weightFaults(facts, weight)) {
      report(
        `load weight '${weight.source}' into buffer '${weight.buffer}'`,
        because,
      );
    }
  }
  for (const [name, { kind }] of facts.buffers) {
    const times = filled.get(name) ?? 0;
    if (kind === "weight" && times !== 1) {
      report(`load buffer '${name}'`, `${times} weights fill it`);
    }
  }
}

function weightFaults(facts: Facts, weight: PlanWeight): string[] {
  const faults: string[] = [];
  const buffer = facts.buffers.get(weight.buffer)!;
  const { stack, axes, shape } = weight;
  if (buffer.kind !== "weight") {
    faults.push(`the buffer is of kind '${buffer.kind}'`);
  }
  if (buffer.dtype !== weight.stored) {
    faults.push(`it is ${weight.stored} and the buffer is ${buffer.dtype}`);
  }
  if (axes.length !== shape.length) {
    faults.push(`it has ${axes.length} axes and ${shape.length} lengths`);
  }
  const all = stack === undefined ? [...axes] : [stack, ...axes];
  const held = buffer.axes.map((axis) => axis.axis);
  if (
    all.length !== held.length || new Set(all).size !== all.length ||
    !all.every((axis) => held.includes(axis))
  ) {
    faults.push(
      `it has axes '${all.join(" ")}' and the buffer has '${held.join(" ")}'`,
    );
    return faults;
  }
  if (stack !== undefined) {
    const name = shortAxis(modelAxis(facts.plan, stack));
    if (!weight.source.includes(`{${name}}`)) {
      faults.push(
        `it is one tensor per '${name}', which its name does not say`,
      );
    }
  }
  for (const { axis } of buffer.axes) {
    const known = Object.hasOwn(facts.plan.axes, axis)
      ? facts.plan.axes[axis]
      : undefined;
    const length = shape[axes.indexOf(axis)];
    if (known && length !== undefined && length !== known.size) {
      faults.push(`its axis '${axis}' has ${length} and not ${known.size}`);
    }
  }
  return faults;
}
