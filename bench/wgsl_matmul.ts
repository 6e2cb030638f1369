/**
 * Hand-written WGSL matrix products without a fixed order of sums, as a reference for the compiler's kernels. [m, k]
 * times [k, n].
 */

/** A variant. Each invocation computes `rows` x `columns` results; a workgroup has `lanes` invocations. */
export interface HandWritten {
  readonly rows: number;
  readonly columns: number;
  readonly lanes: number;
  /** `vec4`: a load reads four columns. `broadcast`: invocations of a subgroup load the left operand for each other. */
  readonly loads: "scalar" | "vec4" | "broadcast";
}

/** Sizes of a product. */
export interface ProductSizes {
  readonly m: number;
  readonly k: number;
  readonly n: number;
}

/** The measured variants. */
export const HAND_WRITTEN: readonly HandWritten[] = [
  { rows: 4, columns: 4, lanes: 32, loads: "scalar" },
  { rows: 8, columns: 4, lanes: 32, loads: "scalar" },
  { rows: 16, columns: 4, lanes: 8, loads: "scalar" },
  { rows: 8, columns: 4, lanes: 8, loads: "vec4" },
  { rows: 16, columns: 4, lanes: 8, loads: "vec4" },
  { rows: 8, columns: 4, lanes: 8, loads: "broadcast" },
  { rows: 8, columns: 4, lanes: 32, loads: "broadcast" },
];

/** Number of indices per load of a subgroup: its minimum size here. */
const SUBGROUP = 8;

/** Formats a variant: `8x4 lanes 32, broadcast`. */
export function variantName(o: HandWritten): string {
  return `${o.rows}x${o.columns} lanes ${o.lanes}, ${o.loads}`;
}

/** Returns the workgroups of a product. */
export function handWrittenGrid(
  { rows, columns, lanes }: HandWritten,
  { m, n }: ProductSizes,
): [number, number, number] {
  return [m / rows, n / (columns * lanes), 1];
}

/** Returns the program. Its bindings are `x`, `w` and `y`, in this order. */
export function handWrittenMatmul(o: HandWritten, sizes: ProductSizes): string {
  const { rows, columns, lanes } = o;
  const { k, n } = sizes;
  const vector = o.loads === "vec4";
  const cells = vector ? columns / 4 : columns;
  const perRow = vector ? n / 4 : n;
  const type = vector ? "vec4f" : "f32";
  const each = (count: number, line: (i: number) => string) =>
    Array.from({ length: count }, (_, i) => line(i)).join("\n");
  const all = (line: (r: number, c: number) => string) =>
    each(rows, (r) => each(cells, (c) => line(r, c)));
  const weights = (at: string) =>
    each(cells, (c) => `let b${c} = w[at${c} + ${at} * ${perRow}u];`);
  const products = (left: (r: number) => string) =>
    all((r, c) =>
      `s${r}_${c} = fma(${
        vector ? `vec4f(${left(r)})` : left(r)
      }, b${c}, s${r}_${c});`
    );
  const plain = `for (var k = 0u; k < ${k}u; k++) {
${each(rows, (r) => `let a${r} = x[left${r} + k];`)}
${weights("k")}
${products((r) => `a${r}`)}
}`;
  const broadcast = `for (var k = 0u; k < ${k}u; k += ${SUBGROUP}u) {
${each(rows, (r) => `let a${r} = x[left${r} + k + member];`)}
${
    each(SUBGROUP, (i) =>
      `{
${weights(`(k + ${i}u)`)}
${each(rows, (r) => `let c${r} = subgroupBroadcast(a${r}, ${i}u);`)}
${products((r) => `c${r}`)}
}`)
  }
}`;
  return `${o.loads === "broadcast" ? "enable subgroups;" : ""}
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<${type}>;
@group(0) @binding(2) var<storage, read_write> y: array<${type}>;
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32${
    o.loads === "broadcast"
      ? ", @builtin(subgroup_invocation_id) member: u32"
      : ""
  }) {
let first = group.x * ${rows}u;
${
    each(cells, (c) =>
      `let at${c} = group.y * ${cells * lanes}u + lane + ${c * lanes}u;`)
  }
${each(rows, (r) => `let left${r} = (first + ${r}u) * ${k}u;`)}
${all((r, c) => `var s${r}_${c} = ${type}();`)}
${o.loads === "broadcast" ? broadcast : plain}
${all((r, c) => `y[(first + ${r}u) * ${perRow}u + at${c}] = s${r}_${c};`)}
}
`;
}
