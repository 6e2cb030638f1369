/** Tables of how placed axes lie on the ranks in one run, for kernels that bring them together and apart again. */

import { groupOf } from "../spec/mesh.ts";
import type { Plan, PlanBuffer } from "../spec/plan.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import type { Dealt, RunAxes } from "./shard.ts";

/** A buffer that the host fills with how an axis is dealt. */
export type DealtBuffer = Required<Pick<PlanBuffer, "name" | "dealt">>;

/** The `dealt` buffers of a plan. */
export function dealtBuffers(plan: Plan): DealtBuffer[] {
  return Object.values(plan.buffers).flatMap(({ name, dealt }) =>
    dealt ? [{ name, dealt }] : []
  );
}

/** Write `dealt` buffers of all ranks. */
export function writeDealt(
  plan: Plan,
  buffers: readonly DealtBuffer[],
  ranks: readonly RankMemory[],
  axes: RunAxes,
): void {
  for (const { name, dealt } of buffers) {
    let words: Uint32Array | undefined;
    for (const memory of ranks) {
      // Only rows are the same on every rank.
      if (!words || dealt.holds !== "rows") {
        words = tableOf(plan, dealt, memory.rank, axes);
      }
      if (words.length === 0) continue;
      memory.device.write(memory.buffer(name), 0, bytesOf(words));
    }
  }
}

/** The contents of a `dealt` buffer of a rank. */
export function tableOf(
  { mesh }: Pick<Plan, "mesh">,
  { axis, holds, of, over }: NonNullable<PlanBuffer["dealt"]>,
  rank: number,
  axes: RunAxes,
): Uint32Array {
  switch (holds) {
    case "items": {
      const items = axes.local(axis, rank) ?? [];
      // Of a replicated axis, indices are global.
      const numbers = axes.numbers(of!);
      return Uint32Array.from(items, (item) => numbers?.[item] ?? item);
    }
    case "counts":
      return Uint32Array.from(
        groupOf(mesh, rank, over!),
        (other) => axes.local(axis, other)?.length ?? axes.length(axis),
      );
    case "rows":
      return rowsOf(axes.dealt(axis) ?? [], axes.length(axis));
  }
}

/** For each global index, its row where the parts lie one after another. */
function rowsOf(parts: Dealt, length: number): Uint32Array {
  const rows = new Uint32Array(length);
  let row = 0;
  for (const part of parts) for (const index of part) rows[index] = row++;
  return rows;
}
