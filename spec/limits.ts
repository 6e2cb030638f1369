/** What every WebGPU device guarantees, as far as plans depend on it. */

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
