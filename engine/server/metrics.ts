/** Metrics of a server, for Prometheus. */

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Decoder } from "../decoder.ts";
import type {
  LoopState,
  RemoteLoop,
  RemoteLoopOptions,
} from "./remote_loop.ts";

/** Upper bounds of buckets in seconds. */
const SECONDS = [
  ...[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5],
  ...[1, 2.5, 5, 10, 25, 50, 100, 250, 500],
];

/** Upper bounds of buckets of tokens. */
const TOKENS = Array.from({ length: 14 }, (_, i) => 2 ** i);

/** Pages of a group on all ranks. */
export interface PageCount {
  readonly name: string;
  readonly count: number;
}

/** Counts the pages of a decoder by group. */
export function pageCounts(
  { pagesShape }: Pick<Decoder, "pagesShape">,
): PageCount[] {
  if (!pagesShape) return [];
  const { owners, sharing = 1 } = pagesShape;
  const ranks = new Set(owners).size * sharing;
  return pagesShape.groups.map(({ input, count }) => ({
    name: input,
    count: ranks * count,
  }));
}

/** Metrics of a server's activity. */
export class Metrics {
  readonly #registry = new Registry();
  readonly #requests = new Counter(this.#named({
    name: "requests_total",
    help: "Requests by route and HTTP status.",
    labelNames: ["route", "status"],
  }));
  readonly #requestSeconds = new Histogram(this.#named({
    name: "request_seconds",
    help: "Time from the arrival of a request to the end of its response.",
    buckets: SECONDS,
  }));
  readonly #stepSeconds = new Histogram(this.#named({
    name: "step_seconds",
    help: "Time of a step of the batch.",
    buckets: SECONDS,
  }));
  readonly #stepTokens = new Histogram(this.#named({
    name: "step_tokens",
    help: "Tokens that a step fed.",
    buckets: TOKENS,
  }));
  readonly #promptTokens = new Counter(this.#named({
    name: "prompt_tokens_total",
    help: "Prompt tokens that were fed; shared prefixes are fed once.",
  }));
  readonly #newTokens = new Counter(this.#named({
    name: "generated_tokens_total",
    help: "Tokens that were generated.",
  }));
  readonly #first = new Histogram(this.#named({
    name: "time_to_first_token_seconds",
    help: "Time from when a sequence is queued to its first token.",
    buckets: SECONDS,
  }));
  readonly #next = new Histogram(this.#named({
    name: "inter_token_seconds",
    help: "Time from a token of a sequence to the next.",
    buckets: SECONDS,
  }));

  readonly #gauges: readonly ((state: LoopState) => void)[];

  /** `capacity`: sequences that the batch has room for. `pages`: groups of pages. `speculates`: whether tokens are drafted. */
  constructor({ capacity, experts, pages, speculates = false }: {
    readonly capacity: number;
    /** Experts per layer. */
    readonly experts: number;
    readonly pages: readonly PageCount[];
    readonly speculates?: boolean;
  }) {
    const gauge = (name: string, help: string) =>
      new Gauge(this.#named({ name, help }));
    const waiting = gauge("sequences_waiting", "Sequences in the queue.");
    const running = gauge("sequences_running", "Sequences in the batch.");
    gauge("sequences_max", "Sequences that the batch has room for.")
      .set(capacity);
    const used = pages.map(({ name, count }) => {
      gauge(`${name}_max`, "Pages.").set(count);
      return gauge(`${name}_used`, "Pages in use.");
    });
    const speculation = speculates ? this.#speculationGauges(gauge) : [];
    const choices = this.#labelled("layer", {
      name: "expert_choices",
      help:
        "Choices of experts in the sampled steps (one of 16), by layer with experts.",
    });
    const imbalance = this.#labelled("layer", {
      name: "expert_imbalance",
      help:
        "Choices of the most chosen expert of a layer, divided by the mean, in the sampled steps.",
    });
    const sent = this.#labelled("kind", {
      name: "sent_bytes",
      help: "Bytes that ranks sent to others, counted with --stats.",
    });
    this.#gauges = [
      (state) => waiting.set(state.waiting),
      (state) => running.set(state.running),
      ...used.map((one, group) => (state: LoopState) =>
        one.set(state.pages[group]!)
      ),
      ({ load }) => {
        for (const [layer, { choices: count, max }] of load.entries()) {
          choices.set({ layer }, count);
          imbalance.set({ layer }, max * experts / count);
        }
      },
      ({ sent: bytes }) => {
        for (const [kind, count] of Object.entries(bytes)) {
          sent.set({ kind }, count);
        }
      },
      ...speculation,
    ];
  }

  #labelled(
    label: string,
    options: { readonly name: string; readonly help: string },
  ): Gauge<string> {
    return new Gauge(this.#named({ ...options, labelNames: [label] }));
  }

  #speculationGauges(
    gauge: (name: string, help: string) => Gauge,
  ): ((state: LoopState) => void)[] {
    const drafted = gauge("drafted_tokens", "Drafted tokens.");
    const accepted = gauge("accepted_tokens", "Accepted drafted tokens.");
    const gain = gauge(
      "speculation_gain",
      "Estimated time of steps without drafted tokens, divided by their time.",
    );
    return [({ speculation }) => {
      drafted.set(speculation?.drafted ?? 0);
      accepted.set(speculation?.accepted ?? 0);
      gain.set(speculation?.gain ?? 1);
    }];
  }

  /** Hooks of the loop. */
  get hooks(): Pick<RemoteLoopOptions, "onStep" | "onToken"> {
    return {
      onStep: ({ tokens, prompted, chosen, ms }) => {
        this.#stepSeconds.observe(ms / 1000);
        this.#stepTokens.observe(tokens);
        this.#promptTokens.inc(prompted);
        this.#newTokens.inc(chosen);
      },
      onToken: (ms, { first }) =>
        (first ? this.#first : this.#next).observe(ms / 1000),
    };
  }

  /** Counts a response. */
  responded(route: string, { status, ms }: {
    readonly status: number;
    readonly ms: number;
  }): void {
    this.#requests.inc({ route, status });
    this.#requestSeconds.observe(ms / 1000);
  }

  /** All metrics, as Prometheus reads them, and the type of the text. */
  async text(
    loop: Pick<RemoteLoop, "state">,
  ): Promise<{ readonly text: string; readonly type: string }> {
    const state = await loop.state();
    if (state) { for (const set of this.#gauges) set(state); }
    return {
      text: await this.#registry.metrics(),
      type: this.#registry.contentType,
    };
  }

  #named<O extends { readonly name: string }>(
    options: O,
  ): O & { registers: Registry[] } {
    const registers = [this.#registry];
    return { ...options, name: `switchyard_${options.name}`, registers };
  }
}
