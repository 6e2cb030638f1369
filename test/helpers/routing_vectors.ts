/** Recorded routers of other systems as models, run on a device or by the reference evaluator. */

import {
  balancingLoss,
  compile,
  type CompileOptions,
  type Model,
  route,
  type RouteOptions,
  type Routing,
  type RoutingPreset,
  type Scope,
  sum,
  type Tensor,
} from "../../compiler/mod.ts";
import { evaluate } from "../../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../../compiler/graph/trace.ts";
import {
  type GroupCounts,
  routingRule,
  slotsOf,
} from "../../compiler/graph/routing/presets.ts";
import { type Device, openSafetensors } from "../../runtime/mod.ts";
import { readTensors } from "./read_tensors.ts";
import { deviceOf } from "./run_model.ts";
import { fileSource, openSession, type Target } from "./sessions.ts";

/** Options of `route` for these axes. */
export type RouterOptions = Partial<
  RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">
>;

/** Operands and results of a recorded router. */
export interface RecordedRouter {
  /** Unique in its model. */
  readonly name: string;
  readonly topK: number;
  readonly options: RouterOptions;
  /** Operands by name. */
  readonly operands: {
    readonly [operand in "noise" | "random" | "bias" | "mask"]?:
      readonly number[];
  };
  /** Weight of each expert, [token, expert], if recorded. */
  readonly combine?: readonly number[];
  /** Token, expert and slot of each choice that is not dropped. */
  readonly slots?: readonly (readonly number[])[];
  readonly capacity?: number;
  readonly loss?: number;
  /** Number of choices of each expert. */
  readonly counts?: readonly number[];
}

/** Axes of choices that a model of recorded routers declares. */
export function choiceAxes(
  routers: readonly RecordedRouter[],
): { readonly [axis: string]: number } {
  return Object.fromEntries(
    routers.map(({ topK }) => [`choice${topK}`, topK]),
  );
}

const OPERAND_AXES = {
  noise: "token expert",
  random: "token expert",
  bias: "expert",
  mask: "token",
} as const;

/** Declares a recorded router in a model with axes `token` and `expert`. Its results and loss are outputs. */
export function declareRouter(
  m: Scope<"token" | "expert">,
  logits: Tensor<"token expert", "f32">,
  router: RecordedRouter,
): {
  routing: Routing<"token", "expert">;
  outputs: { [name: string]: Tensor };
} {
  const { name, topK, options, operands } = router;
  const operandInputs = Object.keys(operands).map((operand) => {
    const axes = OPERAND_AXES[operand as keyof typeof OPERAND_AXES];
    return [
      operand,
      m.input(`${name} ${operand}`, axes as "token", {
        dtype: operand === "mask" ? "i32" : "f32",
      }),
    ];
  });
  const routing = route(logits, {
    over: "expert",
    topK,
    choice: `choice${topK}`,
    ...options as RouterOptions & { readonly choice?: "choice" },
    ...Object.fromEntries(operandInputs) as RouterOptions,
  });
  const { index, weight } = routing;
  const { capacity } = routingRule({ ...options, topK });
  const outputs = {
    [`${name} index`]: index,
    [`${name} weight`]: weight,
    ...capacity && "slot" in routing
      ? { [`${name} slot`]: routing.slot as Tensor }
      : {},
    ...router.counts
      ? { [`${name} counts`]: sum(routing.chosen, "token") }
      : {},
    ...router.loss === undefined ? {} : {
      [`${name} loss`]: balancingLoss(logits, routing, { over: "expert" }),
    },
  };
  return { routing: routing as Routing<"token", "expert">, outputs };
}

/** Operands of recorded routers, by the names of `declareRouter`'s inputs. */
export function operandsOf(
  routers: readonly RecordedRouter[],
): { [name: string]: readonly number[] } {
  return Object.fromEntries(
    routers.flatMap(({ name, operands }) =>
      Object.entries(operands).map(([operand, data]) => [
        `${name} ${operand}`,
        data,
      ])
    ),
  );
}

/** Outputs of a run, by name. */
export type Outputs = { readonly [name: string]: ArrayLike<number> };

export interface RunOptions {
  readonly mesh?: NonNullable<CompileOptions["mesh"]>;
  /** Default: the reference evaluator. */
  readonly target?: Target;
  /** File of its parameters in test/references. */
  readonly weights?: string;
}

/** Runs a model once. The test file closes the devices of run_model.ts. */
export async function runModel(
  model: Model,
  inputs: { readonly [name: string]: readonly number[] },
  { target, weights, mesh = {} }: RunOptions = {},
): Promise<Outputs> {
  const graph = trace(model);
  if (target === undefined) {
    const params = weights === undefined ? {} : readTensors(weights);
    const { outputs } = evaluate(graph, { inputs, params });
    return Object.fromEntries(
      Object.entries(outputs).map(([name, { data }]) => [name, data]),
    );
  }
  const plan = await compile(model, { mesh });
  const device = await deviceOf(target);
  const session = await openSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(device),
    ...weights === undefined ? {} : {
      tensors: await openSafetensors([
        fileSource(`test/references/${weights}`),
      ]),
    },
  });
  const inputTensors = Object.fromEntries(
    graph.nodes.flatMap((node) => {
      if (node.primitive !== "input") return [];
      const { name } = node.params;
      const shape = node.axes.map((axis) => graph.axes[axis]!.size);
      const data = inputs[name]!;
      return [[
        name,
        node.dtype === "i32"
          ? { dtype: "i32" as const, shape, data: Int32Array.from(data) }
          : { dtype: "f32" as const, shape, data: Float32Array.from(data) },
      ]];
    }),
  );
  const outputs = await session.run("main", inputTensors);
  return Object.fromEntries(
    Object.entries(outputs).map(([name, { data }]) => [name, data]),
  );
}

/** Returns the largest error, relative for values above 1. Infinity: a value is missing or not finite. */
export function error(
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
): number {
  if (found.length !== wanted.length) return Infinity;
  const errors = Array.from(
    wanted,
    (x, i) => Math.abs(found[i]! - x) / Math.max(1, Math.abs(x)),
  );
  return errors.every(Number.isFinite) ? Math.max(0, ...errors) : Infinity;
}

/** Maximum error of weights and losses. */
export const TOLERANCE = 2e-6;

/** Returns the differences between a recorded router and a run. */
export function differencesOf(
  router: RecordedRouter,
  outputs: Outputs,
  size: Omit<GroupCounts, "topK">,
): string[] {
  const { name, topK, options } = router;
  const of = (part: string) => Array.from(outputs[`${name} ${part}`] ?? []);
  const [index, weight, slot] = [of("index"), of("weight"), of("slot")];
  const wrong: string[] = [];
  const check = (problem: string, holds: boolean) => {
    if (!holds) wrong.push(`${name}: ${problem}`);
  };
  if (router.combine) {
    const combine = router.combine.map(() => 0);
    index.forEach((e, i) => {
      combine[Math.floor(i / topK) * size.experts + e]! += weight[i]!;
    });
    const off = error(combine, router.combine);
    check(`error of weights is ${off}`, off <= TOLERANCE);
  }
  const kept = slot.flatMap((slot, i) =>
    slot < 0 ? [] : [[Math.floor(i / topK), index[i]!, slot].join()]
  );
  if (router.slots) {
    const wanted = router.slots.map((choice) => choice.join());
    check(
      "slots differ",
      kept.sort().join(" ") === wanted.sort().join(" "),
    );
  }
  const { capacity } = routingRule({ ...options, topK });
  if (router.capacity !== undefined) {
    const largest = 1 + Math.max(...slot);
    const room = slotsOf(capacity!, { ...size, topK }, largest);
    check(`capacity is ${room}`, room === router.capacity);
    check(`${largest} slots are used`, largest <= room);
  }
  if (router.counts) {
    check("counts differ", error(of("counts"), router.counts) === 0);
  }
  if (router.loss !== undefined) {
    const off = error(of("loss"), [router.loss]);
    check(`error of the loss is ${off}`, off <= TOLERANCE);
  }
  return wrong;
}
