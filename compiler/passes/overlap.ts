/**
 * Waits: an asynchronous exchange is waited for before the first step that needs it. Overlap: independent steps are
 * executed while it is in flight; launches after a wait that do not need its data are moved before it. Postcondition of
 * both: every step reads the same data as before.
 */

import { type Accesses, accessesOf } from "../../spec/plan/accesses.ts";
import { startedBy } from "../../spec/plan/handles.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import type { AllToAllStep, Step } from "../../spec/plan/plan.ts";

/** Facts for finding the accesses of steps. */
interface Known {
  readonly kernels: ReadonlyMap<string, Kernel>;
  readonly started: ReadonlyMap<string, AllToAllStep>;
}

/** Inserts a wait for every asynchronous exchange before the first step that needs its data, and at the end. */
export function waitForExchanges(
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): Step[] {
  const known = { kernels, started: startedBy(steps) };
  const result: Step[] = [];
  let inFlight: AllToAllStep[] = [];
  for (const step of steps) {
    const { reads, writes } = accesses(step, known);
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
  const known = { kernels, started: startedBy(steps) };
  const result = [...steps];
  for (let i = 0; i < result.length; i++) {
    if (result[i]!.op !== "wait") continue;
    const early = takeIndependent(result, i, known);
    result.splice(i, 0, ...early);
    i += early.length;
  }
  return result;
}

/** Removes launches after a wait that depend neither on it nor on later remaining steps, up to the next routing. */
function takeIndependent(
  steps: Step[],
  wait: number,
  known: Known,
): Step[] {
  const behind = passed(known);
  const early: Step[] = [];
  for (let i = wait; i < steps.length;) {
    const step = steps[i]!;
    if (step.part?.part === "count") break;
    if (step.op === "launch" && !step.part && !behind.stops(step)) {
      early.push(...steps.splice(i, 1));
    } else {
      behind.add(step);
      i++;
    }
  }
  return early;
}

/**
 * Steps that a later one is to be moved before. It may be if it does not depend on them and does not change their
 * inputs.
 */
export interface Passed {
  add(step: Step): void;
  /** Whether a step depends on the added steps. */
  stops(step: Step): boolean;
}

/** No steps yet. */
export function passed(known: Known): Passed {
  const [read, written] = [new Set<string>(), new Set<string>()];
  return {
    add(step) {
      const { reads, writes } = accesses(step, known);
      for (const name of reads) read.add(name);
      for (const name of writes) written.add(name);
    },
    stops(step) {
      const { reads, writes } = accesses(step, known);
      return reads.some((name) => written.has(name)) ||
        writes.some((name) => written.has(name) || read.has(name));
    },
  };
}

/** The buffers that a step reads and writes; for a launch, by the bindings of its kernel. */
function accesses(step: Step, { kernels, started }: Known): Accesses {
  return accessesOf(step, started, {
    launched({ kernel, bindings: buffers }) {
      const { bindings } = kernels.get(kernel)!;
      const of = (access: "read" | "write") =>
        bindings.filter((b) => b.access === access || b.access === "read_write")
          .map(({ name }) => buffers[name]!);
      return { reads: of("read"), writes: of("write") };
    },
  });
}
