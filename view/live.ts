/** A run that goes on: what its process says as it goes, and what a page makes of it. */

/** A step of training, as its metrics are written. */
export interface LiveStep {
  readonly step: number;
  readonly loss: number;
  readonly validationLoss: number | null;
  readonly gradientNorm: number;
  readonly tokensPerSecond: number;
  /** Of each layer with experts, the share of choices that each expert got. */
  readonly expertLoad: readonly (readonly number[])[];
  readonly sentBytes: number;
  /** On the fullest rank of the process. */
  readonly memoryBytes: number;
}

/** A rank after a run. */
export interface LiveRank {
  readonly rank: number;
  readonly peakBytes: number;
  /** Sent to other ranks. */
  readonly dispatchBytes: number;
  readonly combineBytes: number;
}

/** What a process says, by kind. */
export interface LiveEvents {
  /** All that is known so far, for those who come late. */
  readonly state: LiveState;
  /** How far loading is. */
  readonly progress: {
    readonly stage: string;
    readonly done: number;
    readonly total: number;
  };
  readonly step: LiveStep;
  /** Text that was generated, and after how many milliseconds of all. */
  readonly text: {
    readonly sequence: number;
    readonly piece: string;
    readonly ms: number;
  };
  readonly ranks: readonly LiveRank[];
  readonly end: { readonly text: string };
}

/** What is known of a run. It takes as much memory after many steps as after `MOST_POINTS`, texts aside. */
export interface LiveState {
  readonly progress?: LiveEvents["progress"];
  /** The last step; the load of its experts is a mean of the last ones. */
  readonly last?: LiveStep;
  /** Loss over steps, thinned where there are many. */
  readonly losses: readonly LossPoint[];
  readonly validations: readonly LossPoint[];
  readonly texts: readonly string[];
  readonly tokens: number;
  readonly ms: number;
  readonly ranks: readonly LiveRank[];
  readonly ended?: string;
}

/** A loss after a step. */
export type LossPoint = readonly [step: number, loss: number];

/** Points of a curve, at most. */
const MOST_POINTS = 2000;

/** Steps whose loads are averaged, about. */
const MEAN_OF = 20;

/** Before anything is known. */
export const NOTHING: LiveState = {
  losses: [],
  validations: [],
  texts: [],
  tokens: 0,
  ms: 0,
  ranks: [],
};

type Followers = {
  readonly [K in keyof LiveEvents]: (
    state: LiveState,
    event: LiveEvents[K],
  ) => LiveState;
};

const FOLLOWERS: Followers = {
  state: (_, state) => state,
  progress: (state, progress) => ({ ...state, progress }),
  step: (state, step) => ({
    ...state,
    last: { ...step, expertLoad: meanLoad(state.last, step) },
    losses: thinned([...state.losses, [step.step, step.loss]]),
    validations: step.validationLoss === null ? state.validations : thinned([
      ...state.validations,
      [step.step, step.validationLoss],
    ]),
  }),
  text: (state, { sequence, piece, ms }) => {
    const texts = [...state.texts];
    while (texts.length <= sequence) texts.push("");
    texts[sequence] += piece;
    return { ...state, texts, tokens: state.tokens + 1, ms };
  },
  ranks: (state, ranks) => ({ ...state, ranks }),
  end: (state, { text }) => ({ ...state, ended: text }),
};

/** What is known after an event. */
export function follow<K extends keyof LiveEvents>(
  state: LiveState,
  kind: K,
  event: LiveEvents[K],
): LiveState {
  return FOLLOWERS[kind](state, event);
}

/** The kinds of events. */
export const LIVE_KINDS = Object.keys(FOLLOWERS) as (keyof LiveEvents)[];

function meanLoad(
  before: LiveStep | undefined,
  { expertLoad: load }: LiveStep,
): LiveStep["expertLoad"] {
  if (!before) return load;
  return load.map((layer, l) =>
    layer.map((share, e) => {
      const mean = before.expertLoad[l]?.[e] ?? share;
      return mean + (share - mean) / MEAN_OF;
    })
  );
}

/** Every second point of the older half, where there are too many. */
function thinned(points: readonly LossPoint[]): readonly LossPoint[] {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length / 2;
  return points.filter((_, i) => i >= half || i % 2 === 0);
}
