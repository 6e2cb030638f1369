/** States the rates and dtypes that predicted times assume. */

import { type Machine, placeRanks } from "../../../spec/machine.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { ratesText } from "../../../spec/time_text.ts";
import { WIRES } from "../../../spec/wire.ts";

/** `f32 arithmetic at …, and memory at 1.01 TB/s, caches in f32, exchanges in f32`. */
export function assumptionText(plan: Plan, machine: Machine): string {
  // States of a training are the optimizer's.
  const trains = plan.programs.some(({ steps }) =>
    steps.some(({ phase }) => phase === "update")
  );
  const caches = trains
    ? []
    : Object.values(plan.buffers).filter(({ kind }) => kind === "state")
      .map(({ dtype }) => dtype);
  const stored = caches.length === 0
    ? ""
    : `, caches in ${[...new Set(caches)].join(" and ")}`;
  const { dispatch = "f32", combine = "f32" } =
    WIRES[plan.numerics.wire ?? "f32"];
  const sends = plan.ranks === 1
    ? ""
    : dispatch === combine
    ? `, exchanges in ${dispatch}`
    : `, dispatch in ${dispatch}, combine in ${combine}`;
  return `${
    ratesText(
      machine.devices[placeRanks(machine)[0]!.kind]!,
      plan.numerics.operands,
    )
  }${stored}${sends}`;
}
