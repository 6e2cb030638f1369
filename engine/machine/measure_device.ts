/** What a device can do, measured by small models on it: the same kernels, launches and waits as in a real run. */

import { compile, type Model } from "../../compiler/mod.ts";
import { createSession, type HostTensor } from "../../runtime/mod.ts";
import { CPU_LIMITS } from "../../runtime/cpu/mod.ts";
import { GUARANTEED_LIMITS } from "../../spec/limits.ts";
import type { MachineDevice } from "../../spec/machine.ts";
import type { Plan } from "../../spec/plan.ts";
import type { SelectedDevices } from "../devices.ts";
import { OPERATIONS_PER_MULTIPLY_ADD } from "../predict/device_time.ts";
import { countStep, type StepWork } from "../predict/step_work.ts";
import { computerOf, TUNING } from "../tuning.ts";
import {
  chainModel,
  expertsModel,
  MOST_TOKENS,
  narrowModel,
  operationsModel,
  SEQUENCE,
} from "./models.ts";

/** How devices are measured. */
export interface MeasureOptions {
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** Default: 9. */
  readonly repetitions?: number;
}

/** Launches of the two chains whose difference is the time of a launch. */
const SHORT = 64, LONG = 256;

/** Tokens of steps that are tried until one takes long enough: long against its launches, and against a wait. */
const LONGER = [256, 1024, MOST_TOKENS], ENOUGH = 1e-2;

/** Seconds that a step is repeated before it counts: the host's part of a short one is slow at first. */
const WARM_UP = 0.1;

/** Matmuls in a step of the narrow model. */
const NARROW = 32;

/** Bytes of the copies that find out where the cache ends. */
const COPIES = [1 << 20, 1 << 22, 1 << 24, 1 << 26] as const;

/** Measure the device that `selected` opens for one rank. */
export async function measureDevice(
  selected: SelectedDevices,
  options: MeasureOptions,
): Promise<MachineDevice> {
  const opened: SmallModel[] = [];
  const open = async (model: Model) => {
    const small = await openSmall(selected, model, options);
    opened.push(small);
    return small;
  };
  let measured: readonly Measured[];
  try {
    const [short, long] = [
      await open(chainModel(SHORT)),
      await open(chainModel(LONG)),
    ];
    const operations = await open(operationsModel(2));
    const experts = await open(expertsModel());
    measured = await inTurn([
      [short, { tokens: 1 }],
      [long, { tokens: 1 }],
      [operations, await longEnough(operations)],
      [experts, await longEnough(experts)],
      // On a software adapter a workgroup has a core to itself.
      ...computerOf(selected) === "software"
        ? []
        : workgroupsOf(await open(narrowModel(NARROW))),
    ], options);
  } finally {
    for (const { close } of opened) await close();
  }
  return {
    ...await measureMemory(selected, options),
    ...describe(selected, measured),
  };
}

/** What the times of the small models say of a device. */
function describe(
  selected: SelectedDevices,
  [short, long, other, experts, one, eight, many]: readonly Measured[],
): Omit<MachineDevice, "bandwidth"> {
  const launch = Math.max(
    0,
    (long!.seconds - short!.seconds) / (LONG - SHORT),
  );
  const run = Math.max(0, short!.seconds - SHORT * launch);
  // Where noise hides what a step does, a part of it is what it does.
  const net = ({ seconds, work }: Measured) =>
    Math.max(seconds / 8, seconds - run - work.launches * launch);
  const operations = other!.work.operations / net(other!);
  const rate = (measured: Measured) => {
    const { multiplyAdds, operations: all } = measured.work;
    const rest = Math.max(0, all - OPERATIONS_PER_MULTIPLY_ADD * multiplyAdds);
    const seconds = net(measured);
    return multiplyAdds / Math.max(seconds / 8, seconds - rest / operations);
  };
  const computer = computerOf(selected);
  const rates = { multiplyAdds: rate(experts!), operations, launch, run };
  if (computer === "software") {
    // A workgroup is on one core, and the drivers' threads take the next as they become free.
    return {
      ...{ computer, limits: limitsOf(selected), ...rates },
      parallel: selected.threads ?? 1,
    };
  }
  // One workgroup leaves a part of the device idle: how large a part, and what it takes until the others join in.
  const parallel = Math.max(
    1,
    Math.min(selected.threads ?? Infinity, rate(many!) / rate(one!)),
  );
  const alone = 8 * net(one!) / NARROW;
  const grain = net(eight!) / NARROW - alone / Math.min(parallel, 8);
  return {
    ...computer === "cpu"
      ? { computer, memory: CPU_LIMITS.memory }
      : { limits: limitsOf(selected) },
    ...{ ...rates, parallel },
    grain: Math.max(0, Math.min(grain, alone)),
  };
}

/** The limits that plans may state. */
function limitsOf({ limits }: SelectedDevices): { [limit: string]: number } {
  return Object.fromEntries(
    Object.keys(GUARANTEED_LIMITS).map((name) => [name, limits[name]!]),
  );
}

/** Steps whose matmuls are one workgroup, eight, and many. */
function workgroupsOf(narrow: SmallModel): [SmallModel, Scene][] {
  const tokens = tokensOfAWorkgroup(narrow.plan);
  return [1, 8, 1024 / tokens].map((n) => [narrow, { tokens: n * tokens }]);
}

/** The most tokens for which a narrow matmul is one workgroup. */
function tokensOfAWorkgroup(plan: Plan): number {
  let tokens = 1;
  while (
    tokens < 128 && countStep(plan, { tokens: 2 * tokens }).workgroups === 1
  ) tokens *= 2;
  return tokens;
}

/** Bandwidth by copies: of the longest, and of the longest that is much faster because it lies in a cache. */
async function measureMemory(
  selected: SelectedDevices,
  { now, repetitions = 9 }: MeasureOptions,
): Promise<Pick<MachineDevice, "name" | "bandwidth" | "cache">> {
  const plan = await compile(chainModel(1), { limits: selected.limits });
  const { devices: [device], close } = await selected.open(plan);
  const longest = COPIES.at(-1)!;
  const from = device!.createBuffer(longest, "from");
  const to = device!.createBuffer(longest, "to");
  const rates: number[] = [];
  for (const bytes of COPIES) {
    const times: number[] = [];
    for (let i = -1; i < repetitions; i++) {
      await device!.idle();
      const start = now();
      for (let done = 0; done < longest; done += bytes) {
        device!.copy(from, 0, to, 0, bytes);
      }
      await device!.idle();
      if (i >= 0) times.push((now() - start) / 1000);
    }
    // Every byte is read and written.
    rates.push(2 * longest / median(times));
  }
  const { name } = device!;
  device!.destroy();
  await close();
  const bandwidth = rates.at(-1)!;
  const cached = rates.findLastIndex((rate) => rate > 1.5 * bandwidth);
  return {
    name,
    bandwidth,
    ...cached < 0 ? {} : {
      cache: { bytes: 2 * COPIES[cached]!, bandwidth: rates[cached]! },
    },
  };
}

/** The middle value. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

/** Inputs of a run, as a scene. */
interface Scene {
  readonly tokens: number;
  readonly sequences?: number;
}

/** A small model, loaded. */
interface SmallModel {
  readonly plan: Plan;
  /** Seconds of a step. */
  step(scene: Scene): Promise<number>;
  close(): Promise<void>;
}

/** A step that was run again and again. */
interface Measured {
  /** The middle of the times, in seconds. */
  readonly seconds: number;
  readonly work: StepWork;
}

async function openSmall(
  selected: SelectedDevices,
  model: Model,
  { now }: MeasureOptions,
): Promise<SmallModel> {
  const plan = await compile(model, {
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { devices, close } = await selected.open(plan);
  const output = Object.keys(plan.programs[0]!.outputs)
    .find((name) => name.startsWith("y"))!;
  const read = { outputs: [output], rows: { [output]: [0] } };
  // How long arithmetic takes does not depend on weights, but memory that was never written is slow to read.
  const session = await createSession({ ...plan, weights: [] }, { devices });
  for (const { buffer } of plan.weights) {
    session.writePart(buffer, 0, await session.readPart(buffer, 0));
  }
  return {
    plan,
    step: async (scene) => {
      const inputs = inputsOf(plan, scene);
      session.reset();
      await devices[0]!.idle();
      const start = now();
      // A real run is over when something of its result is here.
      await session.run("main", inputs, read);
      await devices[0]!.idle();
      return (now() - start) / 1000;
    },
    close: async () => {
      session.close();
      await close();
    },
  };
}

/** The first scene that takes long enough, or the last. */
async function longEnough(model: SmallModel): Promise<Scene> {
  const sequenced = Object.hasOwn(model.plan.programs[0]!.inputs, "sequence");
  const scenes = LONGER.map((tokens): Scene => ({
    tokens,
    ...sequenced ? { sequences: tokens / SEQUENCE } : {},
  }));
  for (const scene of scenes) {
    await model.step(scene);
    if (await model.step(scene) >= ENOUGH) return scene;
  }
  return scenes.at(-1)!;
}

/** Times of steps, taken in turn so that a noisy moment touches all of them. */
async function inTurn(
  steps: readonly (readonly [SmallModel, Scene])[],
  { repetitions = 9 }: MeasureOptions,
): Promise<Measured[]> {
  const times = steps.map((): number[] => []);
  for (const [model, scene] of steps) {
    for (let spent = 0; spent < WARM_UP;) spent += await model.step(scene);
  }
  for (let i = 0; i < repetitions; i++) {
    for (const [n, [model, scene]] of steps.entries()) {
      times[n]!.push(await model.step(scene));
    }
  }
  return steps.map(([{ plan }, scene], n) => ({
    seconds: median(times[n]!),
    work: countStep(plan, scene),
  }));
}

/** Inputs of some length: sequences one after the other, and floats that spread choices over experts. */
function inputsOf(
  plan: Plan,
  { tokens, sequences = 1 }: Scene,
): { [name: string]: HostTensor } {
  const each = Math.ceil(tokens / sequences);
  return Object.fromEntries(
    Object.entries(plan.programs[0]!.inputs).map(([name, port]) => {
      const shape = port.axes.map((axis) =>
        plan.axes[axis]!.dynamic ? tokens : plan.axes[axis]!.size
      );
      const length = shape.reduce((n, size) => n * size, 1);
      const width = length / Math.max(1, tokens);
      const value = (i: number) => {
        const token = Math.floor(i / width);
        if (name === "sequence") return Math.floor(token / each);
        if (name === "position") return token % each;
        // Two choices of each token, in turn over the experts.
        return (i % width - 2 * token % width + width) % width < 2 ? 1 : 0;
      };
      const data = port.dtype === "f32"
        ? Float32Array.from({ length }, (_, i) => value(i))
        : Int32Array.from({ length }, (_, i) => value(i));
      return [name, { dtype: port.dtype, shape, data } as HostTensor];
    }),
  );
}
