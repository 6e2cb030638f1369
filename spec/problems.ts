/** Problems of a plan that does not fit, and fixes. */

import { modelAxis } from "./axis_parts.ts";
import { sizeText } from "./size_text.ts";
import { STORED_BYTES } from "./dtype.ts";
import { meshFlag, meshSizes } from "./mesh.ts";
import { GUARANTEED_LIMITS, type LimitName, MAX_ELEMENTS } from "./limits.ts";
import { maxOverRanks, type Plan, type PlanBuffer } from "./plan/plan.ts";

/** A problem with the smallest fix found. */
export interface Problem {
  /** Insufficient resource: ranks, memory of a rank, memory for its experts, or a limit of a device. */
  readonly kind: "ranks" | "memory" | "experts" | "limit";
  readonly what: string;
  readonly fix: string;
  /** Whether the last alternative of the fix is a larger machine. */
  readonly larger?: true;
}

/** Options of `limitProblems`. */
export interface LimitProblemsOptions {
  /** Number of buffers that one with this name represents. Default: 1. */
  readonly times?: (name: string) => number;
  /** Flags that shorten an axis: `--max-tokens` for `token`. Default: the axis of the model. */
  readonly bounds?: { readonly [axis: string]: string };
}

/**
 * Returns the exceeded limits of a plan, each with the largest buffer over it. Default limits are those that WebGPU
 * guarantees.
 */
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
      kind: "limit",
      what: `a kernel needs ${name} = ${need}, and ${allowed} is allowed`,
      fix: `allow ${name}=${need}`,
    }];
  });
}

/** A limit that buffers exceed. */
interface OverLimit extends LimitProblemsOptions {
  readonly name: string;
  readonly allowed: number;
}

/** One problem per kind of buffer over a limit: a fix for its largest buffer fixes the others. */
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
      kind: "limit",
      what: `an allocation needs ${name} = ${need}, and ${allowed} is allowed`,
      fix: `allow ${name}=${need}`,
    }];
  }
  return [...kinds.values()].map((over) => {
    const largest = over.reduce((a, b) => b.bytes > a.bytes ? b : a);
    const all = over.reduce((n, { buffer }) => n + times(buffer.name), 0);
    const others = all > 1 ? ` (and ${all - 1} more)` : "";
    const max = room(largest.buffer);
    const what = max === allowed
      ? `needs ${name} = ${largest.bytes}, and ${allowed} is allowed`
      : `has ${largest.bytes} bytes, and kernels index at most ${max}`;
    return {
      kind: "limit",
      what: `buffer '${largest.buffer.name}'${others} ${what}`,
      fix: bufferFix(plan, largest, { ...options, allowed: max }),
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
function bufferFix(
  plan: Plan,
  { buffer, bytes }: { readonly buffer: PlanBuffer; readonly bytes: number },
  { allowed, name, bounds = {} }: OverLimit,
): string {
  const share = allowed / bytes;
  const held = expertsFix(plan, buffer, share);
  if (held !== undefined) return held;
  for (const axis of boundAxes(plan, buffer)) {
    const size = Math.floor(plan.axes[axis]!.size * share);
    if (size >= 1) return boundFix(axis, size, bounds);
  }
  return allowed === indexed(buffer)
    ? "use more ranks or a smaller model"
    : `allow ${name}=${bytes} (${sizeText(bytes)})`;
}

/** `--max-tokens 256`, or the change in the model's file. */
export function boundFix(
  axis: string,
  size: number,
  bounds: { readonly [axis: string]: string },
): string {
  const flag = Object.hasOwn(bounds, axis) ? bounds[axis] : undefined;
  return flag === undefined
    ? `make axis '${axis}' of the model at most ${size}`
    : `${flag} ${size}`;
}

/** Axes with a bound that users choose, the preferred one to shorten first. */
function boundAxes(plan: Plan, buffer: PlanBuffer): string[] {
  const axes = buffer.axes.map(({ axis }) => axis);
  if (buffer.kind === "state") {
    const named = axes.map((axis) => modelAxis(plan, axis));
    return ["context", "sequence"].filter((axis) => named.includes(axis));
  }
  // A rotary table has a row per position.
  if (buffer.kind === "rope") return ["context"].filter((a) => plan.axes[a]);
  if (buffer.kind === "weight") return [];
  const dynamic = axes.filter((axis) => plan.axes[axis]?.dynamic);
  // The number of rows of a dispatch, and of lists of them, is bounded by tokens.
  const all = Object.entries(plan.axes)
    .filter(([, { dynamic, over }]) => dynamic && over)
    .map(([axis]) => axis);
  return dynamic.length > 0 ? dynamic : all;
}

/** More ranks over the mesh axis of the experts, if that suffices. */
function expertsFix(
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
    return meshFix(plan, known, Math.ceil(known.size / fewer));
  }
  return undefined;
}

/** `--mesh ep=16`: more ranks over the last mesh axis that an axis is placed over. */
export function meshFix(
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
  return `--mesh ${meshFlag(meshSizes(mesh))}`;
}
