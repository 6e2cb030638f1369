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

/** A step that was run again and again. */
interface Measured {
  /** The middle of the times, in seconds. */
  readonly seconds: number;
  readonly work: StepWork;
}

/** Launches of the two chains whose difference is the time of a launch. */
const SHORT = 16, LONG = 80;

/** Tokens of steps that are tried until one takes long enough: long against its launches, short against other programs' turns. */
const LONGER = [256, 1024, MOST_TOKENS], ENOUGH = 1e-3;

/** Matmuls in a step of the narrow model. */
const NARROW = 8;

/** Bytes of the copies that find out where the cache ends. */
const COPIES = [1 << 20, 1 << 22, 1 << 24, 1 << 26] as const;

/** Measure the device that `selected` opens for one rank. */
export async function measureDevice(
  selected: SelectedDevices,
  options: MeasureOptions,
): Promise<MachineDevice> {
  const on = (model: Model, scenes: (plan: Plan) => readonly Scene[]) =>
    measureSteps(selected, { model, scenes }, options);
  const first = (model: Model, scenes: readonly Scene[]) =>
    measureSteps(
      selected,
      { model, scenes: () => scenes, enough: ENOUGH },
      options,
    );
  const [short] = await on(chainModel(SHORT), () => [{ tokens: 1 }]);
  const [long] = await on(chainModel(LONG), () => [{ tokens: 1 }]);
  const launch = Math.max(
    0,
    (long!.seconds - short!.seconds) / (LONG - SHORT),
  );
  const run = Math.max(0, short!.seconds - SHORT * launch);
  const net = ({ seconds, work }: Measured) =>
    Math.max(1e-9, seconds - run - work.launches * launch);

  const [other] = await first(
    operationsModel(2),
    LONGER.map((tokens) => ({
      tokens,
      sequences: tokens / SEQUENCE,
    })),
  );
  const operations = other!.work.operations / net(other!);
  const rate = (measured: Measured) => {
    const { multiplyAdds, operations: all } = measured.work;
    const rest = Math.max(0, all - OPERATIONS_PER_MULTIPLY_ADD * multiplyAdds);
    return multiplyAdds / Math.max(1e-9, net(measured) - rest / operations);
  };
  const [experts] = await first(
    expertsModel(),
    [32, ...LONGER].map((tokens) => ({ tokens })),
  );

  // One workgroup leaves a part of the device idle: how large a part, and what it takes until the others join in.
  const [one, eight, many] = await on(narrowModel(NARROW), (plan) => {
    const tokens = tokensOfAWorkgroup(plan);
    return [1, 8, 1024 / tokens].map((n) => ({ tokens: n * tokens }));
  });
  const parallel = Math.max(
    1,
    Math.min(selected.threads ?? Infinity, rate(many!) / rate(one!)),
  );
  const computer = computerOf(selected);
  const alone = 8 * net(one!) / NARROW;
  const grain = net(eight!) / NARROW - alone / Math.min(parallel, 8);
  return {
    ...await measureMemory(selected, options),
    ...computer === "gpu" ? {} : { computer },
    ...computer === "cpu"
      ? { memory: CPU_LIMITS.memory }
      : { limits: limitsOf(selected) },
    multiplyAdds: rate(experts!),
    operations,
    launch,
    run,
    parallel,
    grain: Math.max(0, Math.min(grain, alone)),
  };
}

/** The limits that plans may state. */
function limitsOf({ limits }: SelectedDevices): { [limit: string]: number } {
  return Object.fromEntries(
    Object.keys(GUARANTEED_LIMITS).map((name) => [name, limits[name]!]),
  );
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

async function measureSteps(
  selected: SelectedDevices,
  { model, scenes, enough }: {
    readonly model: Model;
    readonly scenes: (plan: Plan) => readonly Scene[];
    /** Only the first scene that takes so many seconds counts, or the last one. */
    readonly enough?: number;
  },
  { now, repetitions = 9 }: MeasureOptions,
): Promise<Measured[]> {
  const plan = await compile(model, {
    limits: selected.limits,
    tuning: TUNING[computerOf(selected)],
  });
  const { devices, close } = await selected.open(plan);
  // Weights stay zero: how long arithmetic takes does not depend on them.
  const session = await createSession({ ...plan, weights: [] }, { devices });
  try {
    const measured: Measured[] = [];
    for (const scene of scenes(plan)) {
      const inputs = inputsOf(plan, scene);
      const times: number[] = [];
      for (let i = -2; i < repetitions; i++) {
        session.reset();
        await devices[0]!.idle();
        const start = now();
        await session.run("main", inputs, { outputs: [] });
        await devices[0]!.idle();
        if (i >= 0) times.push((now() - start) / 1000);
      }
      const seconds = median(times);
      const work = countStep(plan, scene);
      if (enough === undefined) measured.push({ seconds, work });
      else measured[0] = { seconds, work };
      if (enough !== undefined && seconds >= enough) break;
    }
    return measured;
  } finally {
    session.close();
    await close();
  }
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
