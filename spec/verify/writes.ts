/**
 * Rules of data flow. Within a program a buffer has one value: all writers precede all readers. Persistent buffers have
 * two values, before and after, and state which one is read. A step that is dropped, repeated or moved past a dependent
 * one is therefore detected, whatever it computes.
 */

import {
  type BufferKind,
  onRank,
  type Program,
  type WriteOrder,
} from "../plan/plan.ts";
import type { Facts, ProgramFacts, Report, StepFacts } from "../plan/facts.ts";

/** Kinds whose contents exist before a program starts. */
const FILLED: readonly BufferKind[] = [
  "weight",
  "state",
  "const",
  "rope",
  "counts",
  "assignment",
];

/** Persistent kinds that a program may write. */
const LASTING: readonly BufferKind[] = ["weight", "state"];

/** Kinds that steps write. */
const WRITABLE: readonly BufferKind[] = ["state", "output", "scratch"];

/** Checks that steps write only states, outputs and scratch; a copy may write a trained weight. */
export function checkWrites(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      for (const name of new Set(at.writes)) {
        const { kind } = facts.buffers.get(name)!;
        const trained = kind === "weight" && at.step.op === "copy";
        if (!WRITABLE.includes(kind) && !trained) {
          report(`write buffer '${name}'`, `it is of kind '${kind}'`, at);
        }
      }
    }
  }
}

/** Number of steps that have written each buffer so far, on the ranks of each class. */
class Writers {
  readonly #counts = new Map<string, Uint32Array>();

  constructor(readonly facts: Facts) {}

  /** Steps that have written a buffer on the ranks of a class. */
  count(name: string, rankClass: number): number {
    return this.#counts.get(name)?.[rankClass] ?? 0;
  }

  /** Records another writer, or `count` writers. */
  add(name: string, classes: readonly number[], count?: number): void {
    let counts = this.#counts.get(name);
    if (!counts) {
      counts = new Uint32Array(this.facts.classes.length);
      this.#counts.set(name, counts);
    }
    for (const c of classes) counts[c] = count ?? counts[c]! + 1;
  }
}

/** The buffers that a step writes, each once; a wait completes the write of its exchange. */
function written(at: StepFacts): Iterable<string> {
  return at.step.op === "wait" ? [] : new Set(at.writes);
}

/** Whether the ranks of a class have a buffer. */
function hasBuffer(facts: Facts, name: string, rankClass: number): boolean {
  return onRank(facts.buffers.get(name)!.bytes, facts.everyRank[rankClass]!) >
    0;
}

function isFilled(facts: Facts, program: Program): (name: string) => boolean {
  const inputs = new Set(
    Object.values(program.inputs).map(({ buffer }) => buffer),
  );
  return (name) => {
    const { kind } = facts.buffers.get(name)!;
    return FILLED.includes(kind) || kind === "input" && inputs.has(name);
  };
}

/** `nothing has written it`, `3 of its 4 writers have written it` */
function missing(count: number, writers: number): string {
  return count === 0
    ? "nothing has written it"
    : `${count} of its ${writers} writers have written it`;
}

/** Checks that every read follows all writes of the buffer on the same rank, and that every output is written. */
export function checkReads(facts: Facts, report: Report): void {
  for (const { program, steps } of facts.programs) {
    const writers = new Writers(facts);
    const filled = isFilled(facts, program);
    for (const at of steps) {
      for (const name of new Set(at.reads)) {
        if (filled(name)) continue;
        const all = facts.buffers.get(name)!.writers ?? 1;
        const early = at.readers.find((c) => writers.count(name, c) < all);
        if (early === undefined) continue;
        report(
          `read buffer '${name}'`,
          `${missing(writers.count(name, early), all)} on rank ${
            facts.classes[early]![0]
          }`,
          at,
        );
        writers.add(name, at.readers, all);
      }
      for (const name of written(at)) writers.add(name, at.writers);
    }
    for (const [name, { buffer }] of Object.entries(program.outputs)) {
      const all = facts.buffers.get(buffer)!.writers ?? 1;
      const early = facts.classes.findIndex((_, c) =>
        hasBuffer(facts, buffer, c) && writers.count(buffer, c) < all
      );
      if (early >= 0) {
        const count = writers.count(buffer, early);
        report(
          `return output '${name}' of program '${program.name}'`,
          `${
            count === 0
              ? `no step writes buffer '${buffer}'`
              : `${count} of the ${all} writers of buffer '${buffer}' write it`
          } on rank ${facts.classes[early]![0]}`,
        );
      }
    }
  }
}

/** A step without its labels. */
function workOf({ step }: StepFacts): unknown {
  const said = { label: undefined, span: undefined, phase: undefined };
  return { ...step, ...said, part: undefined };
}

/**
 * Checks that no more steps of a program write a scratch buffer or an output than stated, and that no two of them are
 * equal.
 */
export function checkOnce(facts: Facts, report: Report): void {
  for (const [name, { kind, writers }] of facts.buffers) {
    if (writers !== undefined && !WRITABLE.includes(kind)) {
      report(
        `count the writers of buffer '${name}'`,
        `it is of kind '${kind}', and only states, scratch buffers and outputs have several`,
      );
    }
  }
  for (const { steps } of facts.programs) {
    const writers = new Writers(facts);
    const last = new Map<string, StepFacts>();
    const parts = new Map<string, StepFacts>();
    for (const at of steps) {
      for (const name of written(at)) {
        const { kind, writers: all = 1 } = facts.buffers.get(name)!;
        if (LASTING.includes(kind)) continue;
        if (all > 1) {
          const part = JSON.stringify([name, workOf(at)]);
          const same = parts.get(part);
          if (same) {
            report(
              `write buffer '${name}'`,
              `${same.name} is the same step, so its writers are not all different`,
              at,
            );
          }
          parts.set(part, at);
        }
        const full = at.writers.find((c) => writers.count(name, c) >= all);
        if (full !== undefined) {
          report(
            `write buffer '${name}'`,
            all === 1
              ? `${last.get(name)!.name} has written it on rank ${
                facts.classes[full]![0]
              }`
              : `its ${all} writers have written it on rank ${
                facts.classes[full]![0]
              }`,
            at,
          );
        }
        writers.add(name, at.writers);
        last.set(name, at);
      }
    }
  }
}

/**
 * Checks that weights and states are written by the stated programs, once on every rank, before or after their readers.
 */
export function checkUpdates(facts: Facts, report: Report): void {
  const names = new Set(facts.plan.programs.map(({ name }) => name));
  for (const [name, { kind, written }] of facts.buffers) {
    if (!written) continue;
    if (!LASTING.includes(kind)) {
      report(
        `let programs write buffer '${name}'`,
        `it is of kind '${kind}', and only weights and states outlive a program`,
      );
    }
    for (const program of Object.keys(written)) {
      if (names.has(program)) continue;
      report(
        `let program '${program}' write buffer '${name}'`,
        "the plan has no such program",
      );
    }
  }
  for (const program of facts.programs) {
    checkProgramUpdates(facts, program, report);
  }
}

function checkProgramUpdates(
  facts: Facts,
  { program, steps }: ProgramFacts,
  report: Report,
): void {
  const writers = new Writers(facts);
  const by = new Map<string, StepFacts>();
  const orders = new Map<string, WriteOrder>();
  for (const [name, { kind, written }] of facts.buffers) {
    if (!LASTING.includes(kind) || !written) continue;
    if (Object.hasOwn(written, program.name)) {
      orders.set(name, written[program.name]!);
    }
  }
  for (const at of steps) {
    for (const name of new Set(at.reads)) {
      const order = orders.get(name);
      // The step's own reads and writes are not compared.
      if (order === undefined || at.writes.includes(name)) continue;
      const { writers: all = 1 } = facts.buffers.get(name)!;
      const wanted = order === "before reads" ? all : 0;
      const wrong = at.readers.find((c) =>
        Math.min(writers.count(name, c), all) !== wanted
      );
      if (wrong === undefined) continue;
      report(
        `read buffer '${name}'`,
        wanted > 0
          ? `the program writes it before reads, and has not yet on rank ${
            facts.classes[wrong]![0]
          }`
          : `the program writes it after reads, and ${
            by.get(name)!.name
          } has written it`,
        at,
      );
    }
    for (const name of written(at)) {
      const { kind, writers: all = 1 } = facts.buffers.get(name)!;
      if (!LASTING.includes(kind)) continue;
      const twice = at.writers.find((c) => writers.count(name, c) >= all);
      if (!orders.has(name)) {
        report(
          `write buffer '${name}'`,
          `it does not say that program '${program.name}' does`,
          at,
        );
      } else if (twice !== undefined) {
        report(
          `write buffer '${name}'`,
          `${by.get(name)!.name} has written it on rank ${
            facts.classes[twice]![0]
          }`,
          at,
        );
      }
      writers.add(name, at.writers);
      by.set(name, at);
    }
  }
  for (const name of orders.keys()) {
    const without = facts.classes.findIndex((_, c) =>
      hasBuffer(facts, name, c) && writers.count(name, c) === 0
    );
    if (without < 0) continue;
    report(
      `update buffer '${name}' in program '${program.name}'`,
      `no step writes it on rank ${facts.classes[without]![0]}`,
    );
  }
}
