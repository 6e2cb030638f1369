/** What of a plan does not fit, and what would mend it. */

import { modelAxis } from "./axis_parts.ts";
import { sizeText } from "./size_text.ts";
import { STORED_BYTES } from "./dtype.ts";
import { GUARANTEED_LIMITS, type LimitName, MAX_ELEMENTS } from "./limits.ts";
import { maxOverRanks, type Plan, type PlanBuffer } from "./plan/plan.ts";

/** One thing that does not fit, and the smallest change found that mends it. */
export interface Problem {
  readonly what: string;
  readonly mend: string;
}

/** Options of `limitProblems`. */
export interface LimitProblemsOptions {
  /** How many buffers one with this name stands for. Default: itself. */
  readonly times?: (name: string) => number;
  /** What people set to make an axis shorter: `--max-tokens` for `token`. Default: the axis of the model. */
  readonly bounds?: { readonly [axis: string]: string };
}

/** Every limit that a plan is over, with the largest buffer that is. What `limits` leaves out is what WebGPU guarantees. */
export function limitProblems(
  plan: Plan,
  limits: { readonly [limit: string]: number },
  options: LimitProblemsOptions = {},
): Problem[] {
  return (Object.keys(GUARANTEED_LIMITS) as LimitName[]).flatMap((name) => {
    const allowed = limits[name] ?? GUARANTEED_LIMITS[name];
    if (name === "maxBufferSize" || name === "maxStorageBufferBindingSize") {
      return bufferProblems(plan, { ...options, name, allowed });
    }
    const need = plan.requiredLimits[name] ?? 0;
    if (need <= allowed) return [];
    return [{
      what: `a kernel needs ${name} = ${need}, and ${allowed} is allowed`,
      mend: `allow ${name}=${need}`,
    }];
  });
}

/** A limit that buffers are over. */
interface OverLimit extends LimitProblemsOptions {
  readonly name: string;
  readonly allowed: number;
}

/** One problem for each kind of buffer that a limit is too small for: what mends its largest one mends the others. */
function bufferProblems(plan: Plan, options: OverLimit): Problem[] {
  const { name, allowed, times = () => 1 } = options;
  const kinds = new Map<string, { buffer: PlanBuffer; bytes: number }[]>();
  const room = (buffer: PlanBuffer) =>
    name === "maxBufferSize" ? allowed : Math.min(allowed, indexed(buffer));
  for (const buffer of Object.values(plan.buffers)) {
    const bytes = maxOverRanks(buffer.bytes);
    if (bytes <= room(buffer)) continue;
    const kind = kindOf(plan, buffer);
    kinds.set(kind, [...kinds.get(kind) ?? [], { buffer, bytes }]);
  }
  const need = plan.requiredLimits[name] ?? 0;
  if (kinds.size === 0 && need > allowed) {
    return [{
      what: `an allocation needs ${name} = ${need}, and ${allowed} is allowed`,
      mend: `allow ${name}=${need}`,
    }];
  }
  return [...kinds.values()].map((over) => {
    const largest = over.reduce((a, b) => b.bytes > a.bytes ? b : a);
    const all = over.reduce((n, { buffer }) => n + times(buffer.name), 0);
    const others = all > 1 ? ` (and ${all - 1} more)` : "";
    const most = room(largest.buffer);
    const what = most === allowed
      ? `needs ${name} = ${largest.bytes}, and ${allowed} is allowed`
      : `has ${largest.bytes} bytes, and kernels index at most ${most}`;
    return {
      what: `buffer '${largest.buffer.name}'${others} ${what}`,
      mend: mendBuffer(plan, largest, { ...options, allowed: most }),
    };
  });
}

/** Bytes of a buffer that kernels can index. */
export function indexed({ dtype }: Pick<PlanBuffer, "dtype">): number {
  return MAX_ELEMENTS * STORED_BYTES[dtype];
}

function kindOf(plan: Plan, { kind, axes }: PlanBuffer): string {
  if (kind === "state" || kind === "rope") return "state";
  if (kind !== "weight") return "scratch";
  return axes.some(({ axis }) => plan.axes[axis]?.table) ? "experts" : kind;
}

/** The bound, the number of ranks, or the limit that makes the largest buffer small enough. */
function mendBuffer(
  plan: Plan,
  { buffer, bytes }: { readonly buffer: PlanBuffer; readonly bytes: number },
  { allowed, name, bounds = {} }: OverLimit,
): string {
  const share = allowed / bytes;
  const held = expertsMend(plan, buffer, share);
  if (held !== undefined) return held;
  for (const axis of boundAxes(plan, buffer)) {
    const size = Math.floor(plan.axes[axis]!.size * share);
    if (size >= 1) return boundMend(axis, size, bounds);
  }
  return allowed === indexed(buffer)
    ? "use more ranks or a smaller model"
    : `allow ${name}=${bytes} (${sizeText(bytes)})`;
}

/** `--max-tokens 256`, or what the model's file says. */
export function boundMend(
  axis: string,
  size: number,
  bounds: { readonly [axis: string]: string },
): string {
  const flag = Object.hasOwn(bounds, axis) ? bounds[axis] : undefined;
  return flag === undefined
    ? `make axis '${axis}' of the model at most ${size}`
    : `${flag} ${size}`;
}

/** Axes whose length is a bound that people choose, the one to shorten first first. */
export function boundAxes(plan: Plan, buffer: PlanBuffer): string[] {
  const axes = buffer.axes.map(({ axis }) => axis);
  if (buffer.kind === "state") {
    const named = axes.map((axis) => modelAxis(plan, axis));
    return ["context", "sequence"].filter((axis) => named.includes(axis));
  }
  // A table of rotations has a row for each position.
  if (buffer.kind === "rope") return ["context"].filter((a) => plan.axes[a]);
  if (buffer.kind === "weight") return [];
  const dynamic = axes.filter((axis) => plan.axes[axis]?.dynamic);
  // Rows of a dispatch, and lists of them, are as many as tokens allow.
  const all = Object.entries(plan.axes)
    .filter(([, { dynamic, over }]) => dynamic && over)
    .map(([axis]) => axis);
  return dynamic.length > 0 ? dynamic : all;
}

/** More ranks over the mesh axis that experts are over, where that is enough. */
function expertsMend(
  plan: Plan,
  buffer: PlanBuffer,
  share: number,
): string | undefined {
  if (buffer.kind !== "weight") return undefined;
  for (const { axis, size } of buffer.axes) {
    const known = plan.axes[axis];
    if (!known?.table) continue;
    const fewer = Math.floor(maxOverRanks(size) * share);
    if (fewer < 1) continue;
    return meshMend(plan, known, Math.ceil(known.size / fewer));
  }
  return undefined;
}

/** `--mesh ep=16`: so many parts of an axis, by more ranks over the last mesh axis that it is placed over. */
export function meshMend(
  plan: Plan,
  { over = [] }: { readonly over?: readonly string[] },
  parts: number,
): string {
  const grown = over.at(-1) ?? "ep";
  const others = plan.mesh.filter(({ name }) =>
    over.includes(name) && name !== grown
  ).reduce((n, { size }) => n * size, 1);
  const size = Math.ceil(parts / others);
  const known = plan.mesh.some(({ name }) => name === grown);
  const mesh = known
    ? plan.mesh.map((axis) => axis.name === grown ? { ...axis, size } : axis)
    : [...plan.mesh, { name: grown, size }];
  return `--mesh ${mesh.map(({ name, size }) => `${name}=${size}`).join(",")}`;
}
