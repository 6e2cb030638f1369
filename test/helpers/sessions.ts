/** Sessions of plans in process, below the engine, with all options of sessions. */

import {
  closeSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
} from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  compile,
  type CompileOptions,
  type Model,
} from "../../compiler/mod.ts";
import type { Bounds } from "../../models/mod.ts";
import { publishedModel } from "../../models/published.ts";
import {
  createGpuDevice,
  createSession,
  type CreateSessionOptions,
  type Device,
  type FileSource,
  type HostTensor,
  listAdapters,
  openSafetensors,
  type Session,
  type TensorDirectory,
  writeSafetensors,
} from "../../runtime/mod.ts";
import { createCpuDevice, openCpuPool } from "../../runtime/cpu/mod.ts";
import type { StoredDType } from "../../spec/dtype.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { assertLegal } from "../../spec/mod.ts";
import { skipUnasked, skipWithoutGpu } from "./needs.ts";

const [adapter] = await listAdapters();

/** Device kind of a test. */
export type Target = "gpu" | "cpu";

/** All device kinds. `skip`: reason to skip their tests, or false. */
export const TARGETS: readonly {
  readonly target: Target;
  readonly skip: false | string;
}[] = [
  { target: "gpu", skip: skipWithoutGpu },
  { target: "cpu", skip: skipUnasked("cpu") },
];

/** Reason to skip tests that need an adapter, or false. */
export const skip = skipWithoutGpu;

/** Tensors of a run, by name. */
export type Tensors = { readonly [name: string]: HostTensor };

/** Whether ranks share one device. */
export type Sharing = "shared" | "separate";

/** Devices of ranks. */
export interface DeviceOptions {
  /** Default: gpu. */
  readonly target?: Target;
  /** Default: shared. */
  readonly sharing?: Sharing;
}

/** Opens devices, as `--devices` does. Returns one per rank. */
export async function openDevices(
  plan: Plan,
  { target = "gpu", sharing = "shared" }: DeviceOptions = {},
): Promise<Device[]> {
  const count = sharing === "shared" ? 1 : plan.ranks;
  const devices = target === "cpu"
    ? await openCpu(count)
    : await Promise.all(Array.from({ length: count }, () =>
      createGpuDevice(adapter!, {
        limits: plan.requiredLimits,
        features: plan.requiredFeatures,
      })));
  return Array.from(
    { length: plan.ranks },
    (_, rank) => devices[rank % count]!,
  );
}

let pool: ReturnType<typeof openCpuPool> | undefined;

/** Opens CPU devices on one thread pool for all sessions of the process. The pool does not keep the process alive. */
async function openCpu(count: number): Promise<Device[]> {
  const threads = await (pool ??= openCpuPool(2));
  return await Promise.all(
    Array.from({ length: count }, () => createCpuDevice({ pool: threads })),
  );
}

/** Verifies and loads a plan. */
export async function openSession(
  plan: Plan,
  options: Partial<CreateSessionOptions> & DeviceOptions = {},
): Promise<Session> {
  const { target, sharing, ...rest } = options;
  const devices = rest.devices ??
    await openDevices(plan, {
      ...(target ? { target } : {}),
      ...(sharing ? { sharing } : {}),
    });
  return await createSession(plan, { verify: assertLegal, ...rest, devices });
}

/** Source of a file, by an absolute path or one in the repository. Opens the file for each read. */
export function fileSource(path: string): FileSource {
  const name = repositoryFile(path);
  const open = openSync(name, "r");
  const { size } = fstatSync(open);
  closeSync(open);
  return {
    name,
    size,
    read(offset, length) {
      const file = openSync(name, "r");
      try {
        const bytes = new Uint8Array(length);
        const read = readSync(file, bytes, 0, length, offset);
        return Promise.resolve(bytes.subarray(0, read));
      } finally {
        closeSync(file);
      }
    },
  };
}

/** Returns the absolute path of a file of the repository. */
export function repositoryFile(path: string): string {
  return resolve(fileURLToPath(new URL("../..", import.meta.url)), path);
}

/** Returns the folder of a published checkpoint of the repository. */
export function folderOf(name: string): string {
  return name === "demo-lm" ? "examples/demo-lm" : `test/references/${name}`;
}

/** Returns the weight files of a checkpoint of the repository. */
export function weightFiles(name: string): string[] {
  const folder = folderOf(name);
  return readdirSync(repositoryFile(folder)).sort()
    .filter((file) => /^model.*\.safetensors$/.test(file))
    .map((file) => `${folder}/${file}`);
}

/** Opens the weights of a checkpoint of the repository. */
export async function openWeights(name: string): Promise<TensorDirectory> {
  return await openSafetensors(weightFiles(name).map(fileSource));
}

/** Bounds of tests, small for software GPUs. */
const BOUNDS: Bounds = { maxTokens: 64, maxSequences: 4, maxContext: 64 };

/** Compiles a published checkpoint of the repository for a mesh. */
export async function compileCheckpoint(
  name: string,
  { maxContext = BOUNDS.maxContext, ...options }:
    & CompileOptions
    & Partial<Pick<Bounds, "maxContext">> = {},
): Promise<Plan> {
  const config = repositoryFile(`${folderOf(name)}/config.json`);
  const { build } = publishedModel(JSON.parse(readFileSync(config, "utf8")));
  const model: Model = build({ ...BOUNDS, maxContext });
  const weights = Object.fromEntries(
    [...await openWeights(name)].map(([tensor, { dtype }]) => [
      tensor,
      dtype.toLowerCase() as StoredDType,
    ]),
  );
  return await compile(model, { ...options, weights });
}

/** Returns prompts of some lengths as packed inputs of a decoder, with deterministic ids. */
export function packedPrompts(lengths: readonly number[]): Tensors {
  const ids: number[] = [], sequence: number[] = [], position: number[] = [];
  for (const [s, length] of lengths.entries()) {
    for (let p = 0; p < length; p++) {
      ids.push(3 + (31 * s + 17 * p + p * p) % 150);
      sequence.push(s);
      position.push(p);
    }
  }
  return { ids: i32(ids), sequence: i32(sequence), position: i32(position) };
}

export function i32(values: readonly number[]): HostTensor {
  return {
    dtype: "i32",
    shape: [values.length],
    data: Int32Array.from(values),
  };
}

export function f32(
  shape: readonly number[],
  values: ArrayLike<number>,
): HostTensor {
  return { dtype: "f32", shape, data: Float32Array.from(values) };
}

/** Returns the bytes of outputs, as text. */
export function bytesOf(outputs: Tensors): string {
  return Buffer.from(writeSafetensors(outputs)).toString("base64");
}

/** Returns a device with some methods replaced. */
export function watchDevice(device: Device, methods: Partial<Device>): Device {
  return new Proxy(device, {
    get(target, key) {
      const own: unknown = Reflect.get(methods, key);
      if (own !== undefined) return own;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
