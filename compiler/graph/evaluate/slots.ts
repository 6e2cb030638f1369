/** Capacity in the reference evaluator: assigns the slots of an expert in a routing group. */

import { invariant } from "../../../spec/errors.ts";
import type { CapacityRule } from "../graph.ts";
import { slotsOf } from "../routing/presets.ts";

/** The choices that compete for slots, row-major [tokens, k]. */
interface Choices {
  readonly experts: number;
  readonly k: number;
  /** The routing group of each token. */
  readonly groups: readonly number[];
  readonly index: readonly number[];
  readonly weight: readonly number[];
  /** Score of the first choice of each token. */
  readonly firstScore: readonly number[];
  /** Tokens without choices. */
  readonly padding: readonly boolean[];
  /** [tokens, experts] */
  readonly random?: ArrayLike<number> | undefined;
}

/** Returns the slot of every choice, -1 if dropped, and the number of slots of an expert in each group. */
export function giveSlots(
  rule: CapacityRule,
  choices: Choices,
): { slot: number[]; capacity: number[] } {
  const { experts, k, groups, index } = choices;
  const slot = new Array<number>(index.length).fill(-1);
  const capacity: number[] = [];
  const members = new Map<number, number[]>();
  groups.forEach((group, t) => {
    const known = members.get(group);
    if (known) known.push(t);
    else members.set(group, [t]);
  });
  for (const [, tokens] of [...members].sort(([a], [b]) => a - b)) {
    const queues = Array.from({ length: experts }, (): number[] => []);
    for (const i of inOrder(rule, tokens, choices)) queues[index[i]!]!.push(i);
    const size = { tokens: tokens.length, experts, topK: k };
    const room = slotsOf(rule, size, Math.max(...queues.map((q) => q.length)));
    capacity.push(room);
    for (const queue of queues) {
      kept(rule, queue, room, choices).forEach((i, assigned) =>
        slot[i] = assigned
      );
    }
  }
  return { slot, capacity };
}

/** The choices of a group in slot order. A repeated choice of a token counts once. */
function inOrder(
  rule: CapacityRule,
  tokens: readonly number[],
  { k, index, padding, firstScore }: Choices,
): number[] {
  const active = tokens.filter((t) => !padding[t]);
  if (rule.prioritised) {
    active.sort((a, b) => firstScore[b]! - firstScore[a]! || a - b);
  }
  const items = rule.order === "token"
    ? active.flatMap((t) => Array.from({ length: k }, (_, j) => t * k + j))
    : Array.from({ length: k }, (_, j) => active.map((t) => t * k + j)).flat();
  return items.filter((i) => {
    const first = i - i % k;
    return index.indexOf(index[i]!, first) === i;
  });
}

/** The choices of an expert that fit its capacity, in slot order. */
function kept(
  rule: CapacityRule,
  queue: readonly number[],
  room: number,
  { experts, k, index, weight, random }: Choices,
): readonly number[] {
  if (queue.length <= room) return queue;
  if (rule.drop === "position") return queue.slice(0, room);
  const rank = (i: number) => {
    if (rule.drop === "score") return weight[i]!;
    invariant(random, "a random choice has its numbers");
    return random[Math.floor(i / k) * experts + index[i]!]!;
  };
  // A stable sort preserves the slot order of equal choices.
  const best = [...queue].sort((a, b) => rank(b) - rank(a));
  const winners = new Set(best.slice(0, room));
  return queue.filter((i) => winners.has(i));
}
