/** Summary of a plan in a few lines. Only for legal plans. */

import { perRankText } from "../per_rank.ts";
import { modelAxis, partLengths } from "../axis_parts.ts";
import {
  bytesOfKinds,
  expectedDestinations,
  movesTokens,
  shareOfExperts,
} from "../plan/bytes.ts";
import { groupRanks, groupSizeOf } from "../mesh.ts";
import { type PerRank, perRank, valuesOf } from "../per_rank.ts";
import { onRank, type Plan } from "../plan/plan.ts";
import { receiveTexts } from "../plan/rounds.ts";
import { sizeText } from "../size_text.ts";
import { meshText } from "./plan.ts";
import { collectFacts, type Facts } from "../plan/facts.ts";
import {
  expertEnds,
  permutationsOf,
  type RoutingFacts,
} from "../plan/routing_parts.ts";

/** `12.3 MiB`, or minimum and maximum. */
function rangeText(value: PerRank): string {
  const values = valuesOf(value);
  const [min, max] = [Math.min(...values), Math.max(...values)];
  return min === max ? sizeText(max) : `${sizeText(min)} to ${sizeText(max)}`;
}

/** Ranks, experts, memory, bytes per token and steps of a plan, in a few lines. */
export function summarizePlan(plan: Plan): string {
  const facts = collectFacts(plan);
  const kinds = (...names: string[]) => rangeText(bytesOfKinds(plan, names));
  const steps = plan.programs.map(({ name, steps }) =>
    `${steps.length} steps in ${name}`
  );
  return [
    `ranks: ${plan.ranks} (mesh ${meshText(plan)})`,
    ...expertLines(facts),
    `memory per rank: ${rangeText(plan.peakBytes)} (weights ${
      kinds("weight")
    }, states ${kinds("state")})`,
    ...receiveTexts(plan).map((text) => `receive buffers: ${text}`),
    ...trafficLines(facts),
    ...activationLines(plan),
    `work: ${steps.join(", ")}, ${Object.keys(plan.kernels).length} kernels`,
  ].join("\n") + "\n";
}

function activationLines({ weights }: Plan): string[] {
  const quantized = weights.filter(({ activations }) => activations);
  return quantized.length === 0
    ? []
    : [`activations: q8 for ${quantized.length} weights`];
}

function expertLines(facts: Facts): string[] {
  const { plan, buffers } = facts;
  const ofWeights = new Set(
    [...buffers.values()].flatMap(({ kind, axes }) =>
      kind === "weight" ? axes.map(({ axis }) => axis) : []
    ),
  );
  const axes = Object.entries(plan.axes)
    .filter(([name, { experts }]) => experts && ofWeights.has(name));
  // A router's matrix has all experts on every rank.
  const sharded = axes.filter(([, { over }]) => over);
  return (sharded.length > 0 ? sharded : axes).map(([name, axis]) => {
    const { over, size } = axis;
    const lengths = partLengths(plan, axis);
    const held = groupRanks(plan.mesh, over ?? []).map((groupRank) =>
      lengths?.[groupRank] ?? size
    );
    const where = over ? `over ${over.join("+")}` : "on each rank";
    return `${modelAxis(plan, name)}s per rank: ${
      heldText(held)
    } (${size} ${where})`;
  });
}

/** `2 2 2 2`; for more than 16 ranks `1 x 256/0 x 768`. */
function heldText(held: readonly number[]): string {
  const value = perRank(held);
  if (held.length <= 16) return held.join(" ");
  return typeof value === "number"
    ? `${value} x ${held.length}`
    : perRankText(value);
}

/** Choices per token of a routing: the last axis of its permutation. */
function choicesOf(facts: Facts, routing: RoutingFacts): number {
  const name = permutationsOf(routing.within ?? routing).find((n) =>
    facts.buffers.get(n)!.axes.length > 1
  );
  const last = name === undefined
    ? undefined
    : facts.buffers.get(name)!.axes.at(-1);
  return last ? onRank(last.size, 0) : 0;
}

/** ` (20 over node, 48 over ep)`: bytes by the mesh axes of exchanges, if there are several. */
function linksText(links: ReadonlyMap<string, number>): string {
  const texts = [...links].map(([over, bytes]) =>
    `${Math.round(bytes)} over ${over}`
  );
  return texts.length > 1 ? ` (${texts.join(", ")})` : "";
}

/** Bytes per token in the dispatches and combines of each program. */
function trafficLines(facts: Facts): string[] {
  const lines: string[] = [];
  for (const { program } of facts.programs) {
    const routings = facts.routings.filter((r) => r.program === program.name);
    if (routings.length === 0) continue;
    const layers = routings.filter(({ within }) => !within).length;
    const where = facts.programs.length > 1 ? ` in ${program.name}` : "";
    for (const op of ["dispatch", "combine"] as const) {
      let max = 0;
      let others = 0;
      let saved = 0;
      const links = new Map<string, number>();
      for (const routing of routings) {
        const { forward, back, indices, lists } = routing;
        const exchanges = op === "dispatch"
          ? [...forward, ...indices, ...lists]
          : back;
        const ends = expertEnds(routing);
        for (const { step } of exchanges) {
          const choices = choicesOf(facts, routing);
          const groupSize = groupSizeOf(facts.plan.mesh, step.over);
          const once = movesTokens(step);
          // For deduplicated tokens, a chunk has a part of their destination ranks and chunks.
          const rows = once ? Math.min(choices, ends.length - 1) : choices;
          const usual = once ? expectedDestinations(ends, choices) : choices;
          const bytes = step.rowBytes * shareOfExperts(step);
          max += rows * bytes;
          const far = usual * bytes * (groupSize - 1) / groupSize;
          others += far;
          const link = step.over.join("+");
          links.set(link, (links.get(link) ?? 0) + far);
          const plain = step.part!.part === "exchange" ? choices : 0;
          saved += (plain - usual) * bytes * (groupSize - 1) / groupSize;
        }
      }
      lines.push(
        max === 0
          ? `${op} per token${where}: 0 bytes, all experts are on each rank`
          : `${op} per token${where}: at most ${
            Math.round(max)
          } bytes over ${layers} ${layers === 1 ? "layer" : "layers"}, ${
            Math.round(others)
          } of them to other ranks if experts are chosen evenly${
            linksText(links)
          }${
            saved > 0
              ? `, ${Math.round(saved)} fewer than once for each expert`
              : ""
          }`,
      );
    }
  }
  return lines;
}
