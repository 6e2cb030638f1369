/** Answers of a server as its page reads them: the tokens of a stream of events, with their times and experts. */

/** A token of an answer. */
export interface AnswerToken {
  readonly text: string;
  /** Milliseconds since the previous token, or since the request. */
  readonly ms: number;
  readonly logprob: number | undefined;
  /** The experts that processed the token before, by layer with a router. */
  readonly experts: readonly (readonly number[])[];
}

/** A chunk of `/v1/completions` or `/v1/chat/completions`. */
interface Chunk {
  readonly error?: { readonly message: string };
  readonly choices?: readonly {
    readonly text?: string;
    readonly delta?: {
      readonly content?: string | null;
      readonly reasoning_content?: string;
    };
    readonly logprobs?: {
      readonly token_logprobs?: readonly (number | null)[];
      readonly content?: readonly { readonly logprob: number }[];
    } | null;
    readonly routed_experts?: readonly (AnswerToken["experts"] | null)[];
  }[];
}

/** The tokens of an answer, from the texts of its stream. Throws Error with the server's message. */
export async function* answerTokens(
  texts: AsyncIterable<string>,
  now: () => number,
): AsyncGenerator<AnswerToken, void, undefined> {
  let last = now();
  let held = "";
  for await (const text of texts) {
    const events = (held + text).split("\n\n");
    held = events.pop()!;
    for (const event of events) {
      const data = /^data: (.*)$/m.exec(event)?.[1];
      if (data === undefined || data === "[DONE]") continue;
      const { error, choices } = JSON.parse(data) as Chunk;
      if (error) throw new Error(error.message);
      const choice = choices?.[0];
      const experts = choice?.routed_experts?.[0];
      const said = choice?.text ?? choice?.delta?.content ??
        choice?.delta?.reasoning_content ?? "";
      if (!experts && said === "") continue;
      const before = last;
      last = now();
      const { content, token_logprobs: logprobs } = choice?.logprobs ?? {};
      yield {
        text: said,
        ms: last - before,
        logprob: content?.[0]?.logprob ?? logprobs?.[0] ?? undefined,
        experts: experts ?? [],
      };
    }
  }
}

/** How often tokens chose the experts of a layer: the number of choices by expert, and of all. */
export function choicesOf(
  tokens: readonly AnswerToken[],
  layer: number,
): ReadonlyMap<number, number> {
  const counts = new Map<number, number>();
  for (const { experts } of tokens) {
    for (const expert of experts[layer] ?? []) {
      counts.set(expert, (counts.get(expert) ?? 0) + 1);
    }
  }
  return counts;
}
