/** Small models with random weights: results of the reference evaluator and of compiled plans on devices. */

import { shortAxis } from "../../spec/axis_name.ts";
import t, { type Test } from "tap";
import type { CompileOptions, Model } from "../../compiler/mod.ts";
import { compileGraph } from "../../compiler/compile.ts";
import {
  evaluate,
  type Tensors,
} from "../../compiler/graph/evaluate/evaluate.ts";
import type { Graph, Node } from "../../compiler/graph/graph.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { roundF16 } from "../../spec/half.ts";
import type { Value } from "../../compiler/graph/evaluate/value.ts";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import {
  createGpuDevice,
  createSession,
  type Device,
  type HostTensor,
  listAdapters,
  openSafetensors,
  type Session,
  type TensorDirectory,
} from "../../runtime/mod.ts";
import { type StoredDType, storedDType } from "../../spec/dtype.ts";
import { GUARANTEED_LIMITS } from "../../spec/limits.ts";
import { verifyPlan } from "../../spec/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";

import {
  gpuIsSoftware,
  isInGpuTurn,
  skipUnasked,
  skipWithoutGpu,
} from "./needs.ts";
import { inTurn, oneInTurn, repeatWith } from "./seed.ts";
import { watchDevice } from "./sessions.ts";
import { value16 } from "./stored_weights.ts";

export { waves } from "./waves.ts";

/** Placements of eight experts. In the last one, a rank has one expert and another none. */
export const EXPERT_MESHES: readonly CompileOptions[] = [
  { mesh: { ep: 2 } },
  { mesh: { ep: 3 } },
  { mesh: { dp: 2, ep: 2 } },
  {
    mesh: { ep: 3 },
    place: {
      token: "ep",
      expert: { over: "ep", table: [[7, 0, 5, 2, 6, 1, 3], [], [4]] },
    },
  },
];

/** A model with its operands. */
export interface Case {
  readonly model: Model | Graph;
  /** Lengths of dynamic axes. Default: their bounds. */
  readonly lengths?: { readonly [axis: string]: number };
  /** Inputs of each call, in order. Missing ones are random. Calls share states. */
  readonly calls?: readonly Tensors[];
  /** Storage dtype of the parameters. Default: f32. */
  readonly stored?: StoredDType;
  /** Maximum error, relative to the largest magnitude. Integers are exact. Default: 1e-5. */
  readonly tolerance?: number;
}

/** Outputs of each call. */
type Results = readonly { readonly [output: string]: HostTensor }[];

/** Reason to skip GPU tests, or false. */
export const skip = skipWithoutGpu;

/** One device of each kind, opened on demand and shared by ranks and plans. */
const opened = new Map<"cpu" | "gpu", Promise<Device>>();

/** Returns the device of a kind. */
export function deviceOf(kind: "cpu" | "gpu"): Promise<Device> {
  const known = opened.get(kind);
  if (known) return known;
  const device = kind === "cpu" ? createCpuDevice() : openGpuDevice();
  opened.set(kind, device);
  return device;
}

async function openGpuDevice(): Promise<Device> {
  const [adapter] = await listAdapters();
  return await createGpuDevice(adapter!, {
    // Limits of most devices; plans state what they need.
    limits: { ...GUARANTEED_LIMITS, maxStorageBuffersPerShaderStage: 16 },
    features: [],
  });
}

/** Closes all open devices. */
export async function closeDevices(): Promise<void> {
  for (const device of opened.values()) (await device).destroy();
  opened.clear();
}

function graphOf({ model }: Case): Graph {
  return "nodes" in model ? model : trace(model);
}

/** Pseudorandom f32 values between -1 and 1, seeded by a name. */
function randoms(name: string, count: number): number[] {
  let state = seedOf(name);
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.fround(state / 2 ** 31 - 1);
  });
}

/** Hash of a name. */
function seedOf(name: string): number {
  return [...name].reduce((n, c) => (n * 31 + c.charCodeAt(0)) >>> 0, 7);
}

function lengthsOf(graph: Graph, { lengths = {} }: Case) {
  return (axis: string) => lengths[axis] ?? graph.axes[axis]!.size;
}

function elements(node: Node, length: (axis: string) => number): number {
  return node.axes.reduce((n, axis) => n * length(axis), 1);
}

/** Random values of a node's dtype; integers from -3 to 3. */
function randomValues(node: Node, name: string, count: number): number[] {
  const values = randoms(name, count);
  if (node.dtype === "f32") return values;
  if (node.dtype === "f16") return values.map(roundF16);
  return values.map((x) => Math.trunc(x * 3.99)).map((x) =>
    node.dtype === "u32" ? Math.abs(x) : x
  );
}

const SCRATCH = new DataView(new ArrayBuffer(4));

/** Returns the bits of a number as a 16-bit float, truncated. */
function bits16(x: number, stored: StoredDType): number {
  if (stored === "bf16") {
    SCRATCH.setFloat32(0, x);
    return SCRATCH.getUint16(0);
  }
  const size = Math.abs(roundF16(x));
  const sign = x < 0 ? 0x8000 : 0;
  if (size < 2 ** -14) return sign | Math.trunc(size / 2 ** -24);
  const exponent = Math.floor(Math.log2(size));
  return sign | (exponent + 15) << 10 |
    Math.trunc((size / 2 ** exponent - 1) * 1024);
}

interface Stored {
  readonly values: readonly number[];
  readonly bytes: Uint8Array;
}

function store(values: readonly number[], stored: StoredDType): Stored {
  if (stored === "f16" || stored === "bf16") {
    const bits = Uint16Array.from(values, (x) => bits16(x, stored));
    return {
      values: [...bits].map((b) => value16(b, stored)),
      bytes: new Uint8Array(bits.buffer),
    };
  }
  const array = stored === "f32"
    ? Float32Array.from(values)
    : stored === "i32"
    ? Int32Array.from(values)
    : Uint32Array.from(values);
  return { values: [...array], bytes: new Uint8Array(array.buffer) };
}

interface Checkpoint {
  readonly params: { readonly [name: string]: readonly number[] };
  readonly dtypes: { readonly [tensor: string]: StoredDType };
  readonly tensors: TensorDirectory;
}

/** Creates a checkpoint in memory with all parameters of the graph. */
async function checkpointOf(graph: Graph, of: Case): Promise<Checkpoint> {
  const length = lengthsOf(graph, of);
  const params: { [name: string]: readonly number[] } = {};
  const dtypes: { [tensor: string]: StoredDType } = {};
  const header: { [tensor: string]: unknown } = {};
  const parts: Uint8Array[] = [];
  let end = 0;
  for (const node of graph.nodes) {
    if (node.primitive !== "param") continue;
    const { name, stack } = node.params;
    const data = store(
      randomValues(node, name, elements(node, length)),
      node.dtype === "f32" || node.dtype === "f16"
        ? of.stored ?? "f32"
        : storedDType(node.dtype),
    );
    params[name] = data.values;
    const dtype = node.dtype === "f32" || node.dtype === "f16"
      ? of.stored ?? "f32"
      : storedDType(node.dtype);
    const shape = node.axes.filter((axis) => axis !== stack).map(length);
    const count = stack === undefined ? 1 : length(stack);
    const bytes = data.bytes.length / count;
    for (let i = 0; i < count; i++) {
      const tensor = stack === undefined
        ? name
        : name.replaceAll(`{${shortAxis(stack)}}`, String(i));
      dtypes[tensor] = dtype;
      header[tensor] = {
        dtype: dtype.toUpperCase(),
        shape,
        data_offsets: [end, end += bytes],
      };
      parts.push(data.bytes.subarray(i * bytes, (i + 1) * bytes));
    }
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const file = Buffer.concat([new Uint8Array(8), text, ...parts]);
  file.writeBigUInt64LE(BigInt(text.length));
  const source = {
    name: "random weights",
    size: file.length,
    read: (offset: number, bytes: number) =>
      Promise.resolve(new Uint8Array(file.subarray(offset, offset + bytes))),
  };
  return { params, dtypes, tensors: await openSafetensors([source]) };
}

/** Inputs of a call, and the lengths of dynamic axes. */
interface Call {
  readonly inputs: Tensors;
  readonly lengths: { readonly [axis: string]: number };
}

/** Returns all calls. Given inputs determine lengths; other inputs are random. */
function callsOf(graph: Graph, of: Case): Call[] {
  const inputs = graph.nodes.filter((node) => node.primitive === "input");
  return (of.calls ?? [{}]).map((values, call) => {
    const lengths: { [axis: string]: number } = { ...of.lengths };
    for (const { params: { name }, axes } of inputs) {
      const [free, ...more] = axes.filter((axis) => graph.axes[axis]!.dynamic);
      const data = values[name];
      if (data === undefined || free === undefined || more.length) continue;
      const rest = axes.filter((axis) => axis !== free)
        .reduce((n, axis) => n * graph.axes[axis]!.size, 1);
      lengths[free] = data.length / rest;
    }
    const length = lengthsOf(graph, { ...of, lengths });
    const data = inputs.map((node) => {
      const { name } = node.params;
      const count = elements(node, length);
      return [
        name,
        values[name] ?? randomValues(node, `${name} ${call}`, count),
      ];
    });
    return { inputs: Object.fromEntries(data), lengths };
  });
}

/** Converts an input to a tensor of a session. */
function hostTensor(
  node: Node,
  data: ArrayLike<number>,
  length: (axis: string) => number,
): HostTensor {
  const shape = node.axes.map(length);
  const dtype = storedDType(node.dtype) as HostTensor["dtype"];
  const array = dtype === "f32"
    ? Float32Array.from(data)
    : dtype === "i32"
    ? Int32Array.from(data)
    : Uint32Array.from(data);
  return { dtype, shape, data: array };
}

type References = readonly { readonly [output: string]: Value }[];

const references = new WeakMap<Case, Promise<References>>();

/** Evaluates all calls with the reference evaluator, once per case. */
export function reference(of: Case): Promise<References> {
  const known = references.get(of) ?? evaluated(of);
  references.set(of, known);
  return known;
}

async function evaluated(of: Case): Promise<References> {
  const graph = graphOf(of);
  const { params } = await checkpointOf(graph, of);
  let states: Tensors = {};
  return callsOf(graph, of).map((call) => {
    // Training also updates parameters.
    const result = evaluate(graph, {
      ...call,
      params: { ...params, ...states },
      states,
    });
    states = Object.fromEntries(
      Object.entries(result.states).map(([name, { data }]) => [name, data]),
    );
    return result.outputs;
  });
}

/** Compiles a case. Throws Error if the plan is not legal. */
export async function compileCase(
  of: Case,
  options: CompileOptions = {},
): Promise<Plan> {
  const { dtypes } = await checkpointOf(graphOf(of), of);
  const plan = await compileGraph(graphOf(of), {
    ...options,
    weights: dtypes,
  });
  const errors = verifyPlan(plan);
  if (errors.length > 0) {
    throw new Error(
      `illegal plan:\n${
        errors.map((error) => JSON.stringify(error)).join("\n")
      }`,
    );
  }
  return plan;
}

/** Compiles a case and runs all calls. */
export async function runCase(
  of: Case,
  kind: "cpu" | "gpu",
  options: CompileOptions = {},
): Promise<Results> {
  return await runPlan(of, kind, await planOf(of, options));
}

const plans = new WeakMap<Case, Map<string, Promise<Plan>>>();

/** Compiles a case once for all devices. */
function planOf(of: Case, options: CompileOptions): Promise<Plan> {
  const known = plans.get(of) ?? new Map<string, Promise<Plan>>();
  plans.set(of, known);
  const key = JSON.stringify(options);
  const plan = known.get(key) ?? compileCase(of, options);
  known.set(key, plan);
  return plan;
}

/** Runs all calls of a case with a compiled plan. */
export async function runPlan(
  of: Case,
  kind: "cpu" | "gpu",
  plan: Plan,
): Promise<Results> {
  const device = withGarbage(await deviceOf(kind), plan);
  const session = await createSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(device),
    tensors: await tensorsOf(of),
  });
  return await runCalls(of, session);
}

/** Returns a device that fills new scratch buffers with NaN: results must not depend on their old contents. */
function withGarbage(device: Device, { buffers }: Plan): Device {
  const scratch = new Set(
    Object.values(buffers).filter(({ kind }) => kind === "scratch")
      .map(({ allocation }) => `allocation ${allocation}`),
  );
  return watchDevice(device, {
    createBuffer(bytes, label) {
      const buffer = device.createBuffer(bytes, label);
      if (scratch.has(label.replace(/^rank \d+ /, ""))) {
        device.write(buffer, 0, new Uint8Array(bytes).fill(255));
      }
      return buffer;
    },
  });
}

/** Returns the checkpoint of a case. */
export async function tensorsOf(of: Case): Promise<TensorDirectory> {
  return (await checkpointOf(graphOf(of), of)).tensors;
}

/** Runs all calls of a case in a session of its plan. */
export async function runCalls(of: Case, session: Session): Promise<Results> {
  const graph = graphOf(of);
  const results: { readonly [output: string]: HostTensor }[] = [];
  for (const { inputs, lengths } of callsOf(graph, of)) {
    const length = lengthsOf(graph, { ...of, lengths });
    const tensors = Object.fromEntries(graph.nodes.flatMap((node) => {
      if (node.primitive !== "input") return [];
      const { name } = node.params;
      return [[name, hostTensor(node, inputs[name]!, length)]];
    }));
    results.push(await session.run("main", tensors));
  }
  return results;
}

/** Returns the first difference of a result from the reference, or undefined. */
function difference(
  found: HostTensor | undefined,
  wanted: Value,
  tolerance: number,
): string | undefined {
  if (!found) return "is missing";
  if (found.shape.join() !== wanted.shape.join()) {
    return `has shape [${found.shape}], not [${wanted.shape}]`;
  }
  const scale = Math.max(1e-6, ...[...wanted.data].map(Math.abs));
  const exact = wanted.dtype === "i32" || wanted.dtype === "u32";
  const limit = exact ? 0 : scale *
    Math.max(tolerance, wanted.dtype === "f16" ? 2e-3 : 0);
  // A NaN is a difference, unless the reference has NaN or infinity.
  const at = [...wanted.data].findIndex((x, i) => {
    const y = found.data[i]!;
    return !(Object.is(x, y) || x === y || Math.abs(x - y) <= limit);
  });
  return at < 0
    ? undefined
    : `is ${found.data[at]} at ${at}, not ${wanted.data[at]}`;
}

/** Returns all differences of a plan's results from the reference. */
export async function differences(
  of: Case,
  kind: "cpu" | "gpu",
  options: CompileOptions = {},
): Promise<string[]> {
  const wanted = await reference(of);
  const found = await runCase(of, kind, options);
  return wanted.flatMap((outputs, call) =>
    Object.entries(outputs).flatMap(([name, value]) => {
      const tolerance = of.tolerance ?? 1e-5;
      const text = difference(found[call]![name], value, tolerance);
      return text ? [`output '${name}' of call ${call} ${text}`] : [];
    })
  );
}

/**
 * Returns a third of the meshes except the first, in rotation; a quarter on a software GPU, where compiling the kernels
 * of a mesh takes seconds.
 */
export function othersInTurn<T>(
  meshes: readonly T[],
  kind: "cpu" | "gpu",
): readonly T[] {
  const isSlow = kind === "gpu" && gpuIsSoftware;
  return inTurn(meshes.slice(1), isSlow ? 4 : 3);
}

/**
 * Compares results of a plan with the reference: on the first mesh and on others in rotation; on a software GPU, on one
 * mesh.
 */
export async function matches(
  t: Test,
  of: Case,
  kind: "cpu" | "gpu",
  meshes: readonly CompileOptions[] = [{}],
): Promise<void> {
  const some = kind === "gpu" && gpuIsSoftware
    ? oneInTurn(meshes)
    : [meshes[0]!, ...othersInTurn(meshes, kind)];
  for (const options of some) {
    const { mesh, place } = options;
    const title = JSON.stringify({ mesh, place, stored: of.stored });
    const wrong = await differences(of, kind, options);
    t.same(wrong, [], `matches the reference, ${title}`);
  }
}

/** Meshes of one rank and several, with even and uneven numbers of experts. */
export const MESHES: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 2 } },
  { mesh: { ep: 3 } },
  { mesh: { dp: 2, ep: 2 } },
];

/** Creates tests of a case on both kinds of device. A software GPU runs a fifth of the cases, in rotation. */
export function holds(
  name: string,
  of: Case,
  meshes: readonly CompileOptions[] = MESHES,
): void {
  t.test(name, { skip: skipUnasked("cpu") }, async (t) => {
    await matches(t, of, "cpu", meshes);
  });
  if (!isInGpuTurn(name)) return;
  t.test(`${name}, on a GPU`, { skip }, async (t) => {
    await matches(t, of, "gpu", meshes);
  });
}

/** Creates a test that meshes, in rotation, have the bits of the first one on the CPU device. */
export function keepsBits(
  name: string,
  of: Case,
  meshes: readonly CompileOptions[],
): void {
  t.test(name, { skip: skipUnasked("cpu") }, async (t) => {
    const [one, ...others] = await Promise.all(
      [meshes[0]!, ...othersInTurn(meshes, "cpu")].map(async (options) =>
        digest(await runCase(of, "cpu", options))
      ),
    );
    for (const found of others) t.equal(found, one, repeatWith());
  });
}

/** Returns the bytes of all results, as text. */
export function digest(results: Results): string {
  return results.map((outputs) =>
    Object.keys(outputs).sort().map((name) =>
      `${name} ${
        Buffer.from(outputs[name]!.data.slice().buffer).toString("base64")
      }`
    ).join("\n")
  ).join("\n");
}
