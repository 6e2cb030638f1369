/** Maximum sizes: limits guaranteed by every WebGPU device, as far as plans depend on them, and limits of plans. */

/** The limits that a plan may state, with the values that every WebGPU device guarantees. */
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
 * Alignment of buffer offsets in an allocation in bytes, at which every WebGPU device can bind storage buffers
 * (minStorageBufferOffsetAlignment).
 */
export const STORAGE_ALIGNMENT = 256;

/** Maximum ranks of a plan; `bench/scale.ts` compiles and verifies meshes of this size. */
export const MAX_RANKS = 4096;

/** Maximum elements of an axis of a model, including tokens and positions: the largest supported vocabulary. */
export const MAX_AXIS = 1 << 24;

/** Maximum nodes of the document of a model. The largest published models have a tenth. */
export const MAX_NODES = 1 << 16;

/** Maximum elements of a buffer on a rank: kernels use 32-bit indices, and count up to a workgroup beyond the last. */
export const MAX_ELEMENTS = 2 ** 32 - 2 ** 8;

/** Maximum micro-batches of a training step, which are in memory together. */
export const MAX_MICRO_BATCHES = 4096;

/** Maximum chunks of a dispatch. */
export const MAX_CHUNKS = 1024;

/** The name of a limit that a plan may state. */
export type LimitName = keyof typeof GUARANTEED_LIMITS;

/** No limits: for plans that are checked against a machine later. */
export const UNLIMITED: { readonly [L in LimitName]: number } = Object
  .fromEntries(
    Object.keys(GUARANTEED_LIMITS).map((name) => [name, Infinity]),
  ) as { [L in LimitName]: number };

/** Features that a plan may require of a device. */
export const KNOWN_FEATURES: readonly string[] = ["shader-f16", "subgroups"];

/** The value of a limit in a plan: the stated one, else that guaranteed by WebGPU. */
export function limitOf(
  limits: { readonly [limit: string]: number },
  name: LimitName,
): number {
  return Object.hasOwn(limits, name) ? limits[name]! : GUARANTEED_LIMITS[name];
}
