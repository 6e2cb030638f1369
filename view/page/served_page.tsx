/** The page of a server: a conversation with its model, and the time and experts of each token. */

import type { VNode } from "preact";
import { useRef, useState } from "preact/hooks";
import type { ServedData } from "../page_data.ts";
import { type AnswerToken, answerTokens, choicesOf } from "../served_answer.ts";
import { FactList } from "./fact_list.tsx";
import { View } from "./picture.tsx";

/** A message, with the tokens of an answer. */
interface Message {
  readonly role: "user" | "assistant";
  readonly text: string;
  readonly tokens: readonly AnswerToken[];
}

/** A token of a message. */
interface Selected {
  readonly message: number;
  readonly token: number;
}

/** Default number of new tokens. */
const NEW_TOKENS = 64;

/** Shows a conversation. */
export function ServedPage({ data }: { readonly data: ServedData }): VNode {
  const { model, chat, keyed } = data.served;
  const [messages, setMessages] = useState<readonly Message[]>([]);
  const [selected, select] = useState<Selected | undefined>(undefined);
  const [state, setState] = useState("");
  const running = useRef<AbortController | undefined>(undefined);
  const form = useRef<HTMLFormElement | null>(null);

  const send = async (event: Event) => {
    event.preventDefault();
    const fields = new FormData(form.current!);
    const text = String(fields.get("text"));
    if (text === "" || running.current) return;
    const asked: Message[] = [...messages, { role: "user", text, tokens: [] }];
    const answer = { role: "assistant" as const, tokens: [] as AnswerToken[] };
    const controller = running.current = new AbortController();
    const show = () => {
      const tokens = [...answer.tokens];
      const said = tokens.map(({ text }) => text).join("");
      setMessages([...asked, { ...answer, text: said, tokens }]);
      select({ message: asked.length, token: tokens.length - 1 });
    };
    setState("The model answers.");
    try {
      const response = await fetch(
        chat ? "v1/chat/completions" : "v1/completions",
        {
          method: "POST",
          signal: controller.signal,
          headers: {
            "content-type": "application/json",
            ...keyed ? { authorization: `Bearer ${fields.get("key")}` } : {},
          },
          body: JSON.stringify({
            model,
            stream: true,
            routed_experts: true,
            max_tokens: Number(fields.get("tokens")),
            temperature: Number(fields.get("temperature")),
            ...chat
              ? {
                logprobs: true,
                messages: asked.map(({ role, text }) => ({
                  role,
                  content: text,
                })),
              }
              : { logprobs: 0, prompt: asked.map(({ text }) => text).join("") },
          }),
        },
      );
      if (!response.ok) {
        const { error } = await response.json() as {
          error: { message: string };
        };
        throw new Error(error.message);
      }
      const field = form.current!.elements.namedItem("text");
      (field as HTMLTextAreaElement).value = "";
      setMessages(asked);
      const texts = textsOf(response.body!);
      for await (const token of answerTokens(texts, () => performance.now())) {
        answer.tokens.push(token);
        show();
      }
      setState("The answer is complete.");
    } catch (error) {
      setState(
        controller.signal.aborted
          ? "Stopped."
          : error instanceof Error
          ? error.message
          : String(error),
      );
    }
    running.current = undefined;
  };
  const shown = selected && messages[selected.message];
  return (
    <>
      <header>
        <h1>{data.title}</h1>
      </header>
      <main>
        <p class="soft">
          {chat
            ? "A conversation in the checkpoint's template."
            : "The checkpoint has no chat template: the model continues the text."}
        </p>
        <ol class="messages" aria-label="Conversation">
          {messages.map(({ role, text, tokens }, message) => (
            <li class={role}>
              <span class="note">{role === "user" ? "You" : model}</span>
              <p class="text">
                {role === "user" ? text : tokens.map((one, token) => (
                  <span
                    class="token"
                    style={`--heat: ${heatOf(one, tokens)}%`}
                    aria-current={selected?.message === message &&
                        selected.token === token
                      ? "true"
                      : undefined}
                    onClick={() => select({ message, token })}
                  >
                    {one.text}
                  </span>
                ))}
              </p>
            </li>
          ))}
        </ol>
        <p role="status" class="live">{state}</p>
        <form ref={form} class="ask" onSubmit={send}>
          <label>
            Text
            <textarea name="text" rows={3} />
          </label>
          <div class="filters">
            <label>
              New tokens{" "}
              <input
                name="tokens"
                type="number"
                min={1}
                max={data.served.maxContext}
                value={NEW_TOKENS}
              />
            </label>
            <label>
              Temperature{" "}
              <input
                name="temperature"
                type="number"
                min={0}
                max={2}
                step={0.1}
                value={0.7}
              />
            </label>
            {keyed && (
              <label>
                API key <input name="key" type="password" autocomplete="off" />
              </label>
            )}
            <button type="submit">Send</button>
            <button type="button" onClick={() => running.current?.abort()}>
              Stop
            </button>
          </div>
        </form>
        {selected && shown && shown.tokens.length > 0 && (
          <TokenView
            tokens={shown.tokens}
            at={selected.token}
            experts={data.served.experts}
            select={(token) => select({ ...selected, token })}
          />
        )}
      </main>
    </>
  );
}

/** The time and the experts of one token of an answer. */
function TokenView({ tokens, at, experts, select }: {
  readonly tokens: readonly AnswerToken[];
  readonly at: number;
  /** Experts per layer. */
  readonly experts: number;
  readonly select: (token: number) => void;
}): VNode {
  const { text, ms, logprob, experts: layers } = tokens[at]!;
  const later = tokens.slice(1);
  const mean = later.reduce((sum, { ms }) => sum + ms, 0) /
    Math.max(1, later.length);
  const facts = [
    [JSON.stringify(text), "token"],
    [`${ms.toFixed(1)} ms`, at === 0 ? "to the first token" : "for the token"],
    [`${mean.toFixed(1)} ms`, "mean of later tokens"],
    ...logprob === undefined
      ? []
      : [[`${(100 * Math.exp(logprob)).toFixed(1)} %`, "probability"] as const],
  ] as const;
  return (
    <View
      id="token"
      question="What does a token cost?"
      answer="The stronger a token's color, the longer it took. The table has the experts that computed the selected token, and their share of the choices of the answer."
    >
      <label>
        Token {at + 1} of {tokens.length}{" "}
        <input
          key={tokens.length}
          type="range"
          min={1}
          max={tokens.length}
          value={at + 1}
          onInput={(event) => select(Number(event.currentTarget.value) - 1)}
        />
      </label>
      <FactList facts={facts} />
      {layers.length === 0
        ? <p>The model has no routers.</p>
        : (
          <div class="scroll">
            <table>
              <caption>Experts of the token ({experts} per layer)</caption>
              <thead>
                <tr>
                  <th scope="col">layer with experts</th>
                  <th scope="col">experts</th>
                  <th scope="col">their share of the answer's choices</th>
                </tr>
              </thead>
              <tbody>
                {layers.map((chosen, layer) => {
                  const counts = choicesOf(tokens, layer);
                  return (
                    <tr>
                      <th scope="row">{layer}</th>
                      <td>{chosen.join(", ")}</td>
                      <td>
                        {chosen.map((expert) =>
                          `${
                            Math.round(
                              100 * counts.get(expert)! /
                                (tokens.length * chosen.length),
                            )
                          } %`
                        ).join(", ")}
                      </td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
    </View>
  );
}

/** The time of a token as a part of the longest later one, in percent. */
function heatOf({ ms }: AnswerToken, tokens: readonly AnswerToken[]): number {
  const longest = Math.max(1, ...tokens.slice(1).map(({ ms }) => ms));
  return Math.round(Math.min(1, ms / longest) * 45);
}

async function* textsOf(
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<string, void, undefined> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield decoder.decode(value, { stream: true });
  }
}
