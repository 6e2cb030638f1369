/** `/v1/completions`: continues prompts without a template. */

import {
  type Collected,
  type CollectedToken,
  expertsField,
  type Prepared,
} from "./format.ts";
import type { Choice } from "./generation.ts";
import { checkPrompt, inRequestAsync } from "./prompts.ts";
import type { CompletionRequest } from "./request_types.ts";
import { completionRequest, samplingOf, stopTextsOf } from "./requests.ts";
import type { Served } from "./served.ts";
import { grammarOf } from "./structured.ts";

/** Default number of new tokens. */
const NEW_TOKENS = 16;

/** Prepares the choices of a body. Throws RequestError. */
export async function prepareCompletion(
  body: { readonly [field: string]: unknown },
  served: Served,
): Promise<Prepared> {
  const request = completionRequest(body);
  const { echo = false, n = 1, logprobs, max_tokens = NEW_TOKENS } = request;
  const sampling = samplingOf(request, {
    ...served.shape,
    stop: served.stop,
  });
  const grammar = await grammarOf(request, served);
  const prompts = await encodePrompts(request, served);
  // Log-probabilities of a prompt exist for all tokens except the first.
  const forces = echo && logprobs !== undefined;
  const choices = prompts.flatMap(({ tokens }) => {
    const [prompt, forced] = forces
      ? [tokens.slice(0, 1), tokens.slice(1)]
      : [tokens, []];
    return Array.from({ length: n }, (_, stream): Choice => ({
      prompt,
      options: {
        ...sampling,
        stream,
        ...forces ? { forced } : {},
        grammar,
        maxNewTokens: forced.length + max_tokens,
        ...logprobs === undefined ? {} : { logprobs },
      },
      stopTexts: stopTextsOf(request),
    }));
  });
  const textOf = async (choice: number) => {
    const { text, tokens } = prompts[Math.floor(choice / n)]!;
    return text ?? await served.decoder.decodeAll(tokens);
  };
  const offsets = choices.map(() => 0);
  const choiceOf = async (
    index: number,
    { text, pieces, reason }: Collected,
  ) => ({
    index,
    text,
    logprobs: logprobs === undefined
      ? null
      : await logprobsOf(pieces, { served, offsets, index }),
    ...expertsField(pieces, request),
    finish_reason: reason ?? null,
  });
  return {
    kind: "completion",
    choices,
    promptTokens: prompts.reduce((n, { tokens }) => n + tokens.length, 0),
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    prefix: "cmpl",
    objects: ["text_completion", "text_completion"],
    begin: async (choice) => ({
      text: echo ? await textOf(choice) : "",
      pieces: forces
        ? [{
          token: choices[choice]!.prompt[0]!,
          logprobs: undefined,
          text: undefined,
        }]
        : [],
      reason: undefined,
    }),
    complete: choiceOf,
    first: async (choice, begun) =>
      echo ? await choiceOf(choice, begun) : undefined,
    delta: async (choice, added) => {
      const says = added.text !== "" || added.reason !== undefined ||
        (logprobs !== undefined || request.routed_experts) &&
          added.pieces.length > 0;
      return says ? await choiceOf(choice, added) : undefined;
    },
  };
}

/** A prompt, with its text if it was given as text. */
interface EncodedPrompt {
  readonly text: string | undefined;
  readonly tokens: readonly number[];
}

async function encodePrompts(
  { prompt }: CompletionRequest,
  served: Served,
): Promise<EncodedPrompt[]> {
  const isOne = typeof prompt === "string" || typeof prompt[0] === "number";
  const given = (isOne ? [prompt] : prompt) as (string | number[])[];
  const encoded: EncodedPrompt[] = [];
  for (const one of given) {
    const tokens = typeof one === "string"
      ? await inRequestAsync(() => served.encoder.encode(one))
      : one;
    checkPrompt(tokens, served, "prompt");
    encoded.push({ text: typeof one === "string" ? one : undefined, tokens });
  }
  return encoded;
}

/** Log-probabilities of tokens. The first token of a prompt has none. */
async function logprobsOf(
  pieces: readonly CollectedToken[],
  { served: { tokenTexts }, offsets, index }: {
    readonly served: Served;
    /** By choice, number of characters so far. */
    readonly offsets: number[];
    readonly index: number;
  },
): Promise<object> {
  const logprobs = {
    tokens: [] as string[],
    token_logprobs: [] as (number | null)[],
    top_logprobs: [] as ({ [token: string]: number } | null)[],
    text_offset: [] as number[],
  };
  for (const { token, logprobs: known } of pieces) {
    const top: { [token: string]: number } = {};
    for (const one of known ? [...known.top, known] : []) {
      top[await tokenTexts.nameOf(one.token)] ??= one.logprob;
    }
    logprobs.tokens.push(await tokenTexts.nameOf(token));
    logprobs.token_logprobs.push(known?.logprob ?? null);
    logprobs.top_logprobs.push(known ? top : null);
    logprobs.text_offset.push(offsets[index]!);
    offsets[index]! += await tokenTexts.lengthOf(token);
  }
  return logprobs;
}
