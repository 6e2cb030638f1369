/** Rules of kernels and of the steps that launch them. */

import { constantWork } from "../kernel/bound.ts";
import { matrixFaults } from "../kernel/matrices.ts";
import type { Binding } from "../kernel/tree.ts";
import { storedElementsOf } from "../layout.ts";
import { STORED_BYTES, type StoredDType } from "../dtype.ts";
import { valuesOf } from "../per_rank.ts";
import { onRank, type PlanBuffer } from "../plan/plan.ts";
import type { Facts, KernelEntry, Report } from "../plan/facts.ts";

/**
 * Checks that every kernel's tree is well formed: names bound, types match, loads and stores in known bindings; a
 * matrix form expands to the body.
 */
export function checkTrees({ kernels }: Facts, report: Report): void {
  for (const [name, { kernel, facts }] of kernels) {
    for (const fault of [...facts.faults, ...matrixFaults(kernel.tree)]) {
      report(`use kernel '${name}'`, fault);
    }
    if (kernel.tree.name !== name) {
      report(`use kernel '${name}'`, `its tree is of '${kernel.tree.name}'`);
    }
    for (const { name: binding, access } of kernel.tree.bindings) {
      const loads = facts.loads.has(binding);
      const stores = facts.stores.has(binding);
      if (!loads && !stores) {
        report(`use kernel '${name}'`, `it does nothing with '${binding}'`);
      } else if (access !== "read" && !stores) {
        report(
          `use kernel '${name}'`,
          `'${binding}' is declared '${access}' and never stored to`,
        );
      }
    }
  }
}

/** Checks that every invocation of a workgroup reaches every barrier. */
export function checkBarriers({ kernels }: Facts, report: Report): void {
  for (const [name, { facts }] of kernels) {
    if (facts.divergent.size > 0) {
      report(
        `use kernel '${name}'`,
        "a barrier is where not every invocation arrives",
      );
    }
  }
}

/** Whether a kernel may access a buffer as `type`; moves of rows use words of any type. */
function fitsBinding(
  type: Binding["type"],
  dtype: StoredDType,
  words: boolean,
): boolean {
  if (STORED_BYTES[dtype] < 4) return type === "u32";
  return type === dtype || (words && type === "u32");
}

/** Elements of a binding's type in a buffer. */
function elementsOf(buffer: PlanBuffer, rank: number): number {
  return STORED_BYTES[buffer.dtype] < 4
    ? onRank(buffer.bytes, rank) / 4
    : storedElementsOf(buffer, rank);
}

/** Errors of binding these buffers to a kernel. `words`: any buffer may be accessed as u32. */
function bindingFaults(
  facts: Facts,
  entry: KernelEntry,
  bindings: { readonly [binding: string]: string },
  options: { readonly ranks: readonly number[]; readonly words?: boolean },
): string[] {
  const faults: string[] = [];
  const { tree } = entry.kernel;
  const given = new Map(Object.entries(bindings));
  for (const { name, type } of tree.bindings) {
    const bufferName = given.get(name);
    if (bufferName === undefined) {
      faults.push(`binding '${name}' is given no buffer`);
      continue;
    }
    given.delete(name);
    const buffer = facts.buffers.get(bufferName)!;
    if (!fitsBinding(type, buffer.dtype, options.words ?? false)) {
      faults.push(
        `binding '${name}' is ${type} and buffer '${bufferName}' is ${buffer.dtype}`,
      );
    }
    const indices = entry.facts.indices.get(name);
    if (!indices) continue;
    const reach = [...indices].reduce((a, b) => Math.max(a, b));
    const short = options.ranks.find((rank) =>
      elementsOf(buffer, rank) <= reach
    );
    // A buffer without elements is never accessed: its kernel is not launched, or its loops are empty.
    if (short !== undefined && elementsOf(buffer, short) > 0) {
      faults.push(
        `it uses element ${reach} of '${name}' and buffer '${bufferName}' has ${
          elementsOf(buffer, short)
        } on rank ${short}`,
      );
    }
  }
  for (const name of given.keys()) {
    faults.push(`it has no binding '${name}'`);
  }
  return faults;
}

/**
 * Checks that launches give every binding of their kernel one buffer, of the right dtype and long enough for constant
 * indices.
 */
export function checkBindings(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "launch") continue;
      const entry = facts.kernels.get(step.kernel)!;
      const options = { ranks: at.ranks };
      for (
        const fault of bindingFaults(facts, entry, step.bindings, options)
      ) report(`launch kernel '${step.kernel}'`, fault, at);
    }
  }
}

/** Maximum workgroups of a launch. */
const MAX_GROUPS = 2 ** 30;

/** Maximum operations of an invocation and of a launch known from constants: more than the largest models need. */
const MAX_INVOCATION = 2 ** 32, MAX_LAUNCH = 2 ** 54;

/** Checks that the work of launches is limited, as far as constants determine it. */
export function checkWork(facts: Facts, report: Report): void {
  const works = new Map<string, number>();
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "launch") continue;
      const { tree } = facts.kernels.get(step.kernel)!.kernel;
      const work = works.get(step.kernel) ?? constantWork(tree);
      works.set(step.kernel, work);
      const sizes = step.workgroups.map((size) => facts.bound(size));
      const groups = sizes.reduce((a, b) => a * b, 1);
      const checks: readonly (readonly [string, number, number])[] = [
        ["workgroups", groups, MAX_GROUPS],
        ["operations an invocation", work, MAX_INVOCATION],
        ["operations", groups * tree.workgroupSize * work, MAX_LAUNCH],
      ];
      for (const [what, found, max] of checks) {
        if (found <= max) continue;
        report(
          `launch kernel '${step.kernel}'`,
          `it takes ${rounded(found)} ${what}, and ${rounded(max)} are allowed`,
          at,
        );
      }
    }
  }
}

/** A large count, rounded to three digits. */
function rounded(count: number): string {
  return count < 1e6 ? String(count) : count.toExponential(2);
}

/** Checks that copies are inside both buffers and preserve the dtype. */
export function checkCopies(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "copy") continue;
      const [from, to] = [step.from, step.to].map((n) => facts.buffers.get(n)!);
      const fail = (because: string) =>
        report(`copy '${step.from}' to '${step.to}'`, because, at);
      if (from!.dtype !== to!.dtype) {
        fail(`one is ${from!.dtype} and the other ${to!.dtype}`);
      }
      const ragged = valuesOf(step.bytes).find((bytes) => bytes % 4 !== 0);
      if (ragged !== undefined) fail(`${ragged} bytes are no whole words`);
      for (const buffer of [from!, to!]) {
        const rank = at.ranks.find((r) =>
          onRank(buffer.bytes, r) < onRank(step.bytes, r)
        );
        if (rank === undefined) continue;
        fail(
          `${
            onRank(step.bytes, rank)
          } bytes do not fit '${buffer.name}', which has ${
            onRank(buffer.bytes, rank)
          } on rank ${rank}`,
        );
      }
    }
  }
}
