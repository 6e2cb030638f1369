/** Assemble: builds the document with its totals. Postcondition: the plan is complete. */

import { predictStaging } from "../../spec/plan/bytes.ts";
import { EXACT } from "../../spec/numerics.ts";
import { sumPerRank } from "../../spec/per_rank.ts";
import type { Plan, PlanAxis, Port, Step } from "../../spec/plan/plan.ts";
import type { Allocated } from "./allocate.ts";
import type { LocalAxis } from "../sharding/local_axes.ts";
import type { Placed } from "../sharding/placed.ts";
import { requiredLimits } from "./limits.ts";
import { checkAxis } from "./lower/routing/check.ts";
import { type Lowering, MAIN } from "./lower/context.ts";
import { declareWritable } from "./writable.ts";

/** The program: its steps in order, its inputs and outputs. */
export interface Lowered {
  readonly inputs: { readonly [name: string]: Port };
  readonly outputs: { readonly [name: string]: Port };
  readonly steps: readonly Step[];
}

/** Local axes of the plan, without renamed duplicates. */
function planAxes({ axes, aliases }: Placed): Plan["axes"] {
  return Object.fromEntries(
    Object.entries(axes).filter(([name]) => !aliases[name])
      .map(([name, axis]) => [name, planAxisOf(axis)]),
  );
}

function planAxisOf(
  { of, over, total, dynamic, exact, experts, table, assignment }: LocalAxis,
): PlanAxis {
  return {
    size: total,
    ...dynamic ? { dynamic: true } : {},
    ...exact ? { exact } : {},
    ...over.length > 0 ? { of, over } : {},
    ...experts ? { experts } : {},
    ...table ? { table } : {},
    ...assignment ? { assignment } : {},
  };
}

/** The plan of a lowering with allocated buffers. */
export function assemble(
  lowering: Lowering,
  { steps, ...ports }: Lowered,
  { allocations, buffers }: Allocated,
): Plan {
  const { placed, draft: { weights }, options } = lowering;
  const { numerics, operands, wire } = options;
  const kernels = declareWritable(lowering.draft.kernels, steps, buffers);
  const printed = [...kernels].map(([name, tree]) => [name, { tree }] as const);
  const draft: Plan = {
    version: 2,
    numerics: {
      ...EXACT,
      class: numerics,
      ...wire === "f32" ? {} : { wire },
      ...operands === "f32" ? {} : { operands },
    },
    requiredLimits: {},
    requiredFeatures: [],
    mesh: placed.mesh,
    ranks: placed.ranks,
    axes: {
      ...planAxes(placed),
      ...checkAxis(lowering),
      ...Object.fromEntries(lowering.draft.blockAxes),
    },
    counts: placed.counts,
    allocations,
    buffers,
    kernels: Object.fromEntries(printed),
    weights,
    programs: [{ name: MAIN, ...ports, steps }],
    peakBytes: sumPerRank(allocations.map(({ bytes }) => bytes)),
    staging: { local: 0, host: 0 },
  };
  return {
    ...draft,
    staging: predictStaging(draft),
    requiredLimits: requiredLimits(draft),
  };
}
