/** Common parts of kernels: construction, launch grids, dynamic lengths. */

import { cachedIn, cachedWith } from "../bounded_cache.ts";
import { invariant } from "../errors.ts";
import { GUARANTEED_LIMITS } from "../limits.ts";
import { divergentBarriers } from "./barrier_control.ts";
import { add, id, load, mul, u32 } from "./build.ts";
import { exactJson } from "./exact_json.ts";
import { expandMatrices, matrixStatements } from "./matrices.ts";
import { prefetchPanels } from "./prefetch.ts";
import { resolveStatements } from "./text/resolve.ts";
import { KernelText, type Statements } from "./text/text.ts";
import { textKey } from "./text/text_key.ts";
import type { Binding, Expr, IdName, Kernel, Stmt } from "./tree.ts";
import type { Size } from "../size.ts";
import { loadWidths, withOneWidth } from "./vectors.ts";
import { walkExpression, walkStatements } from "./walk.ts";

/** Maximum number of workgroups in one dimension guaranteed by every WebGPU device. */
export const GRID_LIMIT = GUARANTEED_LIMITS.maxComputeWorkgroupsPerDimension;

/** Words of workgroup memory guaranteed by every WebGPU device. */
export const SHARED_WORDS = GUARANTEED_LIMITS.maxComputeWorkgroupStorageSize /
  4;

/** Workgroup counts of a launch step. */
export type Grid = readonly [Size, Size, Size];

/** The binding through which kernels read dynamic lengths: the plan's counts buffer. */
export const LENGTHS: Binding = {
  name: "lengths",
  type: "u32",
  access: "read",
};

/** The dynamic length at an index of the counts buffer. Kernels that use it get the binding `lengths`. */
export function lengthAt(slot: number): Expr {
  return load(LENGTHS.name, u32(slot), "u32");
}

/** Splits a number of workgroups over two dimensions. */
export function foldGrid(groups: Size): readonly [Size, Size] {
  return typeof groups === "number"
    ? [Math.min(groups, GRID_LIMIT), Math.ceil(groups / GRID_LIMIT)]
    : [{ min: [groups, GRID_LIMIT] }, { ceilDiv: [groups, GRID_LIMIT] }];
}

/** The workgroup's number if `foldGrid` is in x and y. */
export const GROUP_XY = folded("group.x", "group.y");

/** The workgroup's number if `foldGrid` is in x and z. */
export const GROUP_XZ = folded("group.x", "group.z");

/** The workgroup's number if `foldGrid` is in y and z. */
export const GROUP_YZ = folded("group.y", "group.z");

function folded(fast: IdName, slow: IdName): Expr {
  return add(id(fast), mul(id(slow), u32(GRID_LIMIT)));
}

/** The bindings that an expression loads from. */
export function bindingsOf(e: Expr): ReadonlySet<string> {
  const loads = new Set<string>();
  walkExpression(e, (node) => {
    if (node.op === "load") loads.add(node.binding);
  });
  return loads;
}

/** Bindings that statements store to. */
function storesOf(body: readonly Stmt[]): ReadonlySet<string> {
  const stores = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "store") stores.add(s.binding);
  });
  return stores;
}

/** Parts of a kernel; may contain unused bindings. */
export interface KernelParts {
  readonly name: string;
  readonly workgroupSize: number;
  readonly bindings: readonly Binding[];
  readonly body: Statements;
}

/** Cache of recent kernels, by their inputs. */
const made = new Map<string, Kernel>();
const MADE = 2048;

/** The cached kernel of equal inputs, or a new one: equal layers share one. `from` is compared as JSON. */
export function madeOnce(from: unknown, make: () => Kernel): Kernel {
  return keptKernel(exactJson(from), make);
}

function keptKernel(key: string, make: () => Kernel): Kernel {
  return cachedIn(made, key, { max: MADE, create: make });
}

/**
 * Creates a kernel; equal texts share one. Unused bindings are removed, `lengths` is added if used, and written
 * bindings that are also read are bound for both. Throws KernelTextError.
 */
export function kernelOf(parts: KernelParts): Kernel {
  const { name, workgroupSize, bindings, body } = parts;
  if (!(body instanceof KernelText)) return makeKernel(parts);
  // As a part of the JSON, the long key of the text would be quoted again.
  const key = `${exactJson([name, workgroupSize, bindings])}${textKey(body)}`;
  return keptKernel(key, () => makeKernel(parts));
}

/** Recent kernels of each generator, by its options. */
const generated = new WeakMap<object, Map<string, Kernel>>();

/**
 * The kernel of a generator whose options are data, without functions, maps or sets. Equal options share one, without
 * writing its text again.
 */
export function kernelFrom<O extends readonly unknown[]>(
  generator: (...options: O) => Kernel,
  ...options: O
): Kernel {
  return cachedWith(generated, generator, {
    key: exactJson(options),
    max: MADE,
    create: () => generator(...options),
  });
}

/** The names of bindings that a kernel does not write. */
function readOnly(bindings: readonly Binding[]): ReadonlySet<string> {
  return new Set(
    bindings.flatMap(({ name, access }) => access === "read" ? [name] : []),
  );
}

/** `kernelOf` for a kernel known to be new. */
export function makeKernel(parts: KernelParts): Kernel {
  const { name, workgroupSize } = parts;
  const all = parts.bindings.some((b) => b.name === LENGTHS.name)
    ? parts.bindings
    : [...parts.bindings, LENGTHS];
  const resolved = resolveStatements(parts.body, all);
  const { shared, nestedBarriers } = resolved;
  const form = matrixStatements(resolved.body).length > 0
    ? prefetchPanels(resolved.body, readOnly(all))
    : undefined;
  const given = form ? expandMatrices(form, workgroupSize) : resolved.body;
  invariant(given, "a matrix form has one tile, which invocations divide");
  const widths = loadWidths(given);
  const body = form ? given : withOneWidth(given, widths);
  const stores = storesOf(body);
  const bindings = all.flatMap((b): Binding[] => {
    const loaded = widths.has(b.name);
    if (!loaded && !stores.has(b.name)) return [];
    return [
      b.access === "write" && loaded ? { ...b, access: "read_write" } : b,
    ];
  });
  for (const used of [...widths.keys(), ...stores]) {
    invariant(
      bindings.filter((b) => b.name === used).length === 1,
      `kernel '${name}' needs exactly one binding '${used}'`,
    );
  }
  const kernel = {
    name,
    workgroupSize,
    bindings,
    shared,
    body,
    ...form ? { matrixForm: form } : {},
  };
  if (nestedBarriers.size > 0) {
    for (const barrier of divergentBarriers(kernel)) {
      const error = nestedBarriers.get(barrier)?.();
      if (error) throw error;
    }
  }
  return kernel;
}

/** A read binding. */
export function reads(name: string, type: Binding["type"] = "f32"): Binding {
  return { name, type, access: "read" };
}

/** A written binding. */
export function writes(name: string, type: Binding["type"] = "f32"): Binding {
  return { name, type, access: "write" };
}

/** Types of bindings by name, with axes for documentation: `f32 [token, expert]`. */
export interface BindingTypes {
  readonly [name: string]: Binding["type"] | `${Binding["type"]} [${string}]`;
}

/** Read bindings, then written ones. */
export function bindings(
  read: BindingTypes,
  written: BindingTypes = {},
): Binding[] {
  const declared = (types: BindingTypes, access: Binding["access"]) =>
    Object.entries(types).map(([name, type]): Binding => ({
      name,
      type: type.slice(0, 3) as Binding["type"],
      access,
    }));
  return [...declared(read, "read"), ...declared(written, "write")];
}
