/** Prints a kernel tree as WGSL. No file outside this folder knows that language. */

import { laneLoads } from "../lane_loads.ts";
import { vectorWidths } from "../vectors.ts";
import { isReadOnly, type Kernel } from "../tree.ts";
import { declaredFunctions, DOT4_PACKED } from "./functions.ts";
import {
  MATRIX_HEADER,
  subgroupArrays,
  subgroupElements,
  subgroupTiles,
} from "./matrices.ts";
import { wgslNames } from "./names.ts";
import { type Printing, printStatements } from "./statement.ts";

const NO_LANES: ReturnType<typeof laneLoads> = new Map();

/** Device features for a kernel's text. */
export interface WgslOptions {
  /** Subgroup size, if invocations load uniform values for each other. Default: they do not. */
  readonly subgroup?: number | undefined;
  /** Whether the device supports WGSL's `packed_4x8_integer_dot_product`. Default: false. */
  readonly packedDot?: boolean;
  /**
   * Subgroup size, if the device supports subgroup matrices of 16 x 16 with f16 operands and f32 results. Default:
   * kernels do not use them.
   */
  readonly matrices?: number | undefined;
}

/** The WGSL of a kernel. Deterministic. */
export function printWgsl(kernel: Kernel, options: WgslOptions = {}): string {
  const on = printingOf(kernel, options);
  const { tile } = on;
  const lines = tile
    ? [...subgroupElements(tile), ...printStatements(kernel.matrixForm!, on)]
    : printStatements(kernel.body, on);
  const body = lines.map((line) => `  ${line}`);
  const text = body.join("\n");
  return [
    ...directives(text, on),
    ...declarations(kernel, on),
    "",
    ...declaredFunctions(text),
    ...entryPoint(kernel, on),
    ...body,
    "}",
    "",
  ].join("\n");
}

function printingOf(
  kernel: Kernel,
  { subgroup, packedDot = false, matrices }: WgslOptions,
): Printing {
  const tile = matrices === undefined
    ? undefined
    : subgroupTiles(kernel, matrices);
  const lanes = subgroup && !tile ? laneLoads(kernel, subgroup) : NO_LANES;
  return {
    names: wgslNames(kernel, [...lanes.values()].flat()),
    lengths: new Map(kernel.shared.map(({ name, length }) => [name, length])),
    packedDot,
    lanes,
    tile,
  };
}

/** Directives for the features that a body uses. */
function directives(body: string, { lanes, tile }: Printing): string[] {
  return [
    ...tile ? MATRIX_HEADER : [],
    ...body.includes(DOT4_PACKED)
      ? ["requires packed_4x8_integer_dot_product;", ""]
      : [],
    // The rules of the tree determine which barriers all invocations reach.
    ...lanes.size > 0
      ? ["enable subgroups;", "diagnostic(off, subgroup_uniformity);", ""]
      : [],
  ];
}

/** Bindings and arrays in workgroup memory. */
function declarations(
  kernel: Kernel,
  { names, tile }: Printing,
): string[] {
  const widths = vectorWidths(kernel);
  const bindings = kernel.bindings.map((binding, i) => {
    const { name, type } = binding;
    const width = widths.get(name);
    const element = width === undefined ? type : `vec${width}<${type}>`;
    const access = isReadOnly(binding) ? "read" : "read_write";
    return `@group(0) @binding(${i}) var<storage, ${access}> ${
      names.global(name)
    }: array<${element}>;`;
  });
  const arrays = kernel.shared.map(({ name, type, length }) => {
    const element = tile?.operands.has(name) ? "f16" : type;
    return `var<workgroup> ${
      names.global(name)
    }: array<${element}, ${length}>;`;
  });
  return [...bindings, ...arrays, ...tile ? subgroupArrays(tile) : []];
}

function entryPoint(kernel: Kernel, { lanes, tile }: Printing): string[] {
  const subgroupLane = lanes.size > 0 || tile
    ? ", @builtin(subgroup_invocation_id) subgroup_lane: u32"
    : "";
  return [
    `@compute @workgroup_size(${kernel.workgroupSize})`,
    `fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32${subgroupLane}) {`,
  ];
}
