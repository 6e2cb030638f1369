/** Receipts of generated text: hashes of the plan, the checkpoint and logits, with which anyone can repeat it. */

import type { CacheDType } from "../../../compiler/mod.ts";
import type { Activations } from "../../../spec/weights/activations.ts";
import { stringifyPlan } from "../../../spec/document/json.ts";
import {
  deepestError,
  errorText,
} from "../../../spec/document/schema_error.ts";
import { DataError } from "../../../spec/errors.ts";
import type { Mesh } from "../../../spec/mesh.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { Natural, Word } from "../../../spec/values.ts";
import type { Wire } from "../../../spec/wire.ts";
import type { BatchSequence } from "../sequence.ts";
import { parseJsonObject } from "../../json_file.ts";
import { sha256 } from "../../digest.ts";
import type { FileSystem } from "../../files.ts";
import { receiptErrors } from "../../saved_validator.ts";
import type { SamplingOptions } from "../sampling.ts";
import type { CheckpointHashes } from "./checkpoint_hashes.ts";

/** A receipt. Its schema is generated from this type. */
export interface Receipt {
  readonly version: 1;
  /** The model as it was given: a path or a name on the hub. */
  readonly model: string;
  /** Kind of device: "cpu", or adapters with their drivers. */
  readonly device: string;
  readonly plan: ReceiptPlan;
  readonly checkpoint: CheckpointHashes;
  readonly sequences: readonly ReceiptSequence[];
}

/** The executed plan, and the options of its compilation that change bits. */
export interface ReceiptPlan {
  readonly sha256: string;
  readonly mesh: Mesh;
  readonly kvCacheDtype?: CacheDType;
  readonly activations?: Activations;
  readonly wire?: Wire;
}

/** A sequence of a receipt. */
export interface ReceiptSequence {
  /** Token ids. */
  readonly prompt: readonly Natural[];
  readonly tokens: readonly Natural[];
  readonly sampling: ReceiptSampling;
  /** Hashes of the f32 logits of the vocabulary before some new tokens, by the index of the token. */
  readonly logits: readonly LogitsHash[];
}

/** Logits before a new token. */
export type LogitsHash = readonly [index: Natural, sha256: string];

/** Sampling options that choose tokens, and the seed. */
export interface ReceiptSampling {
  readonly temperature?: number;
  readonly topK?: Natural;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly bias?: readonly (readonly [token: Natural, bias: number])[];
  readonly seed: Word;
  readonly stream: Natural;
}

/** Hashes of logits are taken before every so many new tokens, from the first on. */
const EVERY = 8;

/** The hash of the logits before a new token, if the index of the token is selected. */
export async function logitsHash(
  logits: Float32Array,
  index: number,
): Promise<LogitsHash | undefined> {
  return index % EVERY === 0 ? [index, await sha256(logits)] : undefined;
}

/** The receipt of a sequence that was generated with the option `receipt`. */
export function receiptOf(
  { prompt, tokens, hashes }: Pick<
    BatchSequence,
    "prompt" | "tokens" | "hashes"
  >,
  options: Omit<SamplingOptions, "grammar"> & { readonly stream: number },
): ReceiptSequence {
  const { bias, seed = 0, stream } = options;
  const chosen = Object.fromEntries(
    SAMPLING.flatMap((name) =>
      options[name] === undefined ? [] : [[name, options[name]]]
    ),
  ) as { [K in typeof SAMPLING[number]]?: number };
  return {
    prompt,
    tokens,
    sampling: {
      ...chosen,
      ...bias?.size ? { bias: [...bias] } : {},
      seed,
      stream,
    },
    logits: hashes,
  };
}

/** Numeric options of a receipt. */
const SAMPLING = [
  ...["temperature", "topK", "topP", "minP"] as const,
  ...["repeatPenalty", "presencePenalty", "frequencyPenalty"] as const,
] as const;

/** Sampling options of a recorded sequence. */
export function samplingOfReceipt(
  { bias, ...sampling }: ReceiptSampling,
): SamplingOptions & { readonly stream: number } {
  return { ...sampling, ...bias ? { bias: new Map(bias) } : {} };
}

/** The plan of a receipt. */
export async function receiptPlan(
  plan: Plan,
  options: Pick<ReceiptPlan, "kvCacheDtype" | "activations" | "wire">,
): Promise<ReceiptPlan> {
  return {
    sha256: await sha256(stringifyPlan(plan)),
    mesh: plan.mesh,
    ...options,
  };
}

/** Reads a receipt. Throws DataError if the file is none. */
export async function readReceipt(
  path: string,
  files: FileSystem,
): Promise<Receipt> {
  const document = parseJsonObject(await files.readText(path), path);
  const error = deepestError(receiptErrors(document));
  if (!error) return document as unknown as Receipt;
  throw new DataError(
    `Cannot read the receipt '${path}': ${errorText(error)}. Copy it again`,
  );
}
