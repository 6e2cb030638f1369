/**
 * Launches for one token on wide devices. A launch for any number of tokens becomes one for a single token and one for
 * more, if the first can then share a launch with another. For one token, all workgroups are along y.
 */

import { cachedWith } from "../../spec/bounded_cache.ts";
import { div, id, rem, u32 } from "../../spec/kernel/build.ts";
import { replaceIn } from "../../spec/kernel/replace.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import type { LaunchStep, Step } from "../../spec/plan/plan.ts";
import { evaluateSize, type Size } from "../../spec/size.ts";
import { addKernel, type Lowering } from "./lower/context.ts";
import { forRows } from "./lower/matmul/inline_norms.ts";
import { changeWriters, writesOf } from "./lower/writers.ts";

/** A step, and its launch for one token. */
interface OneToken {
  readonly step: LaunchStep;
  readonly one: LaunchStep;
  /** The launch for more tokens. Absent: the step is only for one. */
  readonly more?: LaunchStep;
}

/** Steps in which launches for one token are apart. */
export interface SplitSteps {
  readonly steps: readonly Step[];
  /** Whether a step is a launch for one token. */
  isForOne(step: Step): boolean;
  /**
   * The steps after `merged` has taken some launches for one token. Others are split only if they have another kernel when
   * they are alone.
   */
  rejoin(merged: readonly Step[]): Step[];
}

/** Splits the launches that `canMerge`. */
export function splitForOne(
  lowering: Lowering,
  steps: readonly Step[],
  canMerge: (step: Step) => step is LaunchStep,
): SplitSteps {
  const parts = new Map<Step, OneToken>();
  const split = steps.flatMap((step): Step[] => {
    const part = canMerge(step) ? oneTokenOf(lowering, step) : undefined;
    if (!part) return [step];
    parts.set(part.one, part);
    return part.more ? [part.one, part.more] : [part.one];
  });
  return {
    steps: split,
    isForOne: (step) => parts.has(step),
    rejoin: (merged) => {
      const dropped = new Set<Step>();
      const left = new Set(merged);
      const replaced = new Map<Step, Step>();
      for (const { one, more, step } of parts.values()) {
        if (!more) continue;
        const { alone } = lowering.draft.forOne.get(step.kernel) ?? {};
        if (left.has(one) && !alone) {
          dropped.add(more);
          continue;
        }
        changeWriters(lowering, writesOf(lowering, more), 1);
        if (!left.has(one)) continue;
        const { kernel, groups } = alone!;
        replaced.set(one, {
          ...one,
          kernel: addKernel(lowering, kernel),
          workgroups: [one.workgroups[0], groups, 1],
        });
      }
      return merged.filter((step) => !dropped.has(step))
        .map((step) => replaced.get(step) ?? parts.get(step)?.step ?? step);
    },
  };
}

/** The launch of a step for one token. Undefined: it has none, or its grid depends on more than tokens of this rank. */
function oneTokenOf(
  lowering: Lowering,
  step: LaunchStep,
): OneToken | undefined {
  const [x, y, z] = step.workgroups;
  const axes = new Set<string>();
  const groups = (count: number) =>
    [x, y, z].map((size) =>
      evaluateSize(size, (axis, over) => {
        axes.add([axis, ...over].join("@"));
        return count;
      })
    ) as [number, number, number];
  const [across, along, deep] = groups(1);
  const [axis] = axes;
  if (axes.size !== 1 || !lowering.placed.counts.includes(axis!)) return;
  if (deep !== 1 || across === 0 || along === 0) return;
  const tokens: Size = { count: axis! };
  const { few: atMostOne } = forRows(tokens, { rows: tokens });
  const { merged } = lowering.draft.forOne.get(step.kernel) ?? {};
  const one: LaunchStep = {
    ...step,
    kernel: merged
      ? addKernel(lowering, merged.kernel)
      : across === 1
      ? step.kernel
      : kernelAlongY(lowering, step.kernel, across),
    workgroups: [atMostOne, merged ? merged.groups : across * along, 1],
  };
  if (isOnlyForOne(x)) return { one, step };
  const { more } = forRows(x, { rows: tokens });
  return { one, more: { ...step, workgroups: [more, y, z] }, step };
}

/** Whether a size is 0 for more than one token. */
function isOnlyForOne(size: Size): boolean {
  return typeof size !== "number" && "upTo" in size && size.upTo[1] <= 1;
}

/** A kernel whose workgroups, `across` along x, are all along y. */
function kernelAlongY(
  lowering: Lowering,
  name: string,
  across: number,
): string {
  const kernel = lowering.draft.kernels.get(name)!;
  const body = cachedWith(bodiesAlongY, kernel.body, {
    key: `${across}`,
    create: () => bodyAlongY(kernel.body, across),
  });
  return addKernel(lowering, { ...kernel, body });
}

type Body = Kernel["body"];

/** Bodies with all workgroups along y, by the original body: plans share most bodies. */
const bodiesAlongY = new WeakMap<Body, Map<string, Body>>();

function bodyAlongY(body: Body, across: number): Body {
  const ids = new Map([
    ["group.x", rem(id("group.y"), u32(across))],
    ["group.y", div(id("group.y"), u32(across))],
  ]);
  return replaceIn(body, { id: (name) => ids.get(name) });
}
