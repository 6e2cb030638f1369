/** What all kernel descriptions share: putting a kernel together, launch grids, run-time lengths. */

import { invariant } from "../errors.ts";
import { GUARANTEED_LIMITS } from "../limits.ts";
import { add, id, load, mul, u32 } from "./build.ts";
import type { Binding, Expr, Kernel, SharedArray, Stmt } from "./tree.ts";
import type { Size } from "../size.ts";

/** The most workgroups in one dimension that every WebGPU device allows. */
export const GRID_LIMIT = GUARANTEED_LIMITS.maxComputeWorkgroupsPerDimension;

/** Words of workgroup memory that every WebGPU device has. */
export const SHARED_WORDS = GUARANTEED_LIMITS.maxComputeWorkgroupStorageSize /
  4;

/** Workgroup counts as a launch step takes them. */
export type Grid = readonly [Size, Size, Size];

/** The binding through which kernels read run-time lengths: the plan's counts buffer. */
export const LENGTHS: Binding = {
  name: "lengths",
  type: "u32",
  access: "read",
};

/** The run-time length in a slot of the counts buffer. Kernels that use it get the binding `lengths`. */
export function lengthAt(slot: number): Expr {
  return load(LENGTHS.name, u32(slot), "u32");
}

/** Fold a number of workgroups over two dimensions. */
export function foldGrid(groups: Size): readonly [Size, Size] {
  return typeof groups === "number"
    ? [Math.min(groups, GRID_LIMIT), Math.ceil(groups / GRID_LIMIT)]
    : [{ min: [groups, GRID_LIMIT] }, { ceilDiv: [groups, GRID_LIMIT] }];
}

/** The workgroup's number where `foldGrid` lies in x and y. */
export function groupXY(): Expr {
  return add(id("group.x"), mul(id("group.y"), u32(GRID_LIMIT)));
}

/** The workgroup's number where `foldGrid` lies in x and z. */
export function groupXZ(): Expr {
  return add(id("group.x"), mul(id("group.z"), u32(GRID_LIMIT)));
}

/** The workgroup's number where `foldGrid` lies in y and z. */
export function groupYZ(): Expr {
  return add(id("group.y"), mul(id("group.z"), u32(GRID_LIMIT)));
}

/** The u32 expression of a length. */
export function lengthOf(length: number | Expr): Expr {
  return typeof length === "number" ? u32(length) : length;
}

function visitExpr(e: Expr, seen: Set<string>): void {
  switch (e.op) {
    case "load":
      seen.add(e.binding);
      return visitExpr(e.index, seen);
    case "shared":
      return visitExpr(e.index, seen);
    case "binary":
      visitExpr(e.a, seen);
      return visitExpr(e.b, seen);
    case "call":
      return e.args.forEach((a) => visitExpr(a, seen));
    case "select":
      return [e.condition, e.a, e.b].forEach((a) => visitExpr(a, seen));
    case "unary":
    case "convert":
    case "bitcast":
      return visitExpr(e.a, seen);
  }
}

/** The bindings that an expression loads from. */
export function bindingsOf(e: Expr): ReadonlySet<string> {
  const seen = new Set<string>();
  visitExpr(e, seen);
  return seen;
}

function visit(body: readonly Stmt[], seen: Set<string>): void {
  for (const s of body) {
    if ("value" in s) visitExpr(s.value, seen);
    if ("index" in s) visitExpr(s.index, seen);
    if (s.op === "store" || s.op === "loads") seen.add(s.binding);
    if (s.op === "if") {
      visitExpr(s.condition, seen);
      visit(s.then, seen);
      visit(s.else ?? [], seen);
    }
    if (s.op === "for") {
      [s.from, s.to, s.step].forEach((e) => visitExpr(e, seen));
      visit(s.body, seen);
    }
  }
}

/** Parts of a kernel; bindings may be more than it needs. */
export interface KernelParts {
  readonly name: string;
  readonly workgroupSize: number;
  readonly bindings: readonly Binding[];
  readonly shared?: readonly SharedArray[];
  readonly body: readonly Stmt[];
}

/** Put a kernel together: bindings that the body does not use are left out, `lengths` is added where it is used. */
export function kernelOf(parts: KernelParts): Kernel {
  const used = new Set<string>();
  visit(parts.body, used);
  const all = parts.bindings.some((b) => b.name === LENGTHS.name)
    ? parts.bindings
    : [...parts.bindings, LENGTHS];
  const bindings = all.filter((b) => used.has(b.name));
  for (const name of used) {
    invariant(
      bindings.filter((b) => b.name === name).length === 1,
      `kernel '${parts.name}' needs exactly one binding '${name}'`,
    );
  }
  return {
    name: parts.name,
    workgroupSize: parts.workgroupSize,
    bindings,
    shared: parts.shared ?? [],
    body: parts.body,
  };
}

/** A binding that is read. */
export function reads(name: string, type: Binding["type"] = "f32"): Binding {
  return { name, type, access: "read" };
}

/** A binding that is written. */
export function writes(name: string, type: Binding["type"] = "f32"): Binding {
  return { name, type, access: "write" };
}
