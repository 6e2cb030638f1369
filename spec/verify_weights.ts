/** Rules of weights: every weight buffer is filled once, from tensors of the right shape, with the rank's own indices. */

import { pickedOn } from "./picked.ts";
import { onRank, type PlanWeight } from "./plan.ts";
import type { Facts, Report } from "./verify_facts.ts";

/** Every weight buffer has one source, and axes, shape and dtype of the source are those of the buffer. */
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
  const { pick, axes, shape } = weight;
  if (buffer.kind !== "weight") {
    faults.push(`the buffer is of kind '${buffer.kind}'`);
  }
  if (buffer.dtype !== weight.stored) {
    faults.push(`it is ${weight.stored} and the buffer is ${buffer.dtype}`);
  }
  if (axes.length !== shape.length) {
    faults.push(`it has ${axes.length} axes and ${shape.length} lengths`);
  }
  const all = pick?.stacked ? [pick.axis, ...axes] : [...axes];
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
  if (pick && !pick.stacked && !axes.includes(pick.axis)) {
    faults.push(`it is cut along '${pick.axis}', which it does not have`);
    return faults;
  }
  if (pick?.stacked && !weight.source.includes(`{${pick.axis}}`)) {
    faults.push(
      `it is one tensor per '${pick.axis}', which its name does not say`,
    );
  }
  for (const { axis, size } of buffer.axes) {
    const known = Object.hasOwn(facts.plan.axes, axis)
      ? facts.plan.axes[axis]
      : undefined;
    if (!known) continue;
    const length = shape[axes.indexOf(axis)];
    if (length !== undefined && length !== known.size) {
      faults.push(`its axis '${axis}' has ${length} and not ${known.size}`);
    }
    for (const rank of facts.everyRank) {
      const indices = pick?.axis === axis
        ? pickedOn(facts.plan, pick, rank).length
        : known.size;
      if (onRank(size, rank) !== indices) {
        faults.push(
          `rank ${rank} takes ${indices} of axis '${axis}' and its buffer holds ${
            onRank(size, rank)
          }`,
        );
        break;
      }
    }
  }
  if (pick) faults.push(...pickFaults(facts, pick));
  return faults;
}

/** What is picked as placed has a placement. */
function pickFaults(
  { plan }: Facts,
  pick: NonNullable<PlanWeight["pick"]>,
): string[] {
  const axis = Object.hasOwn(plan.axes, pick.axis)
    ? plan.axes[pick.axis]
    : undefined;
  if (!axis) return [`the plan has no axis '${pick.axis}'`];
  return pick.placed && !axis.table
    ? [`it is picked as '${pick.axis}' is placed, which has no table`]
    : [];
}
