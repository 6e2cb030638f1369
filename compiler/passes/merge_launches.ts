/**
 * Merge launches: joins independent launches of a block, such as projections of the same rows (horizontal fusion).
 * Postcondition: every step reads the same data as before; bits do not change, because every workgroup computes the
 * same as before.
 */

import { cachedIn } from "../../spec/bounded_cache.ts";
import {
  type Launched,
  type Merged,
  mergeKernels,
} from "../../spec/kernel/merge.ts";
import { sharedBody } from "../../spec/kernel/shared_body.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { MAX_NODES, treeNodes } from "../../spec/kernel/verify/loops.ts";
import { limitOf } from "../../spec/limits.ts";
import { rankSetText } from "../../spec/mesh.ts";
import type { LaunchStep, Step } from "../../spec/plan/plan.ts";
import { invariant } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import { dependencies, type DependsOn } from "./dependencies.ts";
import { sharedBytes } from "./limits.ts";
import { addKernel, LENGTHS, type Lowering } from "./lower/context.ts";
import type { LaunchForOne } from "./lower/lowering.ts";
import { splitForOne } from "./one_token_launches.ts";
import { type SharedInputs, sharedInputs } from "./share_inputs.ts";

/** Merges launches of `steps`. Unused kernels are removed from the draft. */
export function mergeLaunches(
  lowering: Lowering,
  steps: readonly Step[],
  limits: { readonly [limit: string]: number },
): Step[] {
  const { kernels } = lowering.draft;
  const inputs = sharedInputs(lowering);
  const bound = steps.map((step) => {
    const kernel = step.op === "launch" && kernels.get(step.kernel)!;
    if (!kernel || fits(kernel, limits)) return step;
    const by = inputs.bind({ ...step, kernel });
    if (!fits(by.kernel, limits)) return step;
    inputs.store();
    const { bindings } = by;
    return { ...step, bindings, kernel: addKernel(lowering, by.kernel) };
  });
  const mergeAll = (steps: readonly Step[], canMerge: CanMerge): Step[] => {
    const rest = [...steps];
    const dependsOn = dependencies(steps, kernels);
    const merging = { rest, canMerge, dependsOn, limits, inputs };
    const result: Step[] = [];
    for (let first; (first = rest.shift());) {
      result.push(
        canMerge(first) ? takeMerged(lowering, first, merging) : first,
      );
    }
    return result;
  };
  const isMergeable: CanMerge = (step) => canMerge(step, kernels);
  const merged = mergeAll(bound, isMergeable)
    .map((step) => withMoreLanes(lowering, step));
  const result = lowering.options.tuning.wideRows === true
    ? mergeForOne(lowering, merged, { mergeAll, isMergeable })
    : merged;
  const used = new Set(
    result.flatMap((step) => step.op === "launch" ? [step.kernel] : []),
  );
  for (const name of kernels.keys()) {
    if (!used.has(name)) kernels.delete(name);
  }
  return result;
}

/** A launch that is not merged, with more lanes if its kernel has a wider form. */
function withMoreLanes(lowering: Lowering, step: Step): Step {
  if (step.op !== "launch") return step;
  const { wider, forOne } = lowering.draft;
  const kernel = wider.get(step.kernel);
  if (!kernel) return step;
  const name = addKernel(lowering, kernel);
  forOne.set(name, {
    ...forOne.get(step.kernel),
    merged: asIs(lowering, step),
  });
  return { ...step, kernel: name };
}

/** A launch of few rows as one for one token: both have as many workgroups along y. */
function asIs(
  { draft: { kernels } }: Lowering,
  step: LaunchStep,
): LaunchForOne {
  const { kernel, workgroups: [, groups] } = step;
  invariant(
    typeof groups === "number",
    "weights have a known number of columns",
  );
  return { kernel: kernels.get(kernel)!, groups };
}

/** Whether a step is a launch that may be merged. */
type CanMerge = (step: Step) => step is LaunchStep;

/** Merges launches for one token that have other grids for more tokens. */
function mergeForOne(
  lowering: Lowering,
  steps: readonly Step[],
  { mergeAll, isMergeable }: {
    readonly mergeAll: (steps: readonly Step[], canMerge: CanMerge) => Step[];
    readonly isMergeable: CanMerge;
  },
): Step[] {
  const split = splitForOne(lowering, steps, isMergeable);
  const isForOne = (step: Step): step is LaunchStep => split.isForOne(step);
  return split.rejoin(mergeAll(split.steps, isForOne));
}

/**
 * Whether a launch may be merged: in the forward pass, in a block, and not a part of a dispatch, whose steps are
 * ordered. Kernels with a matrix form keep it.
 */
function canMerge(
  step: Step,
  kernels: ReadonlyMap<string, Kernel>,
): step is LaunchStep {
  return step.op === "launch" && step.block !== undefined && !step.part &&
    !step.phase && !kernels.get(step.kernel)!.matrixForm;
}

/**
 * Removes from `rest` the launches that merge with `first`: launches of its block that do not depend on the steps
 * between. On wide devices, exchanges may be between, because a launch costs more than an exchange that starts later;
 * so may blocks in the block, such as shared experts.
 */
function takeMerged(
  lowering: Lowering,
  first: LaunchStep,
  { rest, canMerge, dependsOn, limits, inputs }: {
    readonly rest: Step[];
    readonly canMerge: CanMerge;
    readonly dependsOn: DependsOn;
    readonly limits: { readonly [limit: string]: number };
    readonly inputs: SharedInputs;
  },
): LaunchStep {
  const { kernels } = lowering.draft;
  const launched = (step: LaunchStep): Launched => ({
    ...step,
    kernel: kernels.get(step.kernel)!,
  });
  const before = new Set<Step>([first]);
  const steps = [first];
  let merged: MergedParts | undefined;
  let shares = false;
  const lengths = {
    buffer: LENGTHS,
    counts: lowering.placed.counts,
    uneven: lowering.options.tuning.wideRows === true,
  };
  const merge = (parts: readonly Launched[]): MergedParts | undefined => {
    if (sum(parts.map(({ kernel }) => treeNodes(kernel))) > MAX_MERGED) return;
    const made = mergeKernels(parts, lengths);
    if (!made || fits(made.kernel, limits)) return made && { made, parts };
    const bound = parts.map(inputs.bind);
    const packed = mergeKernels(bound, lengths);
    if (!packed || !fits(packed.kernel, limits)) return undefined;
    shares = true;
    return { made: packed, parts: bound };
  };
  const ranks = rankSetText(first.ranks);
  const nested = `${first.block}.`;
  const isNear = ({ op, block }: Step) =>
    lengths.uneven
      ? op !== "wait" && (block === first.block || block?.startsWith(nested))
      : op === "launch" && block === first.block;
  for (let i = 0; i < rest.length && isNear(rest[i]!);) {
    const step = rest[i]!;
    const launch = canMerge(step) && !dependsOn(step, before) &&
        rankSetText(step.ranks) === ranks
      ? step
      : undefined;
    const next = launch && merge([...steps, launch].map(launched));
    before.add(step);
    if (launch && next) {
      steps.push(launch);
      merged = next;
      rest.splice(i, 1);
    } else i++;
  }
  if (!merged) return first;
  const wider = steps.map(({ kernel }) => lowering.draft.wider.get(kernel));
  const widest = wider.every((kernel) => kernel !== undefined)
    ? merge(steps.map((step, i) => ({ ...step, kernel: wider[i]! })))
    : undefined;
  if (shares) inputs.store();
  const stepOf = ({ made, parts }: MergedParts): LaunchStep => {
    const { kernel, bindings, workgroups } = made;
    return {
      ...first,
      kernel: addKernel(lowering, { ...kernel, body: bodyOf(made, parts) }),
      bindings,
      workgroups,
      label: steps.map(({ label }) => label ?? "").join("; "),
    };
  };
  const step = stepOf(merged);
  if (!widest) return step;
  const result = stepOf(widest);
  lowering.draft.forOne.set(result.kernel, { merged: asIs(lowering, step) });
  return result;
}

/** A merged launch, and the launches that it joins, as they are bound in it. */
interface MergedParts {
  readonly made: Merged;
  readonly parts: readonly Launched[];
}

/** Bodies of merged kernels of the last plans. */
const bodies = new Map<string, Kernel["body"]>();

/** Maximum number of these bodies. */
const MAX_BODIES = 1024;

/** The body of a merged kernel: plans that are compiled one after another merge the same kernels. */
function bodyOf(
  { frame, body }: Merged,
  parts: readonly Launched[],
): Kernel["body"] {
  const numbers = parts.map(({ kernel }) => sharedBody(kernel.body).number);
  return cachedIn(bodies, JSON.stringify([numbers, frame]), {
    max: MAX_BODIES,
    create: body,
  });
}

/** Maximum statements and expressions of the parts of a merged kernel: a valid tree, with its branches. */
const MAX_MERGED = MAX_NODES - 512;

function fits(
  kernel: Pick<Kernel, "bindings" | "shared">,
  limits: { readonly [limit: string]: number },
): boolean {
  return kernel.bindings.length <=
      limitOf(limits, "maxStorageBuffersPerShaderStage") &&
    sharedBytes(kernel) <= limitOf(limits, "maxComputeWorkgroupStorageSize");
}
