/** Rules of asynchronous exchanges: each has its wait, and no step between accesses its buffers. */

import { expertRanges } from "../plan/bytes.ts";
import type { AllToAllStep, Plan, Step } from "../plan/plan.ts";
import { rankSetText } from "../mesh.ts";
import { sameList } from "./axes.ts";
import type { Facts, NamedStep, Report, StepFacts } from "../plan/facts.ts";

/** Checks that every started exchange has a unique handle and one later wait on the same ranks. */
export function checkHandles(plan: Plan, report: Report): void {
  for (const { name: program, steps } of plan.programs) {
    const flying = new Map<string, NamedStep>();
    const started = new Set<string>();
    for (const [index, step] of steps.entries()) {
      const at = { step, name: `${program}[${index}]` };
      if (step.op === "allToAll" && step.handle !== undefined) {
        if (started.has(step.handle)) {
          report(
            `start exchange '${step.handle}'`,
            "another one of the program has that name",
            at,
          );
        }
        started.add(step.handle);
        flying.set(step.handle, at);
      }
      if (step.op === "wait") {
        checkWait(step.handle, flying.get(step.handle), at, report);
        flying.delete(step.handle);
      }
    }
    for (const [handle, at] of flying) {
      report(`start exchange '${handle}'`, "no step waits for it", at);
    }
  }
}

function checkWait(
  handle: string,
  start: NamedStep | undefined,
  at: NamedStep,
  report: Report,
): void {
  if (!start) {
    report(
      `wait for exchange '${handle}'`,
      "none of that name is in flight",
      at,
    );
  } else if (ranksText(start.step) !== ranksText(at.step)) {
    report(
      `wait for exchange '${handle}'`,
      `${start.name} starts it on ranks [${ranksText(start.step)}], and here [${
        ranksText(at.step)
      }] wait`,
      at,
    );
  }
}

function ranksText({ ranks }: Step): string {
  return rankSetText(ranks) || "all";
}

/** Checks that no step between start and wait reads what an exchange writes, or writes what it reads or writes. */
export function checkFlight(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    const flying = new Map<string, StepFacts & { step: AllToAllStep }>();
    for (const at of steps) {
      const { step } = at;
      if (step.op === "wait") {
        flying.delete(step.handle);
        continue;
      }
      for (const [handle, start] of flying) {
        const fault = touched(at, start);
        if (fault === undefined) continue;
        report(
          `${fault.op} buffer '${fault.buffer}'`,
          `exchange '${handle}' of ${start.name} is in flight and ${fault.why}`,
          at,
        );
      }
      if (step.op === "allToAll" && step.handle !== undefined) {
        flying.set(step.handle, { ...at, step });
      }
    }
  }
}

function touched(
  at: StepFacts,
  start: StepFacts & { step: AllToAllStep },
): { op: string; buffer: string; why: string } | undefined {
  const mine = start.writes.filter((name) =>
    !(name === start.step.to && sharesRows(at.step, start.step))
  );
  const read = at.reads.find((name) => start.writes.includes(name));
  if (read !== undefined) {
    return { op: "read", buffer: read, why: "writes it" };
  }
  const written = at.writes.find((name) => mine.includes(name));
  if (written !== undefined) {
    return { op: "write", buffer: written, why: "writes it too" };
  }
  const taken = at.writes.find((name) => start.reads.includes(name));
  return taken === undefined
    ? undefined
    : { op: "write", buffer: taken, why: "reads it" };
}

/** Whether two exchanges return different rows of one value into one buffer. */
function sharesRows(a: Step, b: AllToAllStep): boolean {
  if (a.op !== "allToAll" || a.to !== b.to || a.counts !== b.counts) {
    return false;
  }
  if (a.direction !== "back" || b.direction !== "back") return false;
  if (!sameList(a.splits, b.splits) || a.rowBytes !== b.rowBytes) return false;
  const others = expertRanges(b);
  return expertRanges(a).every(([first, end], p) => {
    const other = others[p];
    return other !== undefined && (end <= other[0] || other[1] <= first);
  });
}
