/**
 * TensorFlow.js with its WebGPU backend. The used part of its API is declared here, so the project can be type-checked
 * without it.
 */

import { politely } from "../../runtime/gpu/politely.ts";
import { importPeer } from "./install.ts";
import { offerWebGpu } from "./webgpu.ts";

/** A tensor. Its values stay on the device until they are read. */
export interface TfTensor {
  readonly shape: readonly number[];
  data(): Promise<Float32Array | Int32Array>;
  dispose(): void;
}

type Axis = number | readonly number[];

/** The used part of TensorFlow.js. */
export interface Tf {
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  tensor(
    values: Float32Array | Int32Array,
    shape: readonly number[],
    dtype: "float32" | "int32",
  ): TfTensor;
  tidy<T>(body: () => T): T;
  /** Marks a tensor so that a later `tidy` or `dispose` frees it. */
  keep(x: TfTensor): TfTensor;
  dispose(x: object): void;
  matMul(a: TfTensor, b: TfTensor, turnA?: boolean, turnB?: boolean): TfTensor;
  add(a: TfTensor, b: TfTensor | number): TfTensor;
  sub(a: TfTensor, b: TfTensor): TfTensor;
  mul(a: TfTensor, b: TfTensor | number): TfTensor;
  neg(x: TfTensor): TfTensor;
  square(x: TfTensor): TfTensor;
  rsqrt(x: TfTensor): TfTensor;
  sigmoid(x: TfTensor): TfTensor;
  softmax(x: TfTensor): TfTensor;
  mean(x: TfTensor, axis: Axis, keepDims?: boolean): TfTensor;
  sum(x: TfTensor, axis: Axis, keepDims?: boolean): TfTensor;
  topk(x: TfTensor, k: number): { values: TfTensor; indices: TfTensor };
  gather(x: TfTensor, indices: TfTensor, axis?: number): TfTensor;
  slice(
    x: TfTensor,
    begin: readonly number[],
    size: readonly number[],
  ): TfTensor;
  concat(parts: readonly TfTensor[], axis: number): TfTensor;
  reshape(x: TfTensor, shape: readonly number[]): TfTensor;
  transpose(x: TfTensor, axes: readonly number[]): TfTensor;
  expandDims(x: TfTensor, axis: number): TfTensor;
  greaterEqual(a: TfTensor, b: TfTensor): TfTensor;
  where(condition: TfTensor, a: TfTensor, b: TfTensor): TfTensor;
  zerosLike(x: TfTensor): TfTensor;
}

/** Loads TensorFlow.js with its WebGPU backend on the adapter with a name. */
export async function loadTf(adapter: string): Promise<Tf> {
  await offerWebGpu(adapter);
  const tf = await importPeer("@tensorflow/tfjs-core") as Tf;
  await importPeer("@tensorflow/tfjs-backend-webgpu");
  if (!await politely(tf.setBackend("webgpu"))) {
    throw new Error(
      "Cannot compare with TensorFlow.js: its WebGPU backend did not start. Choose another adapter",
    );
  }
  await tf.ready();
  return tf;
}

/** Reads a tensor. It waits in the same way as this project's runs. */
export async function valuesOf(x: TfTensor): Promise<Float32Array> {
  return await politely(x.data()) as Float32Array;
}
