/** WebGPU adapters: those of the system, or the one of `navigator.gpu` in a browser or Deno. */

import { MachineError } from "../../spec/errors.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";
import { politely } from "./politely.ts";

declare global {
  // Declarations use these names even if no library declares WebGPU: Node.js without "dom".
  // deno-lint-ignore no-empty-interface
  interface GPU {}
  // deno-lint-ignore no-empty-interface
  interface GPUAdapter {}
  // deno-lint-ignore no-empty-interface
  interface GPUAdapterInfo {}
}

/** An adapter of this machine, or one that the caller provided. */
export interface GpuAdapter {
  /** Index in the list, from 0. */
  readonly number: number;
  readonly name: string;
  readonly vendor: string;
  readonly architecture: string;
  readonly description: string;
  /** Software adapters compute on the CPU: llvmpipe, SwiftShader. */
  readonly type: "hardware" | "software";
  readonly limits: { readonly [limit: string]: number };
  readonly features: readonly string[];
  /** Subgroup size, if all subgroups have it. */
  readonly subgroup?: number;
  /** Whether WGSL has dot products of packed bytes. */
  readonly packedDot: boolean;
  /**
   * Subgroup size, if all subgroups have it and multiply matrices of 16 x 16 with elements of f16 and results of f32.
   */
  readonly matrices?: number;
  /** Distinguishes adapters of one name: `PCI 0000:65:00.0`, or the file of the driver. */
  readonly address?: string;
  /** Number of adapters with this name that cannot be distinguished; any of them may be opened. */
  readonly twins?: number;
  /** A fresh adapter for one device. WebGPU allows one use of each. */
  request(): Promise<GPUAdapter>;
}

const SOFTWARE = /llvmpipe|lavapipe|swiftshader|software|basic render/i;

/** The adapter of `navigator.gpu` in a browser or Deno. Undefined if it has none. */
export async function adapterOf(gpu: GPU): Promise<GpuAdapter | undefined> {
  const adapter = await politely(gpu.requestAdapter());
  return adapter
    ? describeAdapter(adapter, {
      number: 0,
      gpu,
      request: () => requestAdapter(gpu),
    })
    : undefined;
}

/** An adapter name for display. Some implementations provide only numbers for the device. */
export function adapterName(info: GPUAdapterInfo): string {
  const family = `${info.vendor} ${info.architecture}`.trim();
  return [info.device, info.description, family]
    .find((text) => text && !/^\d+$/.test(text)) ?? "WebGPU adapter";
}

/** An entry of the adapter list. `name`: the system's name for it, if known. */
export function describeAdapter(
  adapter: GPUAdapter,
  { number, gpu, name, request }: {
    readonly number: number;
    readonly gpu: GPU;
    readonly name?: string;
    readonly request: () => Promise<GPUAdapter>;
  },
): GpuAdapter {
  const { info } = adapter;
  const title = name ?? adapterName(info);
  const software = info.isFallbackAdapter ||
    SOFTWARE.test(`${title} ${info.architecture} ${info.description}`);
  const limits: { [limit: string]: number } = {};
  for (const key in adapter.limits) {
    const value = (adapter.limits as unknown as Record<string, unknown>)[key];
    if (typeof value === "number") limits[key] = value;
  }
  return {
    number,
    name: title,
    vendor: info.vendor,
    architecture: info.architecture,
    description: info.description,
    type: software ? "software" : "hardware",
    limits,
    features: [...adapter.features].sort(),
    ...subgroupOf(adapter),
    ...matricesOf(adapter),
    packedDot: hasPackedDot(gpu),
    request,
  };
}

/** Whether WGSL has dot products of packed bytes. */
export function hasPackedDot(gpu: Partial<GPU>): boolean {
  // Some implementations do not list language features.
  const { wgslLanguageFeatures: features } = gpu;
  return features?.has("packed_4x8_integer_dot_product") ?? false;
}

function subgroupOf(
  { features, info }: GPUAdapter,
): Pick<GpuAdapter, "subgroup"> {
  const { subgroupMinSize: min, subgroupMaxSize: max } = info;
  return features.has("subgroups") && min !== undefined && min === max
    ? { subgroup: min }
    : {};
}

/** Features of a device whose subgroups multiply matrices. */
export const MATRIX_FEATURES = [
  "subgroups",
  "shader-f16",
  "chromium-experimental-subgroup-matrix",
] as const;

/** Sizes and dtypes of matrices of an adapter, which its declaration lacks. */
interface MatrixInfo {
  readonly subgroupMatrixConfigs?: readonly {
    readonly componentType: string;
    readonly resultComponentType: string;
    readonly M: number;
    readonly N: number;
    readonly K: number;
  }[];
}

function matricesOf(adapter: GPUAdapter): Pick<GpuAdapter, "matrices"> {
  const { features, info } = adapter;
  const { subgroupMatrixConfigs: configs = [] } = info as MatrixInfo;
  const { subgroup } = subgroupOf(adapter);
  const fits = configs.some(({ M, N, K, ...types }) =>
    types.componentType === "f16" && types.resultComponentType === "f32" &&
    [M, N, K].every((size) => size === MATRIX_SIZE)
  );
  return fits && subgroup !== undefined &&
      MATRIX_FEATURES.every((name) => features.has(name))
    ? { matrices: subgroup }
    : {};
}

/** A fresh adapter. Throws MachineError if there is none any more. */
export async function requestAdapter(
  gpu: GPU,
  name = "WebGPU",
): Promise<GPUAdapter> {
  const adapter = await politely(
    gpu.requestAdapter({ powerPreference: "high-performance" }),
  );
  if (adapter) return adapter;
  throw new MachineError(
    `Cannot open adapter '${name}': it is gone. List the adapters again`,
  );
}
