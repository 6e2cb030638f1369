/** Buffers whose contents the plan determines: constants and rotary tables. */

import { wordsOn } from "../spec/per_rank.ts";
import { onRank, type Plan, type PlanBuffer } from "../spec/plan/plan.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";

/**
 * Writes the constants and tables of a rank. States are zero, like all memory of a device: unused parts need not be
 * allocated.
 */
export function writeTables(plan: Plan, memory: RankMemory): void {
  for (const [name, buffer] of Object.entries(plan.buffers)) {
    if (!memory.has(name)) continue;
    if (buffer.kind === "const") {
      const { data } = buffer;
      if (!data) continue;
      const words = wordsOn(data, { mesh: plan.mesh, rank: memory.rank });
      write(memory, name, new Uint32Array(words));
    } else if (buffer.kind === "rope") {
      write(memory, name, ropeTable(buffer, memory.rank));
    }
  }
}

/** Row p contains the cosines of `p * inverseFrequencies`, then the sines, scaled. */
function ropeTable(buffer: PlanBuffer, rank: number): Float32Array {
  const { inverseFrequencies, scale } = buffer.rope!;
  const half = inverseFrequencies.length;
  const stride = buffer.rowStride ?? 2 * half;
  const positions = onRank(buffer.axes[0]!.size, rank);
  const table = new Float32Array(positions * stride);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      // Frequencies and angles are f32, as in the original model implementations.
      const angle = Math.fround(p * Math.fround(inverseFrequencies[i]!));
      table[p * stride + i] = Math.cos(angle) * scale;
      table[p * stride + half + i] = Math.sin(angle) * scale;
    }
  }
  return table;
}

function write(
  memory: RankMemory,
  name: string,
  data: Uint32Array | Float32Array,
): void {
  memory.write(name, 0, bytesOf(data));
}
