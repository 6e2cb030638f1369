/** Flags as commands take them. */

import type { AdapterChoice, CacheDType } from "../engine/mod.ts";
import type { Mesh } from "../spec/mod.ts";
import type { Activations } from "../spec/activations.ts";
import type { Strategy } from "../spec/strategies.ts";

/** Flags that say which model is meant. */
export interface ModelFlags {
  /** The file that exports the family of a config.json. */
  readonly family?: string | undefined;
  /** Branch, tag or commit of a model of the hub. */
  readonly revision?: string | undefined;
}

/** Flags that say how a model is compiled. */
export interface PlanFlags extends Strategy, ModelFlags {
  readonly mesh?: Mesh;
  readonly place?: { readonly [axis: string]: readonly string[] };
  readonly maxTokens?: number;
  readonly maxSequences?: number;
  readonly maxContext?: number;
  /** What caches of keys and values are stored as. */
  readonly kvCacheDtype?: CacheDType;
  /** Activations of products with quantized weights. */
  readonly activations?: Activations;
  /** Pages of a rank's caches, and positions of a page. */
  readonly pages?: { readonly count: number; readonly size: number };
}

/** Flags that say where a plan runs. */
export interface DeviceFlags {
  readonly devices: "shared" | "separate" | "mpi";
  readonly adapter: AdapterChoice;
  /** Seconds that ranks which are processes may keep one another waiting. */
  readonly deadline?: number;
  /** Bytes of memory for experts, which are read while they are used. */
  readonly expertMemory?: number | "auto";
  /** The job of a rank that 'launch' started; rank 0 prints it once it is done. */
  readonly job?: string;
}

/** A prompt as it was given: a text, a file that is one, a file that has one on each line, token ids. */
export type Prompt =
  | { readonly text: string }
  | { readonly file: string }
  | { readonly lines: string }
  | { readonly tokens: readonly number[] };
