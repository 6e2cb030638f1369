/** Broadcasts of floats from memory. */

import type { Local, Statement, Value } from "../vector/ir.ts";

/**
 * Returns the broadcast loads of f32 that later statements of the same list use more than once. Processors multiply by
 * a float in memory; a register serves several multiplications, and GCC loads it faster as a word.
 */
export function sharedBroadcasts(body: readonly Statement[]): Set<Value> {
  const shared = new Set<Value>();
  const loads = new Map<Local, Value>();
  const used = new Set<Local>();
  const visit = (value: Value): void => {
    value.args.forEach(visit);
    const load = value.op === "get" ? loads.get(value.local) : undefined;
    if (value.op !== "get" || !load) return;
    if (used.has(value.local)) shared.add(load);
    used.add(value.local);
  };
  for (const s of body) {
    if (s.op === "store") visit(s.index);
    if (s.op !== "set" && s.op !== "store" && s.op !== "write") continue;
    visit(s.value);
    if (s.op === "set" && s.declares && isBroadcast(s.value)) {
      loads.set(s.local, s.value);
    }
  }
  return shared;
}

function isBroadcast(value: Value): boolean {
  return (value.op === "load" || value.op === "read") &&
    value.type === "vf" && value.form === "splat";
}
