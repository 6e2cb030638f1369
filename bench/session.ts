/** Plans on devices for the benchmarks: random or given weights, and a measurement of waiting time. */

import { availableParallelism } from "node:os";
import { compile, type CompileOptions, type Model } from "../compiler/mod.ts";
import { type AdapterChoice, selectDevices } from "../engine/devices.ts";
import { tuningOf } from "../engine/tune/tuning.ts";
import {
  createSession,
  type Device,
  type FileSource,
  type HostTensor,
  openSafetensors,
  type Session,
  writeSafetensors,
} from "../runtime/mod.ts";
import { withoutRows } from "../runtime/outputs.ts";
import { sourceNames } from "../spec/axis_parts.ts";
import type { Plan } from "../spec/plan/plan.ts";

/** A loaded plan, its devices, and the time that the host has waited for them. */
export interface Bench {
  readonly plan: Plan;
  readonly session: Session;
  /** Runs the first program for all outputs, reads none of their rows, and waits until the devices are idle. */
  compute(inputs: { readonly [name: string]: HostTensor }): Promise<void>;
  /** Resolves when the devices are idle. */
  idle(): Promise<void>;
  /** Returns the milliseconds of waiting for the devices since the last call. */
  takeWaiting(): number;
  /** Closes the session and its devices. */
  close(): Promise<void>;
}

/** Options for loading a benchmark. */
export interface LoadOptions extends CompileOptions {
  readonly adapter: AdapterChoice;
  /** Default: random weights. */
  readonly weights?: NonNullable<CompileOptions["weights"]>;
  readonly files?: readonly FileSource[];
}

/** Compiles a model, opens its devices and loads weights. */
export async function load(model: Model, options: LoadOptions): Promise<Bench> {
  const { adapter, files, ...compileOptions } = options;
  const selected = await selectDevices({
    sharing: "shared",
    adapter,
    threads: availableParallelism(),
  });
  const plan = await compile(model, {
    ...compileOptions,
    limits: selected.limits,
    tuning: options.tuning ?? tuningOf(selected, {}),
  });
  // Reads overlap. Counts the time in which at least one read is waited for.
  let waited = 0;
  let waiting = 0;
  let since = 0;
  const wait = async <T>(promise: Promise<T>): Promise<T> => {
    if (waiting++ === 0) since = performance.now();
    try {
      return await promise;
    } finally {
      if (--waiting === 0) waited += performance.now() - since;
    }
  };
  const timed = new Map<Device, Device>();
  const opened = await selected.open(plan);
  const devices = opened.devices.map((device) => {
    const known = timed.get(device) ?? countWaiting(device, wait);
    timed.set(device, known);
    return known;
  });
  const tensors = await openSafetensors(files ?? [randomWeights(plan)]);
  const session = await createSession(plan, { devices, tensors });
  const idle = async () => {
    for (const device of timed.values()) await device.idle();
  };
  const [program] = plan.programs;
  return {
    plan,
    session,
    compute: async (inputs) => {
      await session.run(program!.name, inputs, withoutRows(program!));
      await idle();
    },
    idle,
    takeWaiting: () => {
      const ms = waited;
      waited = 0;
      return ms;
    },
    close: async () => {
      session.close();
      await opened.close();
    },
  };
}

/** Wraps a device. `wait` receives every promise that depends on the device's progress. */
function countWaiting(
  device: Device,
  wait: <T>(promise: Promise<T>) => Promise<T>,
): Device {
  return {
    kind: device.kind,
    name: device.name,
    limits: device.limits,
    prepare: (kernels, progress) => device.prepare(kernels, progress),
    createBuffer: (bytes, label) => device.createBuffer(bytes, label),
    range: (buffer, offset, bytes) => device.range(buffer, offset, bytes),
    write: (buffer, offset, data) => device.write(buffer, offset, data),
    launch: (kernel, buffers, workgroups, label) =>
      device.launch(kernel, buffers, workgroups, label),
    ...device.launchAll
      ? { launchAll: (launches) => device.launchAll!(launches) }
      : {},
    copy: (from, fromOffset, to, toOffset, bytes) =>
      device.copy(from, fromOffset, to, toOffset, bytes),
    read: (buffer, offset, bytes) => wait(device.read(buffer, offset, bytes)),
    createStaging: (use, bytes) => {
      const staging = device.createStaging(use, bytes);
      return {
        bytes: staging.bytes,
        open: (buffer, spans) => wait(staging.open(buffer, spans)),
        close: () => staging.close(),
      };
    },
    submit: () => device.submit(),
    idle: () => wait(device.idle()),
    destroy: () => device.destroy(),
  };
}

/** Returns reproducible numbers from -1 to 1 (mulberry32). */
export function randomValues(length: number, seed = 1): Float32Array {
  let state = seed;
  return Float32Array.from({ length }, () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

/** Returns a safetensors file in memory with random values for every weight of a plan. */
export function randomWeights(plan: Plan): FileSource {
  const tensors: { [name: string]: HostTensor } = {};
  for (const weight of plan.weights) {
    const { shape } = weight;
    for (const [i, name] of sourceNames(plan, weight).entries()) {
      const elements = shape.reduce((product, size) => product * size, 1);
      const scale = Math.sqrt(3 / shape.at(-1)!);
      const data = randomValues(elements, i + 1).map((v) => v * scale);
      tensors[name] = { dtype: "f32", shape, data };
    }
  }
  const bytes = writeSafetensors(tensors);
  return {
    name: "random weights",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  };
}
