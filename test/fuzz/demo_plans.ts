/** Plans of a checkpoint, with runs that depend on every step. */

import {
  adamw,
  compile,
  type CompileOptions,
  compileTraining,
} from "../../compiler/mod.ts";
import {
  type CpuPool,
  createCpuDevice,
  openCpuPool,
} from "../../runtime/cpu/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { DISPATCHER_NAMES } from "../../spec/strategies.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { callsOf } from "./calls.ts";
import { type Call, type Results, runOn } from "./runs.ts";

/** Options of a plan: of inference, or of a training step with accumulation and validation. */
export interface PlanSource {
  readonly name: string;
  readonly kind: "inference" | "training";
  readonly options: CompileOptions;
}

type Mesh = NonNullable<CompileOptions["mesh"]>;

/** Meshes of inference and training. */
const MESHES: readonly Mesh[] = [
  { ep: 1 },
  { ep: 2 },
  { dp: 2, ep: 2 },
  { tp: 2, ep: 2 },
];

function meshName(mesh: Mesh): string {
  return Object.entries(mesh).map((pair) => pair.join("=")).join();
}

/** Plans to mutate. */
export const SOURCES: readonly PlanSource[] = [
  ...MESHES.flatMap((mesh) =>
    (["inference", "training"] as const).map((kind) => ({
      name: `${kind} ${meshName(mesh)}`,
      kind,
      options: { mesh },
    }))
  ),
  {
    name: "inference ep=2 in chunks",
    kind: "inference",
    options: { mesh: { ep: 2 }, chunks: 2 },
  },
  {
    name: "inference ep=2, tokens sent once",
    kind: "inference",
    options: { mesh: { ep: 2 }, deduplicate: true },
  },
  ...DISPATCHER_NAMES.slice(1).map((dispatcher): PlanSource => ({
    name: `inference dp=2,ep=2 by ${dispatcher}`,
    kind: "inference",
    options: { mesh: { dp: 2, ep: 2 }, dispatcher, numerics: "fast" },
  })),
  {
    name: "training dp=2,ep=2, sharded states",
    kind: "training",
    options: { mesh: { dp: 2, ep: 2 }, zero: 1 },
  },
];

/** A plan with its calls. */
export interface Subject {
  readonly plan: Plan;
  readonly calls: readonly Call[];
  /** Runs a plan with changed steps. Returns outputs and final states, in hexadecimal by name. */
  run(plan: Plan): Promise<Results>;
}

/** Plans of a checkpoint on a CPU device. */
export class DemoPlans {
  readonly #pool: Promise<CpuPool> = openCpuPool(1, {
    store: undefined,
  });
  readonly #opened = new Map<string, Promise<Subject>>();
  #read: Promise<Checkpoint> | undefined;

  constructor(readonly read: () => Promise<Checkpoint>) {}

  /** Returns a plan, compiled on first use. */
  open(source: PlanSource): Promise<Subject> {
    const known = this.#opened.get(source.name);
    const opened = known ?? this.#open(source);
    this.#opened.set(source.name, opened);
    return opened;
  }

  async close(): Promise<void> {
    await (await this.#pool).close();
  }

  async #open({ kind, options }: PlanSource): Promise<Subject> {
    this.#read ??= this.read();
    const { modelFor, tensors, stored, vocabulary } = await this.#read;
    const compileOptions = { ...options, weights: stored };
    const plan = kind === "inference"
      ? await compile(modelFor(), compileOptions)
      : await compileTraining(modelFor({ training: { auxiliary: 0.01 } }), {
        ...compileOptions,
        loss: "loss",
        optimizer: adamw(),
        clipNorm: 1,
        accumulate: true,
        validate: ["ce_loss"],
      });
    const pool = await this.#pool;
    const calls = callsOf(kind, vocabulary);
    return {
      plan,
      calls,
      run: async (changed) =>
        await runOn(await createCpuDevice({ pool }), {
          plan: changed,
          tensors,
          calls,
        }),
    };
  }
}
