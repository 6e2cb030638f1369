/** Parsed flags. */

import type { AdapterChoice, CacheDType } from "../../engine/mod.ts";
import type { Mesh } from "../../spec/mod.ts";
import type { Activations } from "../../spec/weights/activations.ts";
import type { Strategy } from "../../spec/strategies.ts";

/** Flags that select a model. */
export interface ModelFlags {
  /** The file that exports the family for the config.json. */
  readonly family?: string | undefined;
  /** Branch, tag or commit of a model on the hub. */
  readonly revision?: string | undefined;
}

/** Flags that control compilation. */
export interface PlanFlags extends Strategy, ModelFlags {
  /** Folder of low-rank adapters; settings of adapters to train for the plan of a training. */
  readonly lora?: string;
  readonly mesh?: Mesh;
  readonly place?: { readonly [axis: string]: readonly string[] };
  readonly maxTokens?: number;
  readonly maxSequences?: number;
  readonly maxContext?: number;
  /** Storage type of the key and value caches. */
  readonly kvCacheDtype?: CacheDType;
  /** Activations of products with quantized weights. */
  readonly activations?: Activations;
  /** Number of cache pages of a rank, and positions per page. */
  readonly pages?: { readonly count: number; readonly size: number };
}

/** Flags that select devices and ranks. */
export interface DeviceFlags {
  readonly devices: "shared" | "separate" | "mpi";
  readonly adapter: AdapterChoice;
  /** Number of CPU threads. */
  readonly threads?: number;
  /** Maximum wait for another rank process, in seconds. */
  readonly deadline?: number;
  /** Bytes of memory for experts that are read on demand. */
  readonly expertMemory?: number | "auto";
  /** Read weight files completely when loading. */
  readonly preload?: boolean;
  /** The job of a rank that 'launch' started. Rank 0 prints it at the end. */
  readonly job?: string;
}

/** A prompt from the flags: a text, a file with one prompt, a file with one prompt per line, or token ids. */
export type Prompt =
  | { readonly text: string }
  | { readonly file: string }
  | { readonly lines: string }
  | { readonly tokens: readonly number[] };
