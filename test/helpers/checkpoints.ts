/** Checkpoints with recorded references, loaded in process. */

import { fileURLToPath } from "node:url";
import { nodeFiles } from "../../cli/files.ts";
import {
  type AdapterChoice,
  Decoder,
  decoderShape,
  type DeviceSharing,
  type HostTensor,
  loadTarget,
  type Opened,
  openTarget,
  type PlanOptions,
  planTarget,
  readTensors,
  type Tensors,
} from "../../engine/mod.ts";
import type { MeshSizes } from "../../spec/mesh.ts";
import type { Plan } from "../../spec/plan/plan.ts";

export const files = nodeFiles();

/** The folder of a checkpoint with recorded references. */
export function checkpointFolder(name: string): string {
  const path = name === "demo-lm"
    ? "../../examples/demo-lm"
    : `../references/${name}`;
  return fileURLToPath(new URL(path, import.meta.url));
}

/** Reads the recorded reference tensors of a checkpoint. */
export async function readReference(name: string): Promise<Tensors> {
  const path = `../references/${name}/reference.safetensors`;
  return await readTensors(
    fileURLToPath(new URL(path, import.meta.url)),
    files,
  );
}

/** Parses a mesh: `dp=2,ep=2`. */
export function meshOf(text: string): MeshSizes {
  return Object.fromEntries(
    text.split(",").map((pair) => {
      const [name, size] = pair.split("=");
      return [name!, Number(size)];
    }),
  );
}

/** A loaded checkpoint. */
export interface Loaded extends Opened {
  readonly decoder: Decoder;
}

/** Where and how a checkpoint is loaded. */
export interface Setup {
  readonly mesh: string;
  readonly sharing?: DeviceSharing;
  readonly adapter?: AdapterChoice;
  /** Compute outputs of the last tokens only. */
  readonly next?: NonNullable<PlanOptions["next"]>;
  /** Page sizes of a paged KV cache. */
  readonly pages?: NonNullable<PlanOptions["pages"]>;
  readonly kvCacheDtype?: NonNullable<PlanOptions["kvCacheDtype"]>;
  readonly bounds?: NonNullable<PlanOptions["bounds"]>;
  /** Seed of weights of a config.json. */
  readonly random?: number;
}

/** Loads a recorded checkpoint on a mesh. */
export async function loadCheckpoint(
  name: string,
  setup: Setup,
): Promise<Loaded> {
  return await loadFolder(checkpointFolder(name), setup);
}

/** Loads a checkpoint folder, or a config.json with random weights, on a mesh. */
export async function loadFolder(
  folder: string,
  { mesh, sharing = "shared", adapter = "auto", next, ...more }: Setup,
): Promise<Loaded> {
  const withoutWeights = more.random !== undefined;
  const target = await loadTarget(folder, files, { withoutWeights });
  const opened = await openTarget(target, files, {
    sharing,
    adapter,
    mesh: meshOf(mesh),
    need: { tokens: 128, sequences: 8, context: 128 },
    statistics: true,
    ...next ? { next } : {},
    ...more,
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  return { ...opened, decoder };
}

/** Compiles the plan of a checkpoint on a mesh. */
export async function planOn(
  name: string,
  mesh: string,
  options: PlanOptions = {},
): Promise<Plan> {
  const target = await loadTarget(checkpointFolder(name), files);
  return await planTarget(target, files, { mesh: meshOf(mesh), ...options });
}

/** Pads prompts on the right to a batch for `run`: `input_ids` and `attention_mask` [sequence, token]. */
export function padBatch(prompts: readonly (readonly number[])[]): Tensors {
  const columns = Math.max(...prompts.map(({ length }) => length));
  const ids = new Int32Array(prompts.length * columns);
  const mask = new Int32Array(prompts.length * columns);
  prompts.forEach((prompt, row) => {
    ids.set(prompt, row * columns);
    mask.fill(1, row * columns, row * columns + prompt.length);
  });
  const tensor = (data: Int32Array): HostTensor => ({
    dtype: "i32",
    shape: [prompts.length, columns],
    data,
  });
  return { input_ids: tensor(ids), attention_mask: tensor(mask) };
}

/** Returns the largest absolute difference, relative to the largest absolute recorded value. */
export function relativeError(
  found: ArrayLike<number>,
  recorded: ArrayLike<number>,
): number {
  let worst = found.length === recorded.length ? 0 : Infinity;
  let largest = 0;
  for (let i = 0; i < recorded.length; i++) {
    const difference = Math.abs(found[i]! - recorded[i]!);
    worst = difference <= worst ? worst : difference;
    largest = Math.max(largest, Math.abs(recorded[i]!));
  }
  return worst / largest;
}
