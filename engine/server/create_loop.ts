/** The loop of a server in its own thread: executes the requests of the routes, and reports to them. */

import type { Decoder } from "../generation/decoder.ts";
import type { BatchSequence } from "../generation/sequence.ts";
import type { Grammars, TokenGrammar } from "../text/grammar.ts";
import { ExpertLoad } from "./expert_load.ts";
import { BatchLoop, type LoopOptions } from "./loop.ts";
import type {
  LoopPort,
  LoopState,
  Report,
  Request,
  TokenDetails,
} from "./loop_messages.ts";
import { LoopMetrics } from "./loop_metrics.ts";
import {
  collectReports,
  hasDetails,
  type LoopReports,
} from "./loop_reports.ts";

/** Options of a loop for routes. */
export interface RoutedLoopOptions
  extends Pick<LoopOptions, "now" | "idle" | "speculation"> {
  /** Grammars of the checkpoint. */
  readonly openGrammars: () => Promise<Grammars>;
  /** Bytes sent between ranks, by kind. */
  readonly sentBytes?: () => { readonly [kind: string]: number };
  /**
   * Milliseconds during which streamed tokens are collected. Steps with prompts and ends of sequences send them at
   * once.
   */
  readonly streamInterval: number;
}

/** Creates a loop for the routes at the other end of a port. */
export function createLoop(
  decoder: Decoder,
  port: LoopPort,
  options: RoutedLoopOptions,
): BatchLoop {
  const reports = collectReports(port, options);
  const observer = observeSteps(reports, options);
  const loop = new BatchLoop(decoder, {
    ...options,
    onStep: observer.step,
    onFail: (error) => reports.fail(error),
  });
  const routed: RoutedLoop = {
    loop,
    reports,
    observer,
    options,
    growing: new Map(),
  };
  const sendState = async () => {
    const state = await stateOf(decoder, routed);
    port.send({ kind: "state", state } satisfies Report);
  };
  port.receive((message) => {
    const request = message as Request;
    switch (request.kind) {
      case "add":
        reports.send();
        return void add(routed, request)
          .catch((error) => reports.fail(error, request.id));
      case "cancel": {
        const sequence = end(routed, request.id)?.sequence;
        return sequence && loop.cancel(sequence);
      }
      case "look":
        return loop.look(() => void sendState());
      default:
        request satisfies never;
    }
  });
  return loop;
}

/** A sequence of the loop. Undefined while its grammar is compiled. */
interface Running {
  sequence?: BatchSequence;
  grammar?: TokenGrammar | undefined;
  /** When it was added, or the time of its last token, in milliseconds. */
  last: number;
  first: boolean;
}

/** A loop, and the sequences of the routes by id. */
interface RoutedLoop {
  readonly loop: BatchLoop;
  readonly reports: LoopReports;
  readonly observer: StepObserver;
  readonly options: RoutedLoopOptions;
  readonly growing: Map<number, Running>;
}

/** Observes the steps of a loop. */
interface StepObserver {
  readonly load: ExpertLoad;
  readonly metrics: LoopMetrics;
  readonly step: NonNullable<LoopOptions["onStep"]>;
  /** Counts a token of the current step. */
  token(of: Running): void;
}

function observeSteps(
  reports: LoopReports,
  { now: time, streamInterval }: RoutedLoopOptions,
): StepObserver {
  const load = new ExpertLoad();
  const metrics = new LoopMetrics();
  /** The sequence of each new token. */
  let grown: Running[] = [];
  return {
    load,
    metrics,
    token: (of) => grown.push(of),
    step: (step, { at, ms }) => {
      for (const one of step.experts ?? []) load.add(one);
      metrics.step(step, ms);
      const now = time();
      for (const one of grown) {
        metrics.token(at - one.last, { first: one.first });
        one.last = at;
        one.first = false;
      }
      grown = [];
      // Without prompts, the next step probably takes as long as this one.
      const collects = step.prompted + reports.ended === 0 &&
        now + ms < reports.reported + streamInterval;
      if (!collects) reports.send();
    },
  };
}

async function stateOf(
  decoder: Decoder,
  { loop, observer, options }: RoutedLoop,
): Promise<LoopState> {
  const { running, waiting } = loop;
  const pages = decoder.pages?.used ?? [];
  const stats = options.speculation?.stats;
  return {
    running,
    waiting,
    pages,
    ...stats ? { speculation: stats } : {},
    metrics: await observer.metrics.text(),
    load: observer.load.layers,
    sent: options.sentBytes?.() ?? {},
  };
}

/** Ends a sequence of the routes. */
function end({ growing }: RoutedLoop, id: number): Running | undefined {
  const one = growing.get(id);
  growing.delete(id);
  one?.grammar?.close();
  return one;
}

async function add(
  routed: RoutedLoop,
  { id, prompt, options: { grammar: source, waits = false, ...others } }:
    & Request
    & { kind: "add" },
): Promise<void> {
  const { loop, reports, observer, growing } = routed;
  const { now, openGrammars } = routed.options;
  const one: Running = { last: now(), first: true };
  growing.set(id, one);
  one.grammar = source &&
    await (await openGrammars())
      .start(source, (error) => reports.fail(error, id));
  // It may be cancelled meanwhile.
  if (!growing.has(id)) return one.grammar?.close();
  const own: TokenDetails[] = [];
  const sequence = one.sequence = loop.add(prompt, {
    ...others,
    grammar: one.grammar,
    onToken: (token, logprobs, record) => {
      observer.token(one);
      if (hasDetails(logprobs, record)) {
        if (waits) {
          own.push({ at: sequence.tokens.length - 1, logprobs, record });
        } else reports.details({ at: reports.next, logprobs, record });
      }
      if (!waits) reports.token(id, token);
    },
    onEnd: (ending) => {
      end(routed, id);
      reports.ending({
        id,
        ending,
        details: own,
        ...waits ? { tokens: Int32Array.from(sequence.tokens) } : {},
      });
    },
  });
}
