/** How large anything may be: what every WebGPU device guarantees, as far as plans depend on it, and what no plan is beyond. */

/** The limits that a plan may state, with the values that every WebGPU device has. */
export const GUARANTEED_LIMITS = {
  maxBufferSize: 268435456,
  maxStorageBufferBindingSize: 134217728,
  maxStorageBuffersPerShaderStage: 8,
  maxComputeWorkgroupStorageSize: 16384,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxComputeWorkgroupsPerDimension: 65535,
} as const satisfies { readonly [limit: string]: number };

/**
 * Offsets of buffers in an allocation are multiples of so many bytes: every WebGPU device binds storage buffers there
 * (minStorageBufferOffsetAlignment).
 */
export const STORAGE_ALIGNMENT = 256;

/** Ranks of a plan, at most: meshes of as many are compiled and verified by `bench/scale.ts`. */
export const MAX_RANKS = 4096;

/** Elements of an axis of a model, tokens and positions included: the largest vocabulary that a configuration may have. */
export const MAX_AXIS = 1 << 24;

/** Elements of a buffer on a rank: kernels index them with 32 bits, and count a workgroup beyond the last. */
export const MAX_ELEMENTS = 2 ** 32 - 2 ** 8;

/** Micro-batches of a step of training, which are in memory together. */
export const MAX_MICRO_BATCHES = 4096;

/** Chunks that a dispatch is sent in. */
export const MAX_CHUNKS = 1024;

/** The name of a limit that a plan may state. */
export type LimitName = keyof typeof GUARANTEED_LIMITS;

/** No limit at all: for plans that are held against a machine afterwards. */
export const UNLIMITED: { readonly [L in LimitName]: number } = Object
  .fromEntries(
    Object.keys(GUARANTEED_LIMITS).map((name) => [name, Infinity]),
  ) as { [L in LimitName]: number };

/** Features that a plan may require of a device. */
export const KNOWN_FEATURES: readonly string[] = ["shader-f16", "subgroups"];

/** The value of a limit in a plan: what it states, else what WebGPU guarantees. */
export function limitOf(
  limits: { readonly [limit: string]: number },
  name: LimitName,
): number {
  return Object.hasOwn(limits, name) ? limits[name]! : GUARANTEED_LIMITS[name];
}
