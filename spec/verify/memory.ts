/** Rules of memory: sizes, allocations, peak, staging, limits, and initial contents. */

import { buffersOf } from "../plan/accesses.ts";
import { predictStaging } from "../plan/bytes.ts";
import { storedBytesOf, storedElementsOf } from "../layout.ts";
import {
  GUARANTEED_LIMITS,
  KNOWN_FEATURES,
  type LimitName,
  limitOf,
  STORAGE_ALIGNMENT,
} from "../limits.ts";
import { groupSizeOf } from "../mesh.ts";
import { EXACT } from "../numerics.ts";
import { maxOverRanks, onRank } from "../plan/plan.ts";
import { indexed } from "../problems.ts";
import { perRankText, valuesOf } from "../per_rank.ts";
import { isCollective } from "../plan/members.ts";
import type { Facts, Report } from "../plan/facts.ts";

/**
 * Checks that each buffer's bytes follow from its axes and are inside its allocation at an aligned offset, and that
 * every allocation has a buffer.
 */
export function checkBytes(
  { plan, buffers, everyRank }: Facts,
  report: Report,
): void {
  const inhabited = new Set<number>();
  for (const [name, buffer] of buffers) {
    inhabited.add(buffer.allocation);
    const last = buffer.axes.at(-1);
    // A dynamic length along two axes, as in token times token, is one name twice; a placed axis may not appear twice.
    const names = buffer.axes.flatMap(({ axis, dynamic }) =>
      dynamic && !plan.axes[axis]?.over?.length ? [] : [axis]
    );
    if (new Set(names).size !== names.length) {
      report(`lay out buffer '${name}'`, "it has an axis twice");
    }
    for (const rank of everyRank) {
      const { rowStride } = buffer;
      if (
        rowStride !== undefined &&
        (!last || rowStride < onRank(last.size, rank))
      ) {
        report(
          `lay out buffer '${name}'`,
          `its row stride ${rowStride} is less than its last axis on rank ${rank}`,
        );
        break;
      }
      // The ranks of other stages do not have it.
      if (onRank(buffer.bytes, rank) === 0) continue;
      const bytes = storedBytesOf(buffer, rank);
      if (
        !Number.isSafeInteger(bytes) || bytes !== onRank(buffer.bytes, rank)
      ) {
        report(
          `lay out buffer '${name}'`,
          `its axes take ${bytes} bytes on rank ${rank} and the plan says ${
            onRank(buffer.bytes, rank)
          }`,
        );
        break;
      }
      const { allocation, offset } = buffer;
      const room = onRank(plan.allocations[allocation]!.bytes, rank);
      if (offset + bytes > room || room % 4 !== 0) {
        report(
          `lay out buffer '${name}'`,
          `it takes ${bytes} bytes at ${offset} on rank ${rank} and allocation ${allocation} has ${room}`,
        );
        break;
      }
    }
    if (buffer.offset % STORAGE_ALIGNMENT !== 0) {
      report(
        `lay out buffer '${name}'`,
        `its offset ${buffer.offset} is no multiple of ${STORAGE_ALIGNMENT}`,
      );
    }
  }
  for (const i of plan.allocations.keys()) {
    if (!inhabited.has(i)) {
      report(`use allocation ${i}`, "it holds no buffer");
    }
  }
}

/** Checks that the stated peak is the sum of the allocations. */
export function checkPeak({ plan, everyRank }: Facts, report: Report): void {
  for (const rank of everyRank) {
    const sum = plan.allocations.reduce(
      (n, allocation) => n + onRank(allocation.bytes, rank),
      0,
    );
    if (sum !== onRank(plan.peakBytes, rank)) {
      report(
        "trust the peak bytes",
        `the allocations of rank ${rank} take ${sum} bytes and the plan says ${
          onRank(plan.peakBytes, rank)
        }`,
      );
      return;
    }
  }
}

/** Checks the stated bytes of staging: collectives need exactly these. */
export function checkStaging({ plan, everyRank }: Facts, report: Report): void {
  const needed = predictStaging(plan);
  for (const kind of ["local", "host"] as const) {
    for (const rank of everyRank) {
      const [want, have] = [needed, plan.staging].map((staging) =>
        onRank(staging[kind], rank)
      );
      if (want !== have) {
        report(
          `trust the ${kind} staging`,
          `the collectives of rank ${rank} need ${want} bytes and the plan says ${have}`,
        );
        break;
      }
    }
  }
}

/** Checks that allocations, bindings, kernels and launches are within the limits of the plan. */
export function checkLimits(facts: Facts, report: Report): void {
  const { plan, buffers, kernels } = facts;
  const limit = (name: LimitName) => limitOf(plan.requiredLimits, name);
  for (const name of Object.keys(plan.requiredLimits)) {
    if (!Object.hasOwn(GUARANTEED_LIMITS, name)) {
      report(`require limit '${name}'`, "no rule of the plan depends on it");
    }
  }
  for (const name of plan.requiredFeatures) {
    if (!KNOWN_FEATURES.includes(name)) {
      report(`require feature '${name}'`, "no kernel of a plan can use it");
    }
  }
  for (const [i, allocation] of plan.allocations.entries()) {
    const bytes = maxOverRanks(allocation.bytes);
    if (bytes > limit("maxBufferSize")) {
      report(
        `allocate ${bytes} bytes for allocation ${i}`,
        `maxBufferSize is ${limit("maxBufferSize")}`,
      );
    }
  }
  for (const [name, { kernel: { tree } }] of kernels) {
    const over = (what: string, value: number, which: LimitName) => {
      if (value > limit(which)) {
        report(
          `use kernel '${name}'`,
          `it has ${value} ${what} and ${which} is ${limit(which)}`,
        );
      }
    };
    over("bindings", tree.bindings.length, "maxStorageBuffersPerShaderStage");
    over("invocations", tree.workgroupSize, "maxComputeWorkgroupSizeX");
    over(
      "invocations",
      tree.workgroupSize,
      "maxComputeInvocationsPerWorkgroup",
    );
    over(
      "bytes of workgroup memory",
      4 * tree.shared.reduce((n, array) => n + array.length, 0),
      "maxComputeWorkgroupStorageSize",
    );
  }
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      if (at.step.op === "launch") {
        const bounds = at.step.workgroups.map((size) => facts.bound(size));
        const max = Math.max(...bounds);
        // The negation also rejects NaN.
        if (!(max <= limit("maxComputeWorkgroupsPerDimension"))) {
          report(
            `launch ${bounds.join(" x ")} workgroups`,
            `maxComputeWorkgroupsPerDimension is ${
              limit("maxComputeWorkgroupsPerDimension")
            }`,
            at,
          );
        }
      }
      // Ranks that share a device bind the buffers of a collective.
      if (at.step.op !== "launch" && !isCollective(at.step)) continue;
      for (const name of new Set(buffersOf(at.step))) {
        const buffer = buffers.get(name)!;
        const bytes = maxOverRanks(buffer.bytes);
        if (bytes > indexed(buffer)) {
          report(
            `bind buffer '${name}'`,
            `it has ${bytes} bytes and kernels index at most ${
              indexed(buffer)
            }`,
            at,
          );
        }
        if (bytes > limit("maxStorageBufferBindingSize")) {
          report(
            `bind buffer '${name}'`,
            `it has ${bytes} bytes and maxStorageBufferBindingSize is ${
              limit("maxStorageBufferBindingSize")
            }`,
            at,
          );
        }
      }
    }
  }
}

/** Checks that constant, table and counts buffers state their contents, and that no other kind does. */
export function checkContents(facts: Facts, report: Report): void {
  const { plan, buffers, everyRank } = facts;
  const countBuffers: string[] = [];
  for (const [name, buffer] of buffers) {
    const fail = (because: string) => report(`fill buffer '${name}'`, because);
    if ((buffer.kind === "const") !== (buffer.data !== undefined)) {
      fail("'data' belongs to buffers of kind 'const', and to each of them");
    }
    if ((buffer.kind === "rope") !== (buffer.rope !== undefined)) {
      fail("'rope' belongs to buffers of kind 'rope', and to each of them");
    }
    if (buffer.data) {
      const given = "all" in buffer.data
        ? [buffer.data.all.length]
        : "groupRank" in buffer.data
        ? [1]
        : buffer.data.lists.map((words) => words.length);
      const held = valuesOf(buffer.bytes).filter((bytes) => bytes > 0);
      const other = given.find((length) =>
        held.some((bytes) => bytes !== 4 * length)
      );
      if (other !== undefined) {
        fail(
          `it holds ${
            perRankText(buffer.bytes)
          } bytes and is given ${other} words`,
        );
      }
    }
    if (buffer.rope) {
      const columns = buffer.axes.at(-1)?.size;
      const numbers = [
        buffer.rope.scale,
        ...buffer.rope.inverseFrequencies,
      ];
      if (
        buffer.dtype !== "f32" || buffer.axes.length !== 2 ||
        buffer.rowStride !== undefined ||
        columns !== 2 * buffer.rope.inverseFrequencies.length
      ) fail("a rotary table is f32, by position and twice the frequencies");
      if (!numbers.every(Number.isFinite)) fail("a frequency is not finite");
    }
    const { assignment } = buffer;
    if ((buffer.kind === "assignment") !== (assignment !== undefined)) {
      fail(
        "'assignment' belongs to buffers of kind 'assignment', and to each of them",
      );
    }
    if (assignment) {
      const axis = plan.axes[assignment.axis]!;
      const [only] = buffer.axes;
      const fits = {
        items: () =>
          (assignment.of !== undefined && axis.assignment !== undefined ||
            axis.assignment?.by === "keys") &&
          only?.axis === assignment.axis,
        rows: () => axis.assignment !== undefined && only?.size === axis.size,
        counts: () =>
          assignment.over !== undefined && axis.dynamic === true &&
          only?.size === groupSizeOf(plan.mesh, assignment.over),
        table: () => {
          const by = axis.assignment;
          return by?.by === "keys" && only?.axis === by.sequence &&
            buffer.axes[1]!.size === plan.axes[by.context]!.size / EXACT.block;
        },
      };
      const [dtype, length] = assignment.holds === "table"
        ? ["i32", 2]
        : ["u32", 1];
      if (
        buffer.dtype !== dtype || buffer.axes.length !== length ||
        buffer.rowStride !== undefined || !fits[assignment.holds]()
      ) {
        fail(
          `it cannot hold the ${assignment.holds} of an assigned axis as ${dtype}`,
        );
      }
    }
    if (buffer.kind === "counts") {
      countBuffers.push(name);
      const fits = everyRank.every((rank) =>
        storedElementsOf(buffer, rank) >= plan.counts.length
      );
      if (buffer.dtype !== "u32" || !fits) {
        fail(`it must hold ${plan.counts.length} u32`);
      }
    }
  }
  if (countBuffers.length > 1) {
    report(
      "write the dynamic lengths",
      `${countBuffers.map((n) => `'${n}'`).join(" and ")} are both for them`,
    );
  }
}
