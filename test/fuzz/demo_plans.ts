/** The plans of the bundled checkpoint, and runs that depend on every step of them. */

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
      name: `${what} ${meshName(mesh)}`,
      what,
      options: { mesh },
    }))
  ),
  {
    name: "inference ep=2 in chunks",
    what: "inference",
    options: { mesh: { ep: 2 }, chunks: 2 },
  },
  {
    name: "inference ep=2, tokens sent once",
    what: "inference",
    options: { mesh: { ep: 2 }, deduplicate: true },
  },
  ...DISPATCHER_NAMES.slice(1).map((dispatcher): PlanSource => ({
    name: `inference dp=2,ep=2 by ${dispatcher}`,
    what: "inference",
    options: { mesh: { dp: 2, ep: 2 }, dispatcher, numerics: "fast" },
  })),
  {
    name: "training dp=2,ep=2, sharded states",
    what: "training",
    options: { mesh: { dp: 2, ep: 2 }, zero: 1 },
  },
];

/** A plan that can be run again and again. */
export interface Subject {
  readonly plan: Plan;
  readonly calls: readonly Call[];
  /** What a plan that differs in its steps gives and leaves, in hexadecimal digits by name. */
  run(plan: Plan): Promise<Results>;
}

/** The plans of a checkpoint, and a CPU device for them. */
export class DemoPlans {
  readonly #pool: Promise<CpuPool> = openCpuPool(1, {
    store: undefined,
  });
  readonly #opened = new Map<string, Promise<Subject>>();
  #read: Promise<Checkpoint> | undefined;

  /** `read`: the checkpoint. */
  constructor(readonly read: () => Promise<Checkpoint>) {}

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
    this.#read ??= this.read();
    const { modelFor, tensors, stored, vocabulary } = await this.#read;
    const given = { ...options, weights: stored };
    const plan = what === "inference"
      ? await compile(modelFor(), given)
      : await compileTraining(modelFor({ training: { auxiliary: 0.01 } }), {
        ...given,
        loss: "loss",
        optimizer: adamw(),
        clipNorm: 1,
        accumulate: true,
        validate: ["ce_loss"],
      });
    const pool = await this.#pool;
    const calls = callsOf(what, vocabulary);
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
