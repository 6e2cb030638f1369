/**
 * Collectives between ranks that share one device: launches derived from the step and the mesh, created when a session
 * opens. No plan lists them, so plan size is independent of the rank count.
 */

import { elementwiseGrid } from "../kernel/elementwise.ts";
import type { Grid } from "../kernel/make.ts";
import type { Kernel } from "../kernel/tree.ts";
import { groupSizeOf, type Mesh } from "../mesh.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  CollectiveStep,
  SendStep,
} from "../plan/plan.ts";
import { exchange, exchangeGrid, SOURCES } from "./exchange.ts";
import { gather } from "./gather.ts";
import { gatherRows, swapRows } from "./gather_rows.ts";

/**
 * A launch on the receiving rank. Its kernel has the bindings `dst` (the step's `to`), `src0`, `src1`, … (`from` of
 * the group ranks in `sources`), and if it uses them, `counts`, `groupRank` and `receivedCounts`, by the step's fields
 * of those names.
 */
export interface LocalLaunch {
  readonly kernel: Kernel;
  readonly sources: readonly number[];
  readonly workgroups: Grid;
}

/**
 * The launches by which each rank of a group on one device receives its part of a collective. Kernels are created once.
 */
export function localLaunches(
  mesh: Mesh,
): (step: CollectiveStep) => readonly LocalLaunch[] {
  const made = new Map<string, Kernel>();
  return (step) => {
    // Of a send, only the source.
    const ranks = step.op === "send" ? 1 : groupSizeOf(mesh, step.over);
    const { key, make, workgroups } = step.op === "allToAll"
      ? exchangeOf(step)
      : step.rows
      ? rowsOf(step, step.rows.axis)
      : partsOf(step);
    return Array.from({ length: Math.ceil(ranks / SOURCES) }, (_, i) => {
      const first = i * SOURCES;
      const count = Math.min(SOURCES, ranks - first);
      const sources = Array.from({ length: count }, (_, f) => first + f);
      const known = `${key} ${sources}`;
      const kernel = made.get(known) ?? inOneArena(make(sources));
      made.set(known, kernel);
      return { kernel, sources, workgroups };
    });
  };
}

/** A kernel whose read and written bindings may share an allocation. */
function inOneArena(kernel: Kernel): Kernel {
  const bindings = kernel.bindings.map((binding) =>
    binding.access === "read"
      ? { ...binding, writable: true as const }
      : binding
  );
  return { ...kernel, bindings };
}

/** Launches that differ only in their sources. */
interface Form {
  /** Equal for equal kernels. */
  readonly key: string;
  make(sources: readonly number[]): Kernel;
  readonly workgroups: Grid;
}

function exchangeOf(step: AllToAllStep): Form {
  const { splits, experts, countsPerRank, direction, inRounds } = step;
  const rowWords = step.rowBytes / 4;
  const name = `exchange_${direction}_${rowWords}`;
  return {
    key: JSON.stringify([name, splits, experts, countsPerRank, inRounds]),
    make: (sources) =>
      exchange({
        name,
        direction,
        splits,
        rowWords,
        sources,
        ...experts ? { experts } : {},
        ...countsPerRank === undefined ? {} : { countsPerRank },
        ...inRounds ? { inRounds } : {},
      }),
    workgroups: exchangeGrid(step.pairRows),
  };
}

function rowsOf(step: AllGatherStep | SendStep, axis: string): Form {
  const rowWords = step.bytes / 4;
  const over = step.op === "send" ? [] : step.over;
  if (step.op === "allGather" && step.blocks) {
    const name = `swap_rows_${rowWords}`;
    return {
      key: name,
      make: (sources) => swapRows({ name, rowWords, sources }),
      workgroups: elementwiseGrid({ mul: [{ count: axis }, rowWords] }),
    };
  }
  const name = `gather_rows_${rowWords}`;
  return {
    key: name,
    make: (sources) => gatherRows({ name, rowWords, sources }),
    workgroups: elementwiseGrid({
      mul: [{ count: axis, ...over.length > 0 ? { over } : {} }, rowWords],
    }),
  };
}

function partsOf(step: AllGatherStep | SendStep): Form {
  const words = step.bytes / 4;
  const blocks = step.op === "allGather" ? step.blocks : undefined;
  const name = blocks ? `swap_blocks_${words}` : `gather_${words}`;
  return {
    key: name,
    make: (sources) =>
      gather({ name, words, sources, blocks: blocks !== undefined }),
    workgroups: elementwiseGrid(words),
  };
}
