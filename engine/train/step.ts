/** One training step and its metrics; validation. */

import {
  ACCUMULATE,
  GRADIENT_NORM,
  microName,
  rateAt,
  STEP_INPUTS,
  VALIDATE,
} from "../../compiler/mod.ts";
import type { HostTensor } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { Plan, Program } from "../../spec/plan/plan.ts";
import type { Opened } from "../open.ts";
import { CHOICES } from "../replay.ts";
import type { Tensors } from "../run.ts";
import type { PolicyMetrics } from "./policy_metrics.ts";
import type { Task, WeighedBatch } from "./task.ts";

/** Metrics of a step. */
export interface StepMetrics {
  /** From 1. */
  readonly step: number;
  readonly loss: number;
  /** Next-token part of the loss, in nats per token; the loss itself if the model has no parts. */
  readonly crossEntropy: number;
  /** Balancing part of the loss, before its weight. Undefined without experts. */
  readonly auxiliary: number | undefined;
  readonly gradientNorm: number;
  readonly rate: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** For each layer with experts, the fraction of choices per expert. */
  readonly experts: readonly (readonly number[])[];
  /** Bytes that ranks of this process sent to others. */
  readonly sentBytes: number;
  /** Memory allocated by the fullest rank of this process. */
  readonly memoryBytes: number;
  /** Validation cross-entropy after the step. Undefined if it was not measured. */
  readonly validation: number | undefined;
  /** Whether a checkpoint was written after it. */
  readonly saved: boolean;
  /** Metrics of policy gradients. Undefined for other trainings. */
  readonly policy?: PolicyMetrics;
  /** Other scalar outputs of the loss by name, such as `kl`. */
  readonly parts: { readonly [name: string]: number };
}

/** A loaded training. */
export interface Run {
  readonly opened: Opened;
  readonly task: Task;
  /** Completed steps. */
  step: number;
  /** The step of the last checkpoint. 0: there is none. */
  saved: number;
  /** Bytes sent so far. */
  sent: number;
}

/** Outputs with parts of the loss, if a model has them. */
export const LOSSES = ["ce_loss", "aux_loss"] as const;

/** Scalar outputs besides the loss. */
const NUMBERS: readonly string[] = [...LOSSES, GRADIENT_NORM];

/** Executes a step. Throws DataError if the loss or its gradient is not finite. */
export async function takeStep(
  run: Run,
  step: number,
  now: () => number,
): Promise<Omit<StepMetrics, "validation" | "saved">> {
  const { opened: { plan, session }, task } = run;
  const { accumulate = 1, schedule } = task.settings;
  const rate = rateAt(schedule, step);
  const started = now();
  const batches = await batchesOf(run, step);
  const all = batches.reduce((n, { counted }) => n + counted, 0);
  const tokens = batches.reduce((n, { tokens }) => n + tokens, 0);
  const results: Weighed[] = isPiped(plan)
    ? await runTogether(run, batches, { rate, step, all })
    : [];
  for (const [i, { inputs, counted }] of batches.entries()) {
    if (isPiped(plan)) break;
    const program = programOf(plan, i === accumulate - 1);
    const share = counted / all;
    const numbers: { readonly [name: string]: number } = {
      [STEP_INPUTS.rate]: rate,
      [STEP_INPUTS.step]: step,
      [STEP_INPUTS.share]: share,
      [STEP_INPUTS.keep]: i === 0 ? 0 : 1,
    };
    const scalars = Object.entries(numbers)
      .filter(([name]) => name in program.inputs)
      .map(([name, value]) => [name, scalar(value)]);
    const given = { ...inputs, ...Object.fromEntries(scalars) };
    const outputs = await session.run(program.name, given, {
      outputs: metricsOf(program, task),
      everywhere: true,
      fresh: true,
    });
    results.push({ outputs, share });
  }
  const seconds = (now() - started) / 1000;
  const loss = meanOf(results, task.loss)!;
  const gradientNorm = results.at(-1)!.outputs[GRADIENT_NORM]!.data[0]!;
  if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
    throw new DataError(
      `Cannot continue training: in step ${step} the loss is ${loss} and the norm of its gradients ${gradientNorm}. ${
        divergenceRemedy(run, step)
      }`,
    );
  }
  return {
    step,
    rate,
    loss,
    gradientNorm,
    tokens,
    crossEntropy: meanOf(results, "ce_loss") ?? loss,
    auxiliary: meanOf(results, "aux_loss"),
    tokensPerSecond: tokens / seconds,
    experts: expertLoad(plan, results),
    ...task.observe
      ? { policy: task.observe(results.map(({ outputs }) => outputs)) }
      : {},
    parts: partsOf(results, task.loss),
    ...figuresOf(run),
  };
}

/**
 * Names of the outputs of each micro-batch to read: scalars, choices of experts, and outputs that the task requests.
 */
/** What can be done after a step whose loss is not finite. */
function divergenceRemedy({ saved }: Run, step: number): string {
  if (step === 1) return "Check the initial weights for values that overflow";
  const again = saved > 0 ? "Continue from the last checkpoint" : "Start again";
  return `${again} with a lower learning rate, or clip gradients`;
}

function metricsOf({ outputs }: Program, task: Task): string[] {
  return Object.entries(outputs).flatMap(([output, { axes }]) => {
    const name = output.replace(/@\d+$/, "");
    const isRead = axes.length === 0 || CHOICES.test(name) ||
      task.outputs?.includes(name);
    return isRead ? [output] : [];
  });
}

/** The scalar outputs besides those with a metric of their own. */
function partsOf(
  results: readonly Weighed[],
  loss: string,
): StepMetrics["parts"] {
  const names = Object.entries(results.at(-1)!.outputs).flatMap((
    [name, { shape }],
  ) =>
    shape.length === 0 && name !== loss && !NUMBERS.includes(name) ? [name] : []
  );
  return Object.fromEntries(
    names.map((name) => [name, meanOf(results, name)!]),
  );
}

/** Whether one program executes all micro-batches of a step. */
function isPiped({ programs: [program] }: Plan): boolean {
  return microName(STEP_INPUTS.share, 0) in program!.inputs;
}

/** Executes the micro-batches of a step in one run. Throws DataError if the inputs that they share differ. */
async function runTogether(
  { opened: { plan, session }, task }: Run,
  batches: readonly WeighedBatch[],
  { rate, step, all }: {
    readonly rate: number;
    readonly step: number;
    readonly all: number;
  },
): Promise<Weighed[]> {
  const program = plan.programs[0]!;
  const inputs: { [name: string]: HostTensor } = {};
  for (const [i, { inputs: given, counted }] of batches.entries()) {
    const named = { ...given, [STEP_INPUTS.share]: scalar(counted / all) };
    for (const [name, tensor] of Object.entries(named)) {
      const micro = microName(name, i);
      if (micro in program.inputs) inputs[micro] = tensor;
      else if (i === 0) inputs[name] = tensor;
      else if (!sameNumbers(inputs[name]!, tensor)) {
        throw new DataError(
          `Cannot train micro-batch ${
            i + 1
          } of a step on pipeline stages: its input '${name}' differs from that of the first. Give all micro-batches the same lengths, or use --accumulate 1`,
        );
      }
    }
  }
  const numbers = { [STEP_INPUTS.rate]: rate, [STEP_INPUTS.step]: step };
  for (const [name, value] of Object.entries(numbers)) {
    if (name in program.inputs) inputs[name] = scalar(value);
  }
  const outputs = await session.run(program.name, inputs, {
    outputs: metricsOf(program, task),
    everywhere: true,
    fresh: true,
  });
  return batches.map(({ counted }, i) => ({
    share: counted / all,
    outputs: Object.fromEntries(
      Object.entries(outputs).flatMap(([name, tensor]) => {
        const [of, micro] = name.split("@");
        return micro === undefined || Number(micro) === i
          ? [[of!, tensor] as const]
          : [];
      }),
    ),
  }));
}

function sameNumbers(a: HostTensor, b: HostTensor): boolean {
  return a.data.length === b.data.length &&
    a.data.every((value, i) => value === b.data[i]);
}

/** Result of a batch, and its share of the counted labels of the step. */
interface Weighed {
  readonly outputs: Tensors;
  readonly share: number;
}

/** The micro-batches of a step. */
async function batchesOf(
  { opened: { plan, ranks }, task }: Run,
  step: number,
): Promise<WeighedBatch[]> {
  const { accumulate = 1 } = task.settings;
  const batches: WeighedBatch[] = [];
  for (let i = 0; i < accumulate; i++) {
    const program = programOf(plan, i === accumulate - 1);
    const target = { plan, program, ranks };
    batches.push(await task.batch((step - 1) * accumulate + i, target));
  }
  return batches;
}

/** The program of all micro-batches of a step, of the last one, which updates parameters, or of an earlier one. */
function programOf(plan: Plan, last: boolean): Program {
  const name = last || isPiped(plan) ? plan.programs[0]!.name : ACCUMULATE;
  return plan.programs.find((program) => program.name === name)!;
}

/** A mean over the counted labels of all micro-batches. */
function meanOf(
  results: readonly Weighed[],
  name: string,
): number | undefined {
  if (results[0]!.outputs[name] === undefined) return undefined;
  return results.reduce(
    (sum, { outputs, share }) => sum + share * outputs[name]!.data[0]!,
    0,
  );
}

/** For each layer with experts, the fraction of choices per expert. */
function expertLoad(plan: Plan, results: readonly Weighed[]): number[][] {
  const experts = plan.axes["expert"]?.size ?? 0;
  const layers = Object.keys(results[0]!.outputs).filter((name) =>
    CHOICES.test(name)
  );
  return layers.map((name) => {
    const counts = new Array<number>(experts).fill(0);
    let all = 0;
    for (const { outputs } of results) {
      const { data } = outputs[name]!;
      for (let i = 0; i < data.length; i++) counts[data[i]!]!++;
      all += data.length;
    }
    return counts.map((count) => count / all);
  });
}

/** The mean loss over all or some evenly spaced validation batches. Undefined if there are none. */
export async function measure(
  run: Run,
  max = Infinity,
): Promise<number | undefined> {
  const { opened: { plan, session, ranks }, task: { validation, loss } } = run;
  const program = plan.programs.find(({ name }) => name === VALIDATE);
  if (!program || !validation) return undefined;
  const microOf = (name: string) => isPiped(plan) ? microName(name, 0) : name;
  const output = microOf(
    microOf("ce_loss") in program.outputs ? "ce_loss" : loss,
  );
  const count = Math.min(validation.count, max);
  let [sum, tokens] = [0, 0];
  for (let i = 0; i < count; i++) {
    const at = Math.floor(i * validation.count / count);
    const source = { plan, program, ranks };
    const { inputs, counted } = await validation.at(at, source);
    const given = Object.fromEntries(
      Object.entries(inputs).map(([name, tensor]) =>
        [
          microOf(name) in program.inputs ? microOf(name) : name,
          tensor,
        ] as const
      ),
    );
    const outputs = await session.run(VALIDATE, given, {
      outputs: [output],
      everywhere: true,
      fresh: true,
    });
    sum += outputs[output]!.data[0]! * counted;
    tokens += counted;
  }
  figuresOf(run);
  return sum / tokens;
}

function scalar(value: number): HostTensor {
  return { dtype: "f32", shape: [], data: Float32Array.of(value) };
}

/** Bytes sent by ranks of this process since the last call, and the memory of the fullest one. */
function figuresOf(run: Run): Pick<StepMetrics, "sentBytes" | "memoryBytes"> {
  const { ranks } = run.opened.session.statistics();
  const sent = ranks.flatMap(({ sentBytes }) =>
    Object.values(sentBytes).map(({ actual }) => actual)
  ).reduce((n, bytes) => n + bytes, 0);
  const sentBytes = sent - run.sent;
  run.sent = sent;
  const memoryBytes = Math.max(
    ...ranks.map(({ peakBytes }) => peakBytes.actual),
  );
  return { sentBytes, memoryBytes };
}
