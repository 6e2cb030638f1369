/** The limits of an adapter: hand-written copies and chains of multiply-adds. */

import type { Device } from "../runtime/mod.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { interleaved, median } from "./measure.ts";

/** Copied elements: more than caches hold. */
const WORDS = 1 << 24;

/** Invocations, and iterations of their loops with 16 chains of four multiply-adds each. */
const LANES = 64, GROUPS = 512, TURNS = 256, CHAINS = 16;

/** The roofline of an adapter. */
export interface Roof {
  /** Maximum bytes read and written per second. */
  readonly bandwidth: number;
  /** Maximum multiply-adds per second. */
  readonly multiplyAdds: number;
}

const COPY = `
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = (group.y * 256u + group.x) * ${LANES * 4}u + lane;
  for (var i = 0u; i < ${LANES * 4}u; i += ${LANES}u) {
    y[at + i] = x[at + i];
  }
}`;

const CHAIN = `
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = group.x * ${LANES}u + lane;
  let a = vec4f(x[at]);
  let b = vec4f(x[at + 1u]);
  ${each((i) => `var s${i} = a + ${i}.0f;`)}
  for (var i = 0u; i < ${TURNS}u; i++) {
    ${each((i) => `s${i} = fma(s${i}, a, b);`)}
  }
  let all = ${Array.from({ length: CHAINS }, (_, i) => `s${i}`).join(" + ")};
  y[at] = all.x + all.y + all.z + all.w;
}`;

function each(line: (i: number) => string): string {
  return Array.from({ length: CHAINS }, (_, i) => line(i)).join("\n  ");
}

/** Measures the roofline of a device: the best of interleaved runs. */
export async function measureRoof(
  device: Device,
  repetitions: number,
): Promise<Roof> {
  const tree = (name: string): Kernel => ({
    name,
    workgroupSize: LANES,
    bindings: [
      { name: "x", type: "f32", access: "read" },
      { name: "y", type: "f32", access: "write" },
    ],
    shared: [],
    body: [],
  });
  await device.prepare({
    roof_copy: { tree: tree("roof_copy"), wgsl: COPY },
    roof_chain: { tree: tree("roof_chain"), wgsl: CHAIN },
  });
  const buffers = ["x", "y"].map((name) =>
    device.createBuffer(4 * WORDS, name)
  );
  const launch =
    (kernel: string, groups: readonly [number, number, number]) => async () => {
      device.launch(kernel, buffers, groups);
      await device.idle();
    };
  const vectors = WORDS / 4 / (LANES * 4);
  const times = await interleaved({
    kernel: launch("roof_copy", [256, vectors / 256, 1]),
    command: async () => {
      device.copy(buffers[0]!, 0, buffers[1]!, 0, 4 * WORDS);
      await device.idle();
    },
    chain: launch("roof_chain", [GROUPS, 1, 1]),
  }, { repetitions, warmUp: 2 });
  const copy = Math.min(median(times.kernel), median(times.command));
  const done = LANES * GROUPS * TURNS * CHAINS * 4;
  return {
    bandwidth: 2 * 4 * WORDS / copy * 1000,
    multiplyAdds: done / median(times.chain) * 1000,
  };
}
