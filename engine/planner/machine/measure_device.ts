/** Measures a device with small models on it: the same kernels, launches and waits as in a real run. */

import type { CompileOptions, Model } from "../../../compiler/mod.ts";
import { GUARANTEED_LIMITS } from "../../../spec/limits.ts";
import type { MachineDevice } from "../../../spec/machine.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { HOSTS, type SelectedDevices } from "../../devices.ts";
import { OPERATIONS_PER_MULTIPLY_ADD } from "../simulate/device_time.ts";
import { countStep, type StepWork } from "../simulate/step_work.ts";
import { computerOf } from "../../tune/tuning.ts";
import { type DiskOptions, openDiskMeter } from "./measure_disk.ts";
import { type MemoryRates, openMemoryMeter } from "./measure_memory.ts";
import {
  isRepeated,
  type MeasureOptions,
  type Meter,
  REPETITIONS,
  reportedMedian,
  warmUpFor,
} from "./meter.ts";
import {
  chainModel,
  expertsModel,
  MAX_TOKENS,
  narrowModel,
  operationsModel,
  SEQUENCE,
} from "./models.ts";
import { openSmallModel, type SmallModel } from "./small_model.ts";
import type { StepInputs } from "../../tune/small_inputs.ts";

/**
 * Launches per chain: the difference of the last two gives the time of a launch, that of the first two the overhead of
 * a run.
 */
const CHAINS = [64, 256, 1024] as const;

/** Tokens of chains that keep a device busy so long that a waiting thread sleeps, as in a step of a model. */
const BUSY_TOKENS = 32;

/** Tokens of steps that are tried until one takes long enough relative to its launches and to a wait. */
const LONGER = [256, 1024, MAX_TOKENS], ENOUGH = 1e-2;

/** Tokens of an attention step, of as many sequences. */
const ATTENDING = 16;

/**
 * Sizes of models limited by weight loads, with 16-bit weights, as usual; and tokens with one row per expert: with two
 * rows, a core computes about as long as it waits.
 */
const READING = [512, 1024, 2048, 4096], READING_TOKENS = 2;

/** Seconds of warm-up: engines optimize frequently executed code again. */
const WARM_UP = 0.3;

/** Seconds of a turn: shorter steps are repeated more often, at least this often. */
const TURN = 1e-2, STEPS = 3;

/** Matmuls per step of the narrow model. */
const NARROW = 32;

/** Opens the device of `selected` for one rank, and prepares its measurement. `file`: for the rate of the disk. */
export async function openDeviceMeter(
  selected: SelectedDevices,
  { file, ...options }: DiskOptions,
): Promise<Meter<MachineDevice>> {
  const opened: Pick<SmallModel, "close">[] = [];
  const open = async (
    model: Model,
    weights: CompileOptions["weights"] = {},
  ) => {
    const small = await openSmallModel(selected, model, {
      ...options,
      ranks: 1,
      weights,
    });
    opened.push(small);
    return small;
  };
  const close = async () => {
    for (const { close } of opened) await close();
  };
  try {
    const memory = await openMemoryMeter(selected, options);
    opened.push(memory);
    const disk = computerOf(selected) === "native"
      ? await openDiskMeter({ ...options, file })
      : undefined;
    if (disk) opened.push(disk);
    const [short, middle, long] = [
      await open(chainModel(CHAINS[0])),
      await open(chainModel(CHAINS[1])),
      await open(chainModel(CHAINS[2])),
    ];
    const operations = await open(operationsModel(2));
    const experts = await open(expertsModel());
    const busy = { tokens: BUSY_TOKENS, sequences: BUSY_TOKENS };
    const reading = await openReading(open, short);
    const steps: Step[] = [
      [short, busy, "launches"],
      [middle, busy, "launches"],
      [middle, { tokens: 1 }, "launches"],
      [long, { tokens: 1 }, "launches"],
      [operations, await longEnough(operations), "other operations"],
      [experts, await longEnough(experts), "matmul"],
      [reading, { tokens: READING_TOKENS }, "weights"],
      ...[0, SEQUENCE - 1].map((past): Step => {
        const workload = { tokens: ATTENDING, sequences: ATTENDING, past };
        return [operations, workload, "attention"];
      }),
      // On a software adapter a workgroup has a core to itself.
      ...computerOf(selected) === "software"
        ? []
        : workgroupsOf(await open(narrowModel(NARROW))),
    ];
    await warmUp(steps, options);
    const works = steps.map(([{ plan }, inputs]) => countStep(plan, inputs));
    return {
      measure: async () => {
        const copies = await memory.measure();
        const times = await interleaved(steps, options);
        const measured = works.map((work, i) => ({ work, seconds: times[i]! }));
        const described = describe(selected, copies, measured);
        return disk ? { ...described, disk: await disk.measure() } : described;
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Derives a device description from copies and the times of the small models. */
function describe(
  selected: SelectedDevices,
  copies: MemoryRates,
  [short, middle, ...rest]: readonly Measured[],
): MachineDevice {
  const [fewer, more, other, experts, few] = rest;
  const [first, attends, one, some, many] = rest.slice(5);
  const perLaunch = (a: Measured, b: Measured) =>
    Math.max(0, b.seconds - a.seconds) / (b.work.launches - a.work.launches);
  const launch = perLaunch(fewer!, more!);
  const run = Math.max(
    0,
    short!.seconds - short!.work.launches * perLaunch(short!, middle!),
  );
  // If noise hides the time of a step, a fraction of the measured time.
  const net = ({ seconds, work }: Measured) =>
    Math.max(seconds / 8, seconds - run - work.launches * launch);
  const computer = computerOf(selected);
  const operations = other!.work.operations / net(other!);
  const rate = (measured: Measured) => {
    const { multiplyAdds, operations: all } = measured.work;
    const along = OPERATIONS_PER_MULTIPLY_ADD[computer] * multiplyAdds;
    const rest = Math.max(0, all - along);
    const seconds = net(measured);
    return multiplyAdds / Math.max(seconds / 8, seconds - rest / operations);
  };
  const rates = {
    multiplyAdds: rate(experts!),
    operations,
    launch,
    reading: few!.work.weightBytes / net(few!),
    ...attendingRate(first!, attends!),
    run,
  };
  if (computer === "software") {
    // A workgroup runs on one core, and the drivers' threads take the next one when they become free.
    return {
      ...copies,
      computer,
      limits: limitsOf(selected),
      ...rates,
      parallel: selected.threads ?? 1,
    };
  }
  // Fraction of the device that one workgroup uses.
  const parallel = Math.max(
    1,
    Math.min(selected.threads ?? Infinity, rate(many!) / rate(one!)),
  );
  if (computer === "gpu") {
    return { ...copies, limits: limitsOf(selected), ...rates, parallel };
  }
  // Each worker has work in some workgroups, but not for long.
  const part = some!.work.multiplyAdds / many!.work.multiplyAdds;
  const join = (net(some!) - part * net(many!)) / some!.work.launches;
  return {
    ...copies,
    computer,
    memory: HOSTS[computer].limits.memory,
    ...rates,
    parallel,
    grain: HOSTS[computer].grain,
    ...parallel > 1 ? { join: Math.max(0, join) } : {},
  };
}

/** Additional time of a step with attention states. Nothing if the times are about equal. */
function attendingRate(
  first: Measured,
  attends: Measured,
): Pick<MachineDevice, "attending"> {
  const seconds = attends.seconds - first.seconds;
  const bytes = attends.work.stateBytes - first.work.stateBytes;
  return seconds > first.seconds / 4 ? { attending: bytes / seconds } : {};
}

/** The limits that plans may state. */
function limitsOf({ limits }: SelectedDevices): { [limit: string]: number } {
  return Object.fromEntries(
    Object.keys(GUARANTEED_LIMITS).map((name) => [name, limits[name]!]),
  );
}

/** Steps with matmuls of one workgroup, some, and many: these take long even if one has many tokens. */
function workgroupsOf(narrow: SmallModel): Step[] {
  const tokens = tokensOfAWorkgroup(narrow.plan);
  const some = Math.max(4, Math.min(16, 512 / tokens));
  const many = Math.max(1024, 4 * some * tokens);
  return [tokens, some * tokens, many].map((n) => [
    narrow,
    { tokens: n },
    "matmul",
  ]);
}

/** Maximum number of tokens for which a narrow matmul is one workgroup. */
function tokensOfAWorkgroup(plan: Plan): number {
  let tokens = 1;
  while (
    tokens < 128 && countStep(plan, { tokens: 2 * tokens }).workgroups === 1
  ) tokens *= 2;
  return tokens;
}

/** The first model whose weight loads take much longer than `short`, or the largest. */
async function openReading(
  open: (
    model: Model,
    weights: CompileOptions["weights"],
  ) => Promise<SmallModel>,
  short: SmallModel,
): Promise<SmallModel> {
  const dtypes = { gate: "bf16", up: "bf16", down: "bf16" } as const;
  const seconds = async (model: SmallModel, tokens: number) => {
    for (let i = 0; i < 3; i++) await model.step({ tokens });
    return await model.step({ tokens });
  };
  const enough = 3 * await seconds(short, 1);
  let model: SmallModel | undefined;
  for (const size of READING) {
    model = await open(expertsModel({ embed: size, ffn: size }), dtypes);
    if (await seconds(model, READING_TOKENS) > enough) break;
  }
  return model!;
}

/** A model, its inputs, and the measured quantity. */
type Step = readonly [SmallModel, StepInputs, what: string];

/** A step that was repeated. */
interface Measured {
  /** Median time in seconds. */
  readonly seconds: number;
  readonly work: StepWork;
}

/** The first workload that takes long enough, or the last. */
async function longEnough(model: SmallModel): Promise<StepInputs> {
  const sequenced = Object.hasOwn(model.plan.programs[0]!.inputs, "sequence");
  const workloads = LONGER.map((tokens): StepInputs => ({
    tokens,
    ...sequenced ? { sequences: tokens / SEQUENCE } : {},
  }));
  for (const workload of workloads) {
    await model.step(workload);
    if (await model.step(workload) >= ENOUGH) return workload;
  }
  return workloads.at(-1)!;
}

async function warmUp(
  steps: readonly Step[],
  { now, deadline = Infinity, repetitions = REPETITIONS }: MeasureOptions,
): Promise<void> {
  const seconds = warmUpFor(WARM_UP, repetitions);
  for (const [model, inputs] of steps) {
    for (let spent = 0; spent < seconds && now() < deadline;) {
      spent += await model.step(inputs);
    }
  }
}

/** Median times of steps in seconds, interleaved so that noise affects all of them. */
async function interleaved(
  steps: readonly Step[],
  options: MeasureOptions,
): Promise<number[]> {
  const times = steps.map((): number[] => []);
  for (let i = 0; isRepeated(i, options); i++) {
    for (const [n, [model, inputs]] of steps.entries()) {
      // Memory that was idle is slow at first.
      await model.step(inputs);
      for (let spent = 0, steps = 0; spent < TURN || steps < STEPS; steps++) {
        const seconds = await model.step(inputs);
        times[n]!.push(seconds);
        spent += seconds;
      }
    }
  }
  return times.map((all, n) => reportedMedian(all, steps[n]![2], options));
}
