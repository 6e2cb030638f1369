/** Metrics of a server, for Prometheus. */

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { DecoderShape } from "../generation/decoder.ts";
import { named, SECONDS } from "./loop_metrics.ts";
import type { LoopState } from "./loop_messages.ts";
import type { RemoteLoop } from "./remote_loop.ts";

/** Pages of a group on all ranks. */
export interface PageCount {
  readonly name: string;
  readonly count: number;
}

/** Counts the pages of a decoder by group. */
export function pageCounts(
  { pagesShape }: Pick<DecoderShape, "pagesShape">,
): PageCount[] {
  if (!pagesShape) return [];
  const { owners, sharing = 1 } = pagesShape;
  const ranks = new Set(owners).size * sharing;
  return pagesShape.groups.map(({ input, count }) => ({
    name: input,
    count: ranks * count,
  }));
}

/** Metrics of a server's requests and of the state of its loop. */
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
  readonly #gauges: readonly ((state: LoopState) => void)[];

  /**
   * `capacity`: sequences that the batch has room for. `pages`: groups of pages. `speculates`: whether tokens are
   * drafted.
   */
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
      text: `${await this.#registry.metrics()}\n${state?.metrics ?? ""}`,
      type: this.#registry.contentType,
    };
  }

  #named<O extends { readonly name: string }>(
    options: O,
  ): O & { registers: Registry[] } {
    return named(options, this.#registry);
  }
}
