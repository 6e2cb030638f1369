/**
 * Strategies: how tokens get to experts on other ranks. What users say of them is here once: flags and their help, the
 * schema of documents, what a search tries, and the words of its results come from these tables. What a dispatcher means for
 * shardings is in compiler/sharding/dispatchers.ts.
 */

import { MAX_CHUNKS } from "./limits.ts";
import type { NumericsClass } from "./numerics.ts";

/** A way of bringing tokens and experts together. */
interface DispatcherWords {
  /** Completes "Dispatcher: ". */
  readonly about: string;
  /** What a search calls it. */
  readonly text: string;
  /** Results of the ranks are added up in an order that depends on the mesh: `fast` numerics. */
  readonly reorders?: true;
}

/** Dispatchers, the usual one first. */
export const DISPATCHERS = {
  allToAll: { about: "rows to expert ranks and back", text: "" },
  allGather: {
    about: "tokens to all ranks of a group, sums back",
    text: "tokens gathered",
    reorders: true,
  },
  gatherWeights: {
    about: "expert weights to all ranks of a group, layer by layer",
    text: "weights gathered",
  },
} as const satisfies { readonly [name: string]: DispatcherWords };

/** How tokens get to experts on other ranks. */
export type Dispatcher = keyof typeof DISPATCHERS;

/** Names of the dispatchers, the usual one first. */
export const DISPATCHER_NAMES = Object.keys(DISPATCHERS) as [
  Dispatcher,
  ...Dispatcher[],
];

/** What a dispatcher is described by. */
export function dispatcherWords(name: Dispatcher): DispatcherWords {
  return DISPATCHERS[name];
}

/** An option: a number of at least 1, which is usual; whether something is done; or one of some words, the usual one first. */
type StrategyOption =
  & {
    /** Its help. */
    readonly about: string;
    /** What a search tries besides what is usual; by itself where it does not go with others. */
    readonly tries?: readonly (number | boolean | string)[];
    readonly alone?: true;
    /** What results of a search call a value that is not usual. */
    text(value: never): string;
  }
  & (
    | { readonly kind: "count"; readonly max: number }
    | { readonly kind: "flag" }
    | { readonly kind: "word"; readonly words: readonly string[] }
  );

const CLASSES: readonly NumericsClass[] = ["exact", "fast"];

/** The options, in the order of flags. */
export const STRATEGY_OPTIONS = {
  /**
   * Cut every dispatch into up to so many chunks by the experts of a rank, so that the rows of one are in flight while those of
   * another are computed; ranks with fewer experts have fewer. Takes memory for two chunks at once. Bits do not depend on
   * it. Default: 1, an exchange at a time.
   */
  chunks: {
    kind: "count",
    max: MAX_CHUNKS,
    tries: [2],
    about:
      "Dispatch chunks: one is sent while another is computed. Default: 1.",
    text: (chunks: number) => `in ${chunks} chunks`,
  },
  /**
   * Send a token once to each rank, and for each chunk, however many of its experts are there: fewer bytes for a small
   * exchange more, or two under `fast` numerics. Not where rows are weighted before they are sent. Bits do not depend on it.
   * Default: where it saves a quarter of the bytes, and 1 KiB a token, if experts are chosen evenly.
   */
  deduplicate: {
    kind: "flag",
    tries: [true],
    about: "Send each token at most once per rank, even if it saves little.",
    text: () => "deduplicated",
  },
  /**
   * `exact`: bits do not depend on the mesh or a strategy. `fast`: the ranks of experts add up the rows of a token before
   * they return them, where tokens are sent once or gathered; native CPU devices round a product and a sum at once. Default:
   * exact. See spec/numerics.md.
   */
  numerics: {
    kind: "word",
    words: CLASSES,
    about:
      "Numerics: exact gives the same bits on every mesh; fast lets the mesh reorder sums and compiled C fuse multiply-add.",
    text: (numerics: NumericsClass) => `${numerics} numerics`,
  },
  /**
   * How tokens get to experts on other ranks: see `DISPATCHERS`. `chunks`, `deduplicate` and `check` are of exchanges of
   * rows, which only `allToAll` has. Default: allToAll.
   */
  dispatcher: {
    kind: "word",
    words: DISPATCHER_NAMES,
    alone: true,
    tries: DISPATCHER_NAMES.slice(1).filter((name) =>
      !dispatcherWords(name).reorders
    ),
    about: `Dispatcher: ${
      DISPATCHER_NAMES.map((name) => {
        const { about, reorders } = dispatcherWords(name);
        return `${name.toLowerCase()}, ${about}${
          reorders ? " (fast numerics)" : ""
        }`;
      }).join("; ")
    }.`,
    text: (dispatcher: Dispatcher) => dispatcherWords(dispatcher).text,
  },
} as const satisfies { readonly [option: string]: StrategyOption };

type Options = typeof STRATEGY_OPTIONS;
type Value<O> = O extends { readonly kind: "count" } ? number
  : O extends { readonly kind: "flag" } ? boolean
  : O extends { readonly words: readonly (infer W)[] } ? W
  : never;

/** How dispatches of a plan are sent. */
export type Strategy = {
  readonly [K in keyof Options]?: Value<Options[K]>;
};

/** Every option with its name. */
export const STRATEGY_ENTRIES = Object.entries(STRATEGY_OPTIONS) as [
  keyof Strategy,
  StrategyOption,
][];

/** Names of the options. */
export const STRATEGY_NAMES = STRATEGY_ENTRIES.map(([name]) => name);

/** The value of an option where it is not the usual one. */
function unusual(
  strategy: Strategy,
  name: keyof Strategy,
  option: StrategyOption,
): number | boolean | string | undefined {
  const value = strategy[name];
  const usual = option.kind === "count"
    ? 1
    : option.kind === "flag"
    ? false
    : option.words[0];
  return value === usual ? undefined : value;
}

/** `--chunks 2`, `--deduplicate`, `--dispatcher allgather`: what is not usual. */
export function strategyFlags(strategy: Strategy): string[] {
  return STRATEGY_ENTRIES.flatMap(([name, option]) => {
    const value = unusual(strategy, name, option);
    if (value === undefined) return [];
    return option.kind === "flag"
      ? [`--${name}`]
      : [`--${name} ${String(value).toLowerCase()}`];
  });
}

/** `in 2 chunks`, `deduplicated`: what is not usual, in words. */
export function strategyWords(strategy: Strategy): string[] {
  return STRATEGY_ENTRIES.flatMap(([name, option]) => {
    const value = unusual(strategy, name, option);
    return value === undefined ? [] : [option.text(value as never)];
  });
}

/** What a search tries: every value with every other, and those that go with no other by themselves. */
export function triedStrategies(): Strategy[] {
  let together: Strategy[] = [{}];
  const alone: Strategy[] = [];
  for (const [name, { tries = [], alone: single }] of STRATEGY_ENTRIES) {
    const values = tries.map((value): Strategy => ({ [name]: value }));
    if (single) alone.push(...values);
    else {
      together = [
        ...together,
        ...values.flatMap((value) =>
          together.map((other) => ({ ...other, ...value }))
        ),
      ];
    }
  }
  return [...together.slice(1), ...alone];
}
