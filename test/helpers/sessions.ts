/** Plans loaded in process, below the engine: every option of a session is in the test's hands. */

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

/** What computes in a test. */
export type Target = "gpu" | "cpu";

/** Every kind of device, and why tests on it are skipped here, or false. */
export const TARGETS: readonly {
  readonly target: Target;
  readonly skip: false | string;
}[] = [
  { target: "gpu", skip: skipWithoutGpu },
  { target: "cpu", skip: skipUnasked("cpu") },
];

/** Why tests that need an adapter are skipped here, or false. */
export const skip = skipWithoutGpu;

/** Tensors of a run by name. */
export type Tensors = { readonly [name: string]: HostTensor };

/** Whether ranks share one device. */
export type Sharing = "shared" | "separate";

/** Where ranks live. */
export interface DeviceOptions {
  /** Default: gpu. */
  readonly target?: Target;
  /** Default: shared. */
  readonly sharing?: Sharing;
}

/** One device for each rank, as `--devices` says. */
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

/** CPU devices on the threads of one pool for all sessions of the process, which do not keep it alive. */
async function openCpu(count: number): Promise<Device[]> {
  const threads = await (pool ??= openCpuPool(2));
  return await Promise.all(
    Array.from({ length: count }, () => createCpuDevice({ pool: threads })),
  );
}

/** Load a verified plan. */
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

/** A file, by its path in the repository or an absolute one, read as it is asked for. */
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

/** The path of a file of the repository. */
export function repositoryFile(path: string): string {
  return resolve(fileURLToPath(new URL("../..", import.meta.url)), path);
}

/** The folder of a published checkpoint of the repository. */
export function folderOf(name: string): string {
  return name === "demo-lm" ? "examples/demo-lm" : `test/references/${name}`;
}

/** The files with the weights of a checkpoint of the repository. */
export function weightFiles(name: string): string[] {
  const folder = folderOf(name);
  return readdirSync(repositoryFile(folder)).sort()
    .filter((file) => /^model.*\.safetensors$/.test(file))
    .map((file) => `${folder}/${file}`);
}

/** The weights of a checkpoint of the repository. */
export async function openWeights(name: string): Promise<TensorDirectory> {
  return await openSafetensors(weightFiles(name).map(fileSource));
}

/** Bounds of tests: small, so that llvmpipe is quick. */
const BOUNDS: Bounds = { maxTokens: 64, maxSequences: 4, maxContext: 64 };

/** Compile a published checkpoint of the repository for a mesh. */
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

/** Prompts of some lengths as the packed inputs of a decoder; ids are arbitrary but fixed. */
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

/** An i32 vector. */
export function i32(values: readonly number[]): HostTensor {
  return {
    dtype: "i32",
    shape: [values.length],
    data: Int32Array.from(values),
  };
}

/** An f32 tensor. */
export function f32(
  shape: readonly number[],
  values: ArrayLike<number>,
): HostTensor {
  return { dtype: "f32", shape, data: Float32Array.from(values) };
}

/** Outputs as the bytes of a file: equal bytes are equal bits. */
export function bytesOf(outputs: Tensors): string {
  return Buffer.from(writeSafetensors(outputs)).toString("base64");
}

/** A device with some of its methods replaced. */
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
