/**
 * Strategies: exchange of tokens with experts on other ranks. Flags and their help, the schema of documents, the search
 * space, and the words of search results are derived from these tables. compiler/sharding/dispatchers.ts defines the
 * meaning of dispatchers for shardings.
 */

import { MAX_CHUNKS } from "./limits.ts";
import { type NumericsClass, OPERANDS, type Operands } from "./numerics.ts";
import { SCHEDULE_NAMES, type ScheduleName, SCHEDULES } from "./schedule.ts";
import { RECEIVE_ROWS_PATTERN } from "./plan/rounds.ts";
import { STAGES_PATTERN } from "./stages.ts";
import { type Wire, WIRE_NAMES } from "./wire.ts";

/** A dispatcher in words. */
interface DispatcherWords {
  /** Completes "Dispatcher: ". */
  readonly about: string;
  /** Its name in search results. */
  readonly text: string;
  /** Whether results of the ranks are added in an order that depends on the mesh: `fast` numerics only. */
  readonly reorders?: true;
}

/** Dispatchers, the default first. */
const DISPATCHERS = {
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

/** Exchange of tokens with experts on other ranks. */
export type Dispatcher = keyof typeof DISPATCHERS;

/** Names of the dispatchers, the default first. */
export const DISPATCHER_NAMES = Object.keys(DISPATCHERS) as [
  Dispatcher,
  ...Dispatcher[],
];

/** Words of a dispatcher. */
export function dispatcherWords(name: Dispatcher): DispatcherWords {
  return DISPATCHERS[name];
}

/** An option: a number of at least 1, the default; a flag; or one of several words, the default first. */
type StrategyOption =
  & {
    /** Its help. */
    readonly about: string;
    /** Its flag. Default: its name. */
    readonly flag?: string;
    /** Values that a search tries besides the default; exclusive if they cannot be combined with others. */
    readonly tries?: readonly (number | boolean | string)[];
    readonly alone?: true;
    /** Whether a value needs `fast` numerics: it changes the order of sums with the mesh. Default: none does. */
    reorders?(value: never): boolean;
    /** Name of a non-default value in search results. */
    text(value: never): string;
  }
  & (
    | { readonly kind: "count"; readonly max: number }
    | { readonly kind: "flag" }
    | {
      readonly kind: "word";
      readonly words: readonly string[];
      /** The default in words, if it depends on the device. */
      readonly otherwise?: string;
    }
    | { readonly kind: "text"; readonly pattern: string }
  );

const CLASSES: readonly NumericsClass[] = ["exact", "fast"];

/** The options, in the order of flags. */
export const STRATEGY_OPTIONS = {
  /**
   * Maximum number of chunks of every dispatch, by the experts of a rank: the rows of one chunk are in flight while
   * those of another are computed. Ranks with fewer experts have fewer chunks. Requires memory for two chunks at once.
   * Bits do not depend on it. Default: 1.
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
   * Sends each token at most once per rank and chunk: fewer bytes, with one more small exchange, or two under `fast`
   * numerics. Not available for rows that are weighted before the exchange. Bits do not depend on it. Default: if it
   * saves a quarter of the bytes and 1 KiB per token, for evenly chosen experts.
   */
  deduplicate: {
    kind: "flag",
    tries: [true],
    about: "Send each token at most once per rank, even if it saves little.",
    text: () => "deduplicated",
  },
  /**
   * Rows that a rank has receive buffers for: a number, or a factor of the even share (`1.25x`), the rows of each rank
   * if experts are chosen evenly. If more rows arrive, the exchange and the experts' computation run in rounds. Tokens
   * are not deduplicated. Not available in training, with chunks, or with `check`. Bits do not depend on it. Default:
   * the worst case.
   */
  receiveRows: {
    kind: "text",
    pattern: RECEIVE_ROWS_PATTERN,
    flag: "receive-rows",
    alone: true,
    tries: ["1.25x"],
    about:
      "Rows in a rank's receive buffers: a number, or a factor of the even share, such as 1.25x. More rows are received in rounds. Default: the worst case.",
    text: (rows: string) => `${rows} receive rows`,
  },
  /**
   * `exact`: bits do not depend on the mesh or a strategy. `fast`: the ranks of experts pre-sum the rows of a token
   * before they return them, for deduplicated or all-gathered tokens; native CPU devices use fused multiply-add;
   * matmuls of many rows have 16-bit operands on GPUs. Default: exact. See spec/numerics.md.
   */
  numerics: {
    kind: "word",
    words: CLASSES,
    about:
      "Numerics: exact gives the same bits on every mesh; fast lets the mesh reorder sums, compiled C fuse multiply-add, and GPUs multiply in 16 bits.",
    text: (numerics: NumericsClass) => `${numerics} numerics`,
  },
  /**
   * Exchange of tokens with experts on other ranks: see `DISPATCHERS`. `chunks`, `deduplicate` and `check` apply to
   * exchanges of rows, which only `allToAll` has. Default: allToAll.
   */
  dispatcher: {
    kind: "word",
    words: DISPATCHER_NAMES,
    alone: true,
    tries: DISPATCHER_NAMES.slice(1),
    about: `Dispatcher: ${
      DISPATCHER_NAMES.map((name) => {
        const { about, reorders } = dispatcherWords(name);
        return `${name.toLowerCase()}, ${about}${
          reorders ? " (fast numerics)" : ""
        }`;
      }).join("; ")
    }.`,
    reorders: (dispatcher: Dispatcher) =>
      dispatcherWords(dispatcher).reorders ?? false,
    text: (dispatcher: Dispatcher) => dispatcherWords(dispatcher).text,
  },
  /**
   * Whether mesh axes that shard heads and hidden elements, such as `tp`, shard the hidden elements of each expert too
   * (tensor parallelism of experts), instead of the experts. Ranks with slices of the same experts have the same load,
   * and all-reduce the combined rows of their tokens: `fast` numerics only. Requires experts with separate matrices of
   * gates and factors, and the default placement. Not available in training. Default: entire experts.
   */
  sliceExperts: {
    kind: "flag",
    flag: "slice-experts",
    alone: true,
    reorders: () => true,
    tries: [true],
    about:
      "Shard the hidden elements of each expert over tp, instead of the experts (fast numerics).",
    text: () => "experts sliced",
  },
  /**
   * Format of the rows that dispatch and combine exchange. `bf16`: both. `fp8`: dispatched rows are E4M3 with a scale
   * per 128 elements, and combined rows are bf16. Rows are rounded on every mesh, so bits do not depend on the mesh,
   * but they differ from those of `f32`. Not available in training. Default: f32. See spec/numerics.md.
   */
  wire: {
    kind: "word",
    words: WIRE_NAMES,
    about:
      "Format of exchanged rows: bf16 rounds them at dispatch and combine; fp8 rounds to FP8 at dispatch and to bf16 at combine.",
    text: (wire: Wire) => `${wire} wire`,
  },
  /**
   * Operands of matmuls of many rows, and of attention of many tokens, under `fast` numerics. `f16`: rounded for matrix
   * units, with f32 sums. Not available in training. Default: f16 on GPUs, else f32. See spec/numerics.md.
   */
  operands: {
    kind: "word",
    words: OPERANDS,
    about:
      "Operands of matmuls of many rows and of attention of many tokens with fast numerics: f16 rounds them for matrix units.",
    otherwise: "f16 on GPUs, else f32",
    text: (operands: Operands) => `${operands} operands`,
  },
  /**
   * The layers of each pipeline stage, by their numbers from 0: `0-10,11-23`, or `cost` for stages of nearly equal
   * FLOPs per token. Requires the mesh axis `pp`. Default: equal numbers of layers.
   */
  stages: {
    kind: "text",
    pattern: STAGES_PATTERN,
    about:
      "Layers of each pipeline stage, such as 0-10,11-23, or cost for nearly equal FLOPs. Default: equal numbers.",
    text: (stages: string) => `stages ${stages}`,
  },
  /** Order in which pipeline stages execute the micro-batches of a training step: see `SCHEDULES`. Default: 1f1b. */
  pipeline: {
    kind: "word",
    words: SCHEDULE_NAMES,
    about: `Pipeline schedule of training: ${
      SCHEDULE_NAMES.map((name) => `${name}, ${SCHEDULES[name].about}`)
        .join("; ")
    }.`,
    text: (pipeline: ScheduleName) => `pipeline ${pipeline}`,
  },
} as const satisfies { readonly [option: string]: StrategyOption };

type Options = typeof STRATEGY_OPTIONS;
type Value<O> = O extends { readonly kind: "count" } ? number
  : O extends { readonly kind: "flag" } ? boolean
  : O extends { readonly words: readonly (infer W)[] } ? W
  : O extends { readonly kind: "text" } ? string
  : never;

/**
 * Dispatch strategy of a plan.
 *
 * @computed
 */
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

/** The value of an option if it is not the default. */
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
    : option.kind === "word"
    ? option.words[0]
    : undefined;
  return value === usual ? undefined : value;
}

/** The flag of an option: `--receive-rows`. */
export function strategyFlag(name: keyof Strategy): string {
  const { flag = name }: StrategyOption = STRATEGY_OPTIONS[name];
  return `--${flag}`;
}

/** `--chunks 2`, `--deduplicate`, `--dispatcher allgather`: non-default options. */
export function strategyFlags(strategy: Strategy): string[] {
  return STRATEGY_ENTRIES.flatMap(([name, option]) => {
    const value = unusual(strategy, name, option);
    if (value === undefined) return [];
    const flag = strategyFlag(name);
    return option.kind === "flag"
      ? [flag]
      : [`${flag} ${String(value).toLowerCase()}`];
  });
}

/** `in 2 chunks`, `deduplicated`: non-default options in words. */
export function strategyWords(strategy: Strategy): string[] {
  return STRATEGY_ENTRIES.flatMap(([name, option]) => {
    const value = unusual(strategy, name, option);
    return value === undefined ? [] : [option.text(value as never)];
  });
}

/** The strategies that a search tries: all combinations of values, and exclusive values alone. */
export function triedStrategies(numerics: NumericsClass): Strategy[] {
  let together: Strategy[] = [{}];
  const alone: Strategy[] = [];
  for (const [name, option] of STRATEGY_ENTRIES) {
    const { tries = [], alone: single, reorders = () => false } = option;
    const values = tries
      .filter((value) => numerics === "fast" || !reorders(value as never))
      .map((value): Strategy => ({ [name]: value }));
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
