/**
 * Waits: an asynchronous exchange is waited for before the first step that needs it. Overlap: independent steps are
 * executed while it is in flight; launches after a wait that do not need its data are moved before it. Postcondition of
 * both: every step reads the same data as before.
 */

import type { Kernel } from "../../spec/kernel/tree.ts";
import type { AllToAllStep, Step } from "../../spec/plan/plan.ts";
import { accessesIn, dependencies, type DependsOn } from "./dependencies.ts";

/** Inserts a wait for every asynchronous exchange before the first step that needs its data, and at the end. */
export function waitForExchanges(
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): Step[] {
  const accesses = accessesIn(steps, kernels);
  const result: Step[] = [];
  let inFlight: AllToAllStep[] = [];
  for (const step of steps) {
    const { reads, writes } = accesses(step);
    const needs = ({ from, to, receivedCounts }: AllToAllStep) =>
      [to, receivedCounts].some((name) => reads.includes(name)) ||
      [from, to, receivedCounts].some((name) => writes.includes(name));
    result.push(...inFlight.filter(needs).map(waitFor));
    inFlight = inFlight.filter((exchange) => !needs(exchange));
    result.push(step);
    if (step.op === "allToAll" && step.handle !== undefined) {
      inFlight.push(step);
    }
  }
  return [...result, ...inFlight.map(waitFor)];
}

function waitFor(exchange: AllToAllStep): Step {
  const { ranks, handle, label, span, block, part, phase } = exchange;
  return {
    op: "wait",
    ranks,
    handle: handle!,
    ...label === undefined ? {} : { label },
    ...span ? { span } : {},
    ...block === undefined ? {} : { block },
    ...part ? { part: { ...part, part: "wait" } } : {},
    ...phase ? { phase } : {},
  };
}

/** Orders the steps of a program so that waits are as late as possible. */
export function overlap(
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): Step[] {
  const dependsOn = dependencies(steps, kernels);
  const result = [...steps];
  for (let i = 0; i < result.length; i++) {
    if (result[i]!.op !== "wait") continue;
    const early = takeIndependent(result, i, dependsOn);
    result.splice(i, 0, ...early);
    i += early.length;
  }
  return result;
}

/** Removes launches after a wait that depend neither on it nor on later remaining steps, up to the next routing. */
function takeIndependent(
  steps: Step[],
  wait: number,
  dependsOn: DependsOn,
): Step[] {
  const remaining = new Set<Step>();
  const early: Step[] = [];
  for (let i = wait; i < steps.length;) {
    const step = steps[i]!;
    if (step.part?.part === "count") break;
    if (step.op === "launch" && !step.part && !dependsOn(step, remaining)) {
      early.push(...steps.splice(i, 1));
    } else {
      remaining.add(step);
      i++;
    }
  }
  return early;
}
