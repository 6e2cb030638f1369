/** Ways to divide a plan further, with the same bits: less memory, and more messages. */

import { meshFlag, type MeshSizes } from "../../../spec/mesh.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { RankBytes } from "../../../spec/plan_summary.ts";
import type { PlanOptions } from "../../open.ts";

/** Options that divide more than those of a plan. */
export interface DividedOptions {
  readonly flag: string;
  readonly options: Pick<PlanOptions, "mesh" | "receiveRows">;
  /** The parts of a rank's memory that they reduce. */
  readonly of: readonly (keyof RankBytes)[];
}

/**
 * Receive buffers by need, context parallelism and pipeline stages, if a plan lacks them, on at most `available` ranks.
 */
export function dividedOptions(
  plan: Plan,
  available: number,
  { chunks = 1, deduplicate, check }: Pick<
    PlanOptions,
    "chunks" | "deduplicate" | "check"
  >,
): DividedOptions[] {
  const has = (wanted: string) =>
    plan.programs.some(({ steps }) => steps.some(({ op }) => op === wanted));
  const inRounds = has("allToAll") && !has("rounds") && chunks === 1 &&
    !deduplicate && !check;
  return [
    ...inRounds
      ? [
        {
          flag: "--receive-rows 1.25x",
          options: { receiveRows: "1.25x" },
          of: ["scratch", "staging"],
        } as const,
      ]
      : [],
    ...([["cp", "state"], ["pp", "weights"]] as const).flatMap((
      [name, of],
    ) => {
      const mesh = meshWith(plan, name, available);
      return mesh
        ? [{ flag: `--mesh ${meshFlag(mesh)}`, options: { mesh }, of: [of] }]
        : [];
    }),
  ];
}

/** A mesh with another axis of two ranks. If ranks are lacking, `ep` is halved. Undefined: neither is possible. */
function meshWith(
  { mesh, ranks }: Plan,
  added: "cp" | "pp",
  available: number,
): MeshSizes | undefined {
  const sizes = new Map(mesh.map(({ name, size }) => [name, size]));
  if (sizes.has(added)) return undefined;
  const ep = sizes.get("ep") ?? 1;
  if (2 * ranks > available) {
    if (ep % 2 > 0) return undefined;
    sizes.set("ep", ep / 2);
  }
  const tp = sizes.get("tp");
  sizes.delete("tp");
  return Object.fromEntries([
    ...added === "pp" ? [[added, 2] as const] : [],
    ...sizes,
    ...added === "cp" ? [[added, 2] as const] : [],
    ...tp === undefined ? [] : [["tp", tp] as const],
  ]);
}
