/** Drafts by the model's own layer for multi-token prediction: a step of the layer for each drafted token. */

import { HIDDEN } from "../../../models/outputs.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { sum } from "../../../spec/sum.ts";
import type { Decoder, Runs } from "../decoder.ts";
import { integers, packTaken, type Taken, tokenInputs } from "../packing.ts";
import { lengthOf, tokenOf } from "../schedule.ts";
import type { Drafted, Drafter } from "./speculation.ts";

const KIND = { name: "multi-token prediction", assumed: 0.7 } as const;

/** Maximum tokens of a sequence that wait for the next draft before the layer runs them. */
const MAX_WAITING = 64;

/** Outputs of the layer. */
const OUTPUTS = ["candidates.ids", HIDDEN] as const;

/**
 * A token and the hidden state of the token before it. Undefined: unknown, as after a shared prefix; it counts as 0.
 */
interface Pair extends Taken {
  readonly before: Float32Array | undefined;
}

/** A sequence in a slot. */
interface State {
  readonly slot: number;
  /** Fed tokens that the layer has not run, in order. */
  waiting: Pair[];
  /** Hidden states of the last step by position. */
  readonly hidden: Map<number, Float32Array>;
}

/** The plan of the layer on its devices. */
export interface Predicting {
  readonly plan: Plan;
  readonly session: Pick<Runs, "run">;
}

/**
 * Creates a drafter from the layer and its decoder, whose pages the layer uses too. The layer's cache has an entry for
 * each position: of its token, and of the hidden state before it. Drafted entries are replaced when the model has run
 * their tokens.
 */
export function predictingDrafter(
  { plan: { programs: [program] }, session }: Predicting,
  decoder: Decoder,
): Drafter {
  const { pages, shape: { width, maxTokens, maxContext } } = decoder;
  const inputNames = new Set(Object.keys(program!.inputs));
  const embed = width(decoder.shape.program.outputs[HIDDEN]!);
  const states = new WeakMap<Drafted, State>();

  function stateOf(sequence: Drafted, slot: number, position: number): State {
    const known = states.get(sequence);
    // A sequence that was preempted begins again.
    if (known?.slot === slot && position > 0) return known;
    const state = { slot, waiting: [], hidden: new Map() };
    states.set(sequence, state);
    return state;
  }

  /** Runs pairs. Returns the most likely token and the hidden state after each of the `ends`. */
  async function predict(
    pairs: readonly Pair[],
    ends: readonly number[],
  ): Promise<{ readonly id: number; readonly hidden: Float32Array }[]> {
    const hidden = new Float32Array(pairs.length * embed);
    pairs.forEach(({ before }, i) => before && hidden.set(before, i * embed));
    const tables = Object.entries(pages?.tensors() ?? {})
      .filter(([name]) => inputNames.has(name));
    const outputs = await session.run(program!.name, {
      ...tokenInputs(packTaken(pairs)),
      [HIDDEN]: { dtype: "f32", shape: [pairs.length, embed], data: hidden },
      rows: integers(Int32Array.from(ends)),
      ...Object.fromEntries(tables),
    }, { outputs: ends.length > 0 ? OUTPUTS : [], everywhere: true });
    const [ids, rows] = OUTPUTS.map((name) => outputs[name]?.data);
    return ends.map((_, i) => ({
      id: ids![i]!,
      hidden: rows!.subarray(i * embed, (i + 1) * embed) as Float32Array,
    }));
  }

  /** Runs waiting tokens before a position. */
  async function flush(
    waiting: readonly { readonly state: State; readonly end: number }[],
  ): Promise<void> {
    const pairs = waiting.flatMap(({ state, end }) => takeWaiting(state, end));
    for (let from = 0; from < pairs.length; from += maxTokens) {
      await predict(pairs.slice(from, from + maxTokens), []);
    }
  }

  return {
    kindOf: (sequence) => {
      const last = lengthOf(sequence) - 1;
      return states.get(sequence)?.hidden.has(last - 1) && last < maxContext
        ? KIND
        : undefined;
    },
    ran: async ({ tokens, hidden, sequences, prompted }) => {
      const touched = new Map<Drafted, State>();
      tokens.ids.forEach((id, i) => {
        const slot = tokens.sequence[i]!;
        const position = tokens.position[i]!;
        const sequence = sequences[slot]!;
        const state = touched.get(sequence) ??
          stateOf(sequence, slot, position);
        const before = state.hidden.get(position - 1);
        if (!touched.has(sequence)) {
          touched.set(sequence, state);
          state.hidden.clear();
          // Rejected tokens, or those of a state that was rolled back.
          state.waiting = pairsBefore(state, position);
        }
        state.waiting.push({ slot, id, at: position, before });
        const row = hidden.subarray(i * embed, (i + 1) * embed);
        state.hidden.set(position, row);
      });
      const full = [...touched.values()].filter(({ waiting }) =>
        prompted > 0 || waiting.length > MAX_WAITING
      );
      await flush(full.map((state) => ({ state, end: Infinity })));
    },
    draft: async (wanted) => {
      const drafts = wanted.map((): number[] => []);
      let growing = wanted.flatMap(({ sequence, count }, i) => {
        const state = states.get(sequence)!;
        const position = lengthOf(sequence) - 1;
        const before = state.hidden.get(position - 1);
        const id = tokenOf(sequence, position);
        const pair = { slot: state.slot, id, at: position, before };
        return [{ i, state, pair, count }];
      });
      const ready = growing.map(({ state, pair }) => ({
        state,
        end: pair.at,
      }));
      const waiting = sum(ready.map(({ state }) => state.waiting.length));
      // Usually they fit into the first step of the drafts.
      const joined = waiting + growing.length <= maxTokens;
      if (!joined) await flush(ready);
      for (let first = true;; first = false) {
        growing = growing.filter(({ pair: { slot, at } }) =>
          at < maxContext && (pages?.reserve(slot, at) ?? true)
        );
        if (growing.length === 0) return drafts;
        const ends: number[] = [];
        const pairs = growing.flatMap(({ state, pair }) => {
          const before = first && joined ? takeWaiting(state, pair.at) : [];
          ends.push((ends.at(-1) ?? -1) + before.length + 1);
          return [...before, pair];
        });
        const predicted = await predict(pairs, ends);
        growing = growing.flatMap((one, index) => {
          const { id, hidden } = predicted[index]!;
          const { slot, at } = one.pair;
          drafts[one.i]!.push(id);
          if (drafts[one.i]!.length === one.count) return [];
          const pair = { slot, id, at: at + 1, before: hidden };
          return [{ ...one, pair }];
        });
      }
    },
  };
}

/** Removes the waiting tokens of a sequence; returns those before a position. Later ones were rejected. */
function takeWaiting(state: State, end: number): Pair[] {
  const pairs = pairsBefore(state, end);
  state.waiting = [];
  return pairs;
}

function pairsBefore({ waiting }: State, end: number): Pair[] {
  return waiting.filter(({ at }) => at < end);
}
