/**
 * jax-js with its WebGPU backend. The used part of its API is declared here, so the project can be type-checked without
 * it.
 */

import { politely } from "../../runtime/gpu/politely.ts";
import { importPeer } from "./install.ts";
import { offerWebGpu } from "./webgpu.ts";

/** An array. A function consumes its arguments, unless they are passed as `ref`. */
export interface JaxArray {
  readonly ref: JaxArray;
  readonly shape: number[];
  data(): Promise<Float32Array | Int32Array>;
  dispose(): void;
  add(other: JaxArray | number): JaxArray;
  sub(other: JaxArray | number): JaxArray;
  mul(other: JaxArray | number): JaxArray;
  div(other: JaxArray | number): JaxArray;
  greaterEqual(other: JaxArray): JaxArray;
  sum(axis: number): JaxArray;
  mean(axis: number, options?: { readonly keepdims?: boolean }): JaxArray;
  reshape(shape: readonly number[]): JaxArray;
  transpose(axes: readonly number[]): JaxArray;
  slice(...index: readonly (number | [] | [number, number])[]): JaxArray;
}

/** The used part of jax-js. */
export interface Jax {
  readonly numpy: {
    array(
      values: Float32Array | Int32Array,
      options?: { readonly shape?: readonly number[] },
    ): JaxArray;
    matmul(a: JaxArray, b: JaxArray): JaxArray;
    take(x: JaxArray, indices: JaxArray, axis: number): JaxArray;
    concatenate(parts: readonly JaxArray[], axis: number): JaxArray;
    where(condition: JaxArray, a: JaxArray, b: JaxArray | number): JaxArray;
    sqrt(x: JaxArray): JaxArray;
    square(x: JaxArray): JaxArray;
  };
  readonly nn: {
    sigmoid(x: JaxArray): JaxArray;
    softmax(x: JaxArray, axis: number): JaxArray;
  };
  readonly lax: { topK(x: JaxArray, k: number): [JaxArray, JaxArray] };
  readonly jit: <F extends (...args: JaxArray[]) => unknown>(body: F) => F;
  init(device: "webgpu"): Promise<readonly string[]>;
  defaultDevice(device: "webgpu"): void;
}

/** Loads jax-js with its WebGPU backend on the adapter with a name. */
export async function loadJax(adapter: string): Promise<Jax> {
  await offerWebGpu(adapter);
  const jax = await importPeer("@jax-js/jax") as Jax;
  const devices = await jax.init("webgpu");
  if (!devices.includes("webgpu")) {
    throw new Error(
      "Cannot compare with jax-js: its WebGPU backend did not start. Choose another adapter",
    );
  }
  jax.defaultDevice("webgpu");
  return jax;
}

/** Reads and consumes an array. It waits in the same way as this project's runs. */
export async function takeValues(x: JaxArray): Promise<Float32Array> {
  return await politely(x.data()) as Float32Array;
}
