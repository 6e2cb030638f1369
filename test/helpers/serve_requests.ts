/** Random requests of a server, and their answers without ids and times. */

import { randomNumbers } from "../../engine/mod.ts";
import type { ServerClient } from "./serve.ts";

/** Request, and whether its client disconnects before the answer ends. */
export interface RandomRequest {
  readonly path: string;
  readonly body: {
    readonly stream: boolean;
    readonly [field: string]: unknown;
  };
  readonly leaves: boolean;
}

const WORDS =
  "once upon a time there was king daughter fox crow wood gold said and the of who had went to a castle"
    .split(" ");

/** Returns requests of all kinds. `chat`: includes conversations. Default: true. */
export function randomRequests(
  count: number,
  { seed, chat = true }: { readonly seed: number; readonly chat?: boolean },
): RandomRequest[] {
  const random = randomNumbers(seed, 1);
  const below = (n: number) => Math.floor(random() * n);
  const some = (part: number, fields: () => object) =>
    random() < part ? fields() : {};
  const words = (n: number) =>
    Array.from({ length: n }, () => WORDS[below(WORDS.length)]).join(" ");
  const prefix = words(12);
  const text = () =>
    `${random() < 0.5 ? prefix : ""} ${words(1 + below(30))}`.trim();
  return Array.from({ length: count }, (): RandomRequest => {
    const isChat = chat && random() < 0.3;
    const n = random() < 0.2 ? 2 + below(3) : 1;
    return {
      path: isChat ? "/v1/chat/completions" : "/v1/completions",
      leaves: random() < 0.2,
      body: {
        ...isChat
          ? { messages: [{ role: "user", content: text() }] }
          : random() < 0.1
          ? { prompt: [text(), text()] }
          : random() < 0.1
          ? { prompt: Array.from({ length: 1 + below(9) }, () => below(2048)) }
          : { prompt: text() },
        stream: random() < 0.4,
        n,
        seed: below(1e6),
        max_tokens: 1 + below(16),
        ...some(0.3, () => ({ temperature: 0 })),
        ...some(0.3, () => ({ temperature: 0.2 + 2 * random() })),
        ...some(0.3, () => ({ top_p: 0.3 + 0.7 * random() })),
        ...some(0.3, () => ({ top_k: 1 + below(50) })),
        ...some(0.2, () => ({ min_p: random() / 5 })),
        ...some(0.2, () => ({ presence_penalty: 4 * random() - 2 })),
        ...some(0.2, () => ({ frequency_penalty: 4 * random() - 2 })),
        ...some(0.2, () => ({ repetition_penalty: 0.8 + random() })),
        ...some(0.2, () => ({ logit_bias: { [below(2048)]: 5 } })),
        ...some(0.2, () => ({ stop: [WORDS[below(WORDS.length)], " a "] })),
        ...some(0.1, () => ({ ignore_eos: true })),
        ...some(
          0.3,
          () =>
            isChat
              ? { logprobs: true, top_logprobs: below(4) }
              : { logprobs: below(4), ...some(0.5, () => ({ echo: true })) },
        ),
        ...some(0.2, () => ({ stream_options: { include_usage: true } })),
        ...some(0.05, () => ({ response_format: { type: "json_object" } })),
      },
    };
  });
}

/** Returns the answer to a request: its body, or the events by choice. "left": the client disconnected. */
export async function answerOf(
  server: ServerClient,
  { path, body, leaves }: RandomRequest,
): Promise<string> {
  const controller = new AbortController();
  const { signal } = controller;
  const response = await server.post(path, body, { signal });
  if (leaves && body.stream) {
    await response.body!.getReader().read();
    controller.abort();
    return "left";
  }
  const text = await response.text();
  if (!body.stream) return JSON.stringify(stable(JSON.parse(text)), null, 1);
  const events = text.split("\n\n").filter((line) => line.startsWith("data: {"))
    .map((line) => stable(JSON.parse(line.slice(6))));
  // Choices of a request may produce events in any order.
  const order = events.map((event) =>
    (event["choices"] as { readonly index: number }[])[0]?.index ?? Infinity
  );
  return events.map((event, i) => [order[i]!, JSON.stringify(event)] as const)
    .sort(([a], [b]) => a === b ? 0 : a - b)
    .map(([, event]) => event).join("\n");
}

/** What an answer contains whatever other requests there are: not its id, its time and its cached prompt tokens. */
function stable(
  { id: _, created: __, usage, ...rest }: { readonly [field: string]: unknown },
): { readonly [field: string]: unknown } {
  if (!usage) return rest;
  const { prompt_tokens_details: ___, ...counts } = usage as {
    readonly [field: string]: unknown;
  };
  return { ...rest, usage: counts };
}

/** Sends requests in sequence. No client disconnects. */
export async function answersAlone(
  server: ServerClient,
  requests: readonly RandomRequest[],
): Promise<string[]> {
  const answers: string[] = [];
  for (const request of requests) {
    answers.push(await answerOf(server, { ...request, leaves: false }));
  }
  return answers;
}

/** Sends requests concurrently, with pseudorandom delays. */
export async function answersTogether(
  server: ServerClient,
  requests: readonly RandomRequest[],
  { seed }: { readonly seed: number },
): Promise<string[]> {
  const random = randomNumbers(seed, 2);
  const sent: Promise<string>[] = [];
  for (const request of requests) {
    sent.push(answerOf(server, request));
    const ticks = random() < 0.5 ? 0 : Math.floor(60 * random());
    for (let tick = 0; tick < ticks; tick++) {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  return await Promise.all(sent);
}

/** Reads a metric of a server. NaN: there is none. */
export async function metricOf(
  server: ServerClient,
  name: string,
): Promise<number> {
  const text = await (await fetch(`${server.address}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${name} `));
  return Number(line?.slice(name.length));
}
