/** The live state of a run: the events of its process, and the state that a page keeps. */

/** The metrics of a training step. */
export interface LiveStep {
  readonly step: number;
  readonly loss: number;
  readonly validationLoss: number | null;
  readonly gradientNorm: number;
  readonly tokensPerSecond: number;
  /** For each layer with experts, the fraction of choices per expert. */
  readonly expertLoad: readonly (readonly number[])[];
  readonly sentBytes: number;
  /** Memory on the fullest rank of the process. */
  readonly memoryBytes: number;
}

/** A rank after a run. */
export interface LiveRank {
  readonly rank: number;
  readonly peakBytes: number;
  /** Bytes sent to other ranks. */
  readonly dispatchBytes: number;
  readonly combineBytes: number;
}

/** The events of a process, by kind. */
export interface LiveEvents {
  /** The complete state so far, for viewers that connect later. */
  readonly state: LiveState;
  /** Progress of loading. */
  readonly progress: {
    readonly stage: string;
    readonly done: number;
    readonly total: number;
  };
  readonly step: LiveStep;
  /** Generated text, and its time in milliseconds from the start. */
  readonly text: {
    readonly sequence: number;
    readonly piece: string;
    readonly ms: number;
  };
  readonly ranks: readonly LiveRank[];
  readonly end: { readonly text: string };
}

/** The known state of a run. Apart from texts, its size is bounded after `MAX_POINTS` steps. */
export interface LiveState {
  readonly progress?: LiveEvents["progress"];
  /** The last step. Its expert load is averaged over recent steps. */
  readonly last?: LiveStep;
  /** Losses by step, thinned if there are many. */
  readonly losses: readonly LossPoint[];
  readonly validations: readonly LossPoint[];
  readonly texts: readonly string[];
  readonly tokens: number;
  readonly ms: number;
  readonly ranks: readonly LiveRank[];
  readonly ended?: string;
}

/** The loss after a step. */
export type LossPoint = readonly [step: number, loss: number];

/** Maximum number of points of a curve. */
const MAX_POINTS = 2000;

/** Approximate number of steps in the average of loads. */
const MEAN_OF = 20;

/** The state before any event. */
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

/** Returns the state after an event. */
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

/** Drops every second point of the older half if there are too many points. */
function thinned(points: readonly LossPoint[]): readonly LossPoint[] {
  if (points.length <= MAX_POINTS) return points;
  const half = points.length / 2;
  return points.filter((_, i) => i >= half || i % 2 === 0);
}
