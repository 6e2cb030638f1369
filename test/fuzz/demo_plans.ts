/** The plans of the bundled checkpoint, and runs that depend on every step of them. */

import { readFile } from "node:fs/promises";
import path from "node:path";
import {
  ACCUMULATE,
  adamw,
  compile,
  type CompileOptions,
  compileTraining,
  type Model,
  STEP_INPUTS,
  VALIDATE,
} from "../../compiler/mod.ts";
import { storedDTypes } from "../../engine/weights.ts";
import { publishedModel } from "../../models/mod.ts";
import {
  createSession,
  type HostTensor,
  openSafetensors,
  type Session,
  type TensorDirectory,
} from "../../runtime/mod.ts";
import { CpuPool, createCpuDevice } from "../../runtime/cpu/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { Plan } from "../../spec/plan.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";

/** What is compiled: for inference, or a step of training with its programs that accumulate and validate. */
export interface PlanSource {
  readonly name: string;
  readonly what: "inference" | "training";
  readonly options: CompileOptions;
}

type Mesh = NonNullable<CompileOptions["mesh"]>;

/** Every mesh, for both. */
const MESHES: readonly Mesh[] = [
  { ep: 1 },
  { ep: 2 },
  { dp: 2, ep: 2 },
  { tp: 2, ep: 2 },
];

function meshName(mesh: Mesh): string {
  return Object.entries(mesh).map((pair) => pair.join("=")).join();
}

/** The plans whose steps are changed. */
export const SOURCES: readonly PlanSource[] = [
  ...MESHES.flatMap((mesh) =>
    (["inference", "training"] as const).map((what) => ({
      ...{ name: `${what} ${meshName(mesh)}`, what, options: { mesh } },
    }))
  ),
  {
    ...{ name: "inference ep=2 in chunks", what: "inference" },
    options: { mesh: { ep: 2 }, chunks: 2 },
  },
  {
    ...{ name: "inference ep=2, tokens sent once", what: "inference" },
    options: { mesh: { ep: 2 }, sendOnce: true },
  },
  {
    ...{ name: "training dp=2,ep=2, sharded states", what: "training" },
    options: { mesh: { dp: 2, ep: 2 }, zero: 1 },
  },
];

const BOUNDS = { maxTokens: 8, maxSequences: 2, maxContext: 8 };

/** A plan that can be run again and again. */
export interface Subject {
  readonly plan: Plan;
  /** What a plan that differs in its steps gives and leaves, in hexadecimal digits by name. */
  run(plan: Plan): Promise<ReadonlyMap<string, string>>;
}

/** The bundled checkpoint, and a CPU device for its plans. */
export class DemoPlans {
  readonly #pool: Promise<CpuPool> = CpuPool.open(1);
  readonly #opened = new Map<string, Promise<Subject>>();
  #read: Promise<Checkpoint> | undefined;

  /** `layers`: of the model; default: all. */
  constructor(readonly layers?: number) {}

  /** A plan, compiled when it is first asked for. */
  open(source: PlanSource): Promise<Subject> {
    const known = this.#opened.get(source.name);
    const opened = known ?? this.#open(source);
    this.#opened.set(source.name, opened);
    return opened;
  }

  async close(): Promise<void> {
    await (await this.#pool).close();
  }

  async #open({ what, options }: PlanSource): Promise<Subject> {
    this.#read ??= readCheckpoint(this.layers);
    const { modelFor, tensors, stored } = await this.#read;
    const given = { ...options, weights: stored };
    const plan = what === "inference"
      ? await compile(modelFor(), given)
      : await compileTraining(modelFor({ training: { auxiliary: 0.01 } }), {
        ...{ ...given, loss: "loss", optimizer: adamw(), clipNorm: 1 },
        ...{ accumulate: true, validate: ["ce_loss"] },
      });
    const calls = what === "inference" ? INFERENCE : TRAINING;
    const pool = await this.#pool;
    return {
      plan,
      run: (changed) => runOn(pool, { plan: changed, tensors, calls }),
    };
  }
}

interface Checkpoint {
  readonly modelFor: (
    options?: { readonly training: { readonly auxiliary: number } },
  ) => Model;
  readonly tensors: TensorDirectory;
  readonly stored: { readonly [tensor: string]: FileDType };
}

async function readCheckpoint(layers: number | undefined): Promise<Checkpoint> {
  const folder = checkpointFolder("demo-lm");
  const config = JSON.parse(
    await readFile(path.join(folder, "config.json"), "utf8"),
  ) as { [key: string]: unknown };
  if (layers !== undefined) config["num_hidden_layers"] = layers;
  const bytes = await readFile(path.join(folder, "model.safetensors"));
  const tensors = await openSafetensors([{
    ...{ name: "model.safetensors", size: bytes.length },
    read: (at, length) =>
      Promise.resolve(new Uint8Array(bytes.subarray(at, at + length))),
  }]);
  const published = publishedModel(config);
  return {
    modelFor: (options = {} as never) =>
      published.build({ ...BOUNDS, ...options }),
    tensors,
    stored: storedDTypes(tensors),
  };
}

/** A program and what it is given. */
type Call = readonly [
  program: string,
  inputs: { readonly [name: string]: readonly number[] | number },
];

/** Two sequences of three and two tokens, then one more token each. */
const INFERENCE: readonly Call[] = [
  ["main", {
    ...{ ids: [7, 300, 11, 12, 900], position: [0, 1, 2, 0, 1] },
    sequence: [0, 0, 0, 1, 1],
  }],
  ["main", { ids: [45, 46], position: [3, 2], sequence: [0, 1] }],
];

const BATCHES = [0, 1].map((n) => ({
  ...{ ids: [7 + n, 300, 11, 12, 900, 5], position: [0, 1, 2, 0, 1, 2] },
  ...{ sequence: [0, 0, 0, 1, 1, 1], labels: [300, 11 + n, 2, 900, 5, -1] },
}));

/** Two steps of two batches each, with a look at the loss after each. */
const TRAINING: readonly Call[] = [1, 2].flatMap((step) => {
  const numbers = {
    ...{ [STEP_INPUTS.rate]: 0.01, [STEP_INPUTS.step]: step },
    [STEP_INPUTS.share]: 0.5,
  };
  return [
    [ACCUMULATE, { ...BATCHES[0], ...numbers, [STEP_INPUTS.keep]: 0 }],
    ["main", { ...BATCHES[1], ...numbers, [STEP_INPUTS.keep]: 1 }],
    [VALIDATE, { ...BATCHES[1] }],
  ] as const;
});

interface Run {
  readonly plan: Plan;
  readonly tensors: TensorDirectory;
  readonly calls: readonly Call[];
}

/** Load a plan, give its states contents, make the calls, and read all that is left. */
async function runOn(
  pool: CpuPool,
  { plan, tensors, calls }: Run,
): Promise<ReadonlyMap<string, string>> {
  const device = await createCpuDevice({ pool });
  const session = await createSession(plan, {
    devices: new Array(plan.ranks).fill(device),
    tensors,
  });
  const lasting = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "state" || kind === "weight");
  const results = new Map<string, string>();
  try {
    for (const { name, kind } of lasting) {
      if (kind === "state") await fill(session, name, plan.ranks);
    }
    for (const [i, [program, given]] of calls.entries()) {
      const outputs = await session.run(
        program,
        inputsOf(plan, program, given),
      );
      keep(results, `output of call ${i}`, outputs);
    }
    keep(
      results,
      "left in",
      await session.read(lasting.map(({ name }) => name)),
    );
  } finally {
    session.close();
  }
  return results;
}

/** Give a state contents that no step makes, none of them 0: old ones that are read show. */
async function fill(
  session: Session,
  name: string,
  ranks: number,
): Promise<void> {
  for (let rank = 0; rank < ranks; rank++) {
    const part = await session.readPart(name, rank);
    const data = Float32Array.from(
      part.data,
      (_, i) => 0.01 + (i * 7919 % 97) / 1e4,
    );
    session.writePart(name, rank, { ...part, data } as HostTensor);
  }
}

function inputsOf(
  plan: Plan,
  program: string,
  given: Call[1],
): { [name: string]: HostTensor } {
  const { inputs } = plan.programs.find(({ name }) => name === program)!;
  return Object.fromEntries(
    Object.entries(inputs).map(([name, { dtype }]): [string, HostTensor] => {
      const value = given[name]!;
      const shape = typeof value === "number" ? [] : [value.length];
      const values = typeof value === "number" ? [value] : value;
      return [
        name,
        dtype === "f32"
          ? { dtype, shape, data: Float32Array.from(values) }
          : dtype === "i32"
          ? { dtype, shape, data: Int32Array.from(values) }
          : { dtype, shape, data: Uint32Array.from(values) },
      ];
    }),
  );
}

function keep(
  results: Map<string, string>,
  what: string,
  tensors: { readonly [name: string]: HostTensor },
): void {
  for (const [name, { data }] of Object.entries(tensors)) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    results.set(`${what} '${name}'`, Buffer.from(bytes).toString("hex"));
  }
}
