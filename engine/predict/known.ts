/** Integers that kernels will find in their buffers in a scene: lengths, positions, counts of choices, and tables made of them. */

import {
  type DealtBuffer,
  dealtBuffers,
  tableOf,
} from "../../runtime/dealt.ts";
import { bindWorkgroups } from "../../runtime/run_counts.ts";
import { rowsBetween } from "../../spec/bytes.ts";
import { groupOf, positionOver } from "../../spec/mesh.ts";
import { kernelWork } from "../../spec/kernel/work.ts";
import { wordsOn } from "../../spec/per_rank.ts";
import { onRank, type Plan, type Step } from "../../spec/plan.ts";
import { collectFacts } from "../../spec/verify_facts.ts";
import { permutationsOf, type RoutingFacts } from "../../spec/verify_parts.ts";
import { chooseExperts, type Scene } from "./scene.ts";

/** Known contents of a buffer. Equal contents are one object, so that work on them is counted once. */
export interface Known {
  readonly id: number;
  /** An element; undefined: not known. */
  at(index: number): number | undefined;
}

/** What is known of every buffer on every rank. */
export class KnownBuffers {
  readonly #scene: Scene;
  readonly #dealt: readonly DealtBuffer[];
  readonly #interned = new Map<string, Known>();
  readonly #buffers: Map<string, Known>[];
  readonly #tables = new Map<string, ReadonlyMap<string, Known>>();
  readonly #matrices = new Map<string, number[][]>();
  /** Rows of a dispatch on each rank, before or after its exchange, whichever are more. */
  readonly #rows: number[];

  constructor(scene: Scene) {
    this.#scene = scene;
    this.#dealt = dealtBuffers(scene.plan);
    const { plan } = scene;
    this.#buffers = Array.from({ length: plan.ranks }, () => new Map());
    this.#rows = new Array<number>(plan.ranks).fill(0);
    const facts = collectFacts(plan);
    const routings = facts.routings.filter(({ program }) =>
      program === scene.program.name
    );
    for (let rank = 0; rank < plan.ranks; rank++) {
      this.#given(rank);
      for (const routing of routings) this.#chosen(routing, rank);
    }
    for (const routing of routings) {
      const { gather, reach, forward, places } = routing;
      for (const { step } of [...gather, ...reach]) this.#gathered(step);
      for (const { step } of [...forward, ...places]) this.#received(step);
      for (const { step } of routing.regroup) this.#regrouped(step);
    }
  }

  /** What is known of a buffer on a rank. */
  of(rank: number, buffer: string): Known | undefined {
    return this.#buffers[rank]!.get(buffer);
  }

  /** Rows of a dispatch that a rank holds, at most. */
  rows(rank: number): number {
    return this.#rows[rank]!;
  }

  /** The counts of an exchange, by position and column. */
  matrix(buffer: string, rank: number, size: number): number[][] {
    const known = this.of(rank, buffer);
    const columns = onRank(this.#scene.plan.buffers[buffer]!.bytes, rank) / 4 /
      size;
    const key = `${known?.id} ${size} ${columns}`;
    let matrix = this.#matrices.get(key);
    if (!matrix) {
      matrix = Array.from({ length: size }, (_, s) =>
        Array.from(
          { length: columns },
          (_, c) => known?.at(s * columns + c) ?? 0,
        ));
      this.#matrices.set(key, matrix);
    }
    return matrix;
  }

  #intern(values: ArrayLike<number | undefined>): Known {
    const key = Array.prototype.join.call(values, ",");
    const known = this.#interned.get(key);
    if (known) return known;
    const made: Known = {
      id: this.#interned.size,
      at: (index) => values[index],
    };
    this.#interned.set(key, made);
    return made;
  }

  /** Lengths, constants and inputs. */
  #given(rank: number): void {
    const { plan, counts, axes, inputs, program } = this.#scene;
    const here = this.#buffers[rank]!;
    for (const buffer of this.#dealt) {
      here.set(buffer.name, this.#intern(tableOf(buffer, rank, axes)));
    }
    for (const [name, { kind, data }] of Object.entries(plan.buffers)) {
      if (kind === "counts") here.set(name, this.#intern(counts[rank]!));
      if (kind !== "const" || !data) continue;
      here.set(
        name,
        this.#intern(wordsOn(data, { mesh: plan.mesh, rank })),
      );
    }
    for (const [name, { data }] of Object.entries(inputs)) {
      const port = program.inputs[name]!;
      const local = axes.local(port.axes[0]!, rank);
      here.set(
        port.buffer,
        this.#intern(local ? Array.from(local, (i) => data[i]!) : data),
      );
    }
  }

  /** How often each expert is chosen by the tokens of a rank. */
  #chosen(routing: RoutingFacts, rank: number): void {
    const { plan, axes, options } = this.#scene;
    const permutations = permutationsOf(routing);
    const rows = permutations.map((name) => plan.buffers[name]!)
      .find((buffer) => buffer.axes.length > 1);
    const counts = countsBuffer(plan, routing);
    if (!rows || counts === undefined) return;
    const axis = rows.axes.find(({ dynamic }) => dynamic)?.axis;
    const length = axis === undefined
      ? onRank(rows.axes[0]!.size, rank)
      : axes.length(axis);
    const tokens = (axis === undefined ? undefined : axes.local(axis, rank)) ??
      Array.from({ length }, (_, i) => i);
    const chosen = chooseExperts(tokens, {
      topK: onRank(rows.axes.at(-1)!.size, rank),
      experts: onRank(plan.buffers[counts]!.bytes, rank) / 4,
      routing: routing.number,
    }, options);
    this.#buffers[rank]!.set(counts, this.#intern(chosen));
    const topK = onRank(rows.axes.at(-1)!.size, rank);
    for (const { step } of routing.reach) {
      const { splits } = routing.back[0]!.step;
      const reached = reachedTokens(chosen, splits, {
        tokens: tokens.length,
        topK,
      });
      this.#buffers[rank]!.set(step.from, this.#intern(reached));
    }
    const sent = chosen.reduce((n, count) => n + count, 0);
    this.#rows[rank] = Math.max(this.#rows[rank]!, sent);
    // Which row a choice is sent to does not matter to time, only that it has one.
    for (const name of permutations) this.#buffers[rank]!.set(name, SOME_ROW);
  }

  #gathered(step: Step & { readonly op: "allGather" }): void {
    const { plan } = this.#scene;
    if (step.blocks) return;
    for (const [rank, here] of this.#buffers.entries()) {
      const words = step.bytes / 4;
      const parts = groupOf(plan.mesh, rank, step.over).map((other) =>
        this.of(other, step.from)
      );
      if (parts.some((part) => !part)) continue;
      here.set(
        step.to,
        this.#intern(
          parts.flatMap((part) =>
            Array.from({ length: words }, (_, i) => part!.at(i))
          ),
        ),
      );
    }
  }

  #received(step: Step & { readonly op: "allToAll" }): void {
    const { plan } = this.#scene;
    for (const rank of this.#rows.keys()) {
      const group = groupOf(plan.mesh, rank, step.over);
      const me = positionOver(plan.mesh, rank, step.over);
      const rows = rowsBetween(
        this.matrix(step.counts, rank, group.length),
        { splits: step.splits },
      ).reduce((n, row) => n + row[me]!, 0);
      this.#rows[rank] = Math.max(this.#rows[rank]!, rows);
    }
  }

  /** Carry out a kernel that makes tables of rows from counts. */
  #regrouped(step: Step): void {
    if (step.op !== "launch") return;
    const { plan, counts } = this.#scene;
    const { tree } = plan.kernels[step.kernel]!;
    for (const [rank, here] of this.#buffers.entries()) {
      const size = bindWorkgroups(step.workgroups, plan, rank)(counts);
      const data = new Map(
        tree.bindings.map(({ name }) => [name, here.get(step.bindings[name]!)]),
      );
      const key = [
        step.kernel,
        ...size,
        ...tree.bindings.map(({ name }) => data.get(name)?.id),
      ].join();
      let made = this.#tables.get(key);
      if (!made) {
        const tables = new Map<string, (number | undefined)[]>();
        for (let group = 0; group < size[0] * size[1] * size[2]; group++) {
          for (let lane = 0; lane < tree.workgroupSize; lane++) {
            kernelWork(tree, {
              group: [
                group % size[0],
                Math.floor(group / size[0]) % size[1],
                Math.floor(group / size[0] / size[1]),
              ],
              lane,
              load: (binding, index) => data.get(binding)?.at(index),
              store: (binding, index, value) => {
                const table = tables.get(binding) ?? [];
                table[index] = value;
                tables.set(binding, table);
              },
            });
          }
        }
        made = new Map(
          [...tables].map(([name, values]) => [name, this.#intern(values)]),
        );
        this.#tables.set(key, made);
      }
      for (const [binding, known] of made) {
        here.set(step.bindings[binding]!, known);
      }
    }
  }
}

/** A buffer of which only this is known, that every element is some row. */
const SOME_ROW: Known = { id: -1, at: () => 0 };

/** The buffer in which a rank counts its choices by expert. */
function countsBuffer(
  plan: Plan,
  routing: RoutingFacts,
): string | undefined {
  const written = new Set(routing.count.flatMap(({ writes }) => writes));
  const wanted = routing.gather.length > 0
    ? routing.gather.map(({ step }) => step.from)
    : routing.regroup.flatMap(({ reads }) => reads);
  const permutations = permutationsOf(routing);
  return wanted.find((name) =>
    written.has(name) && !permutations.includes(name) &&
    plan.buffers[name]?.dtype === "u32"
  );
}

/** How many tokens go to each position, if the choices of a token are independent. */
function reachedTokens(
  chosen: ArrayLike<number>,
  splits: readonly number[],
  { tokens, topK }: { readonly tokens: number; readonly topK: number },
): number[] {
  return splits.slice(1).map((end, p) => {
    let rows = 0;
    for (let c = splits[p]!; c < end; c++) rows += chosen[c]!;
    const share = tokens === 0 ? 0 : rows / (tokens * topK);
    return Math.min(rows, Math.round(tokens * (1 - (1 - share) ** topK)));
  });
}
