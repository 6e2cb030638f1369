// `switchyard serve`: responses for OpenAI's client, compared with `generate`; rejected requests.
// needs: cpu

import { spawn } from "node:child_process";
import { once } from "node:events";
import { get, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import OpenAI from "openai";
import t from "tap";
import { startHttp } from "../cli/http/thread.ts";
import { listen } from "../cli/http/listen.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { clonePath } from "./helpers/compiled.ts";
import { programsOf, readPage } from "./helpers/guide.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { metricOf } from "./helpers/serve_requests.ts";
import {
  chatCheckpoint,
  serverAt,
  startServer,
  type TestServer,
} from "./helpers/serve.ts";

const folder = await chatCheckpoint(temporaryFolder(t));
const server = await startServer(folder, "--mesh", "ep=2");
t.teardown(() => server.stop());
const { client } = server;
const model = "demo-lm";
const PROMPT = "Once upon a time";

interface Document {
  readonly sequences: readonly {
    readonly promptTokens: readonly number[];
    readonly tokens: readonly number[];
    readonly text: string;
    readonly ending: string;
    readonly logprobs: readonly {
      readonly logprob: number;
      readonly top: readonly { readonly text: string; logprob: number }[];
    }[];
  }[];
}

/** Runs `generate`; returns its first sequence. */
async function generated(...args: string[]) {
  const { code, out, err } = await switchyard([
    ...["generate", folder, "--adapter", "cpu", "--json"],
    ...args,
  ]);
  t.equal(code, 0, err);
  return (JSON.parse(out) as Document).sequences[0]!;
}

/** Returns the error of a request. */
async function refused(request: Promise<unknown>) {
  const error = await request.then(() => undefined, (error) => error);
  t.type(error, OpenAI.APIError);
  return error as InstanceType<typeof OpenAI.APIError>;
}

t.test("models are listed", async (t) => {
  const { data } = await client.models.list();
  t.strictSame(data.map(({ id }) => id), [model]);
  t.equal((await client.models.retrieve(model)).object, "model");
  t.equal((await refused(client.models.retrieve("other"))).status, 404);
});

t.test("a completion equals the text of generate", async (t) => {
  const greedy = await client.completions.create({
    model,
    prompt: PROMPT,
    max_tokens: 12,
    temperature: 0,
    logprobs: 2,
  });
  const expected = await generated(
    ...["-p", PROMPT, "-n", "12", "--logprobs", "2"],
  );
  const [choice] = greedy.choices;
  t.equal(choice!.text, expected.text);
  t.equal(choice!.finish_reason, "length");
  t.strictSame(
    choice!.logprobs!.token_logprobs,
    expected.logprobs.map(({ logprob }) => logprob),
  );
  t.strictSame(
    choice!.logprobs!.top_logprobs!.map((top) => Object.entries(top)),
    expected.logprobs.map(({ top }) =>
      top.map(({ text, logprob }) => [text, logprob])
    ),
  );
  t.equal(choice!.logprobs!.tokens!.join(""), choice!.text);
  t.strictSame(greedy.usage, {
    prompt_tokens: expected.promptTokens.length,
    completion_tokens: 12,
    total_tokens: expected.promptTokens.length + 12,
    prompt_tokens_details: { cached_tokens: 0 },
  });
  const drawn = { seed: 7, temperature: 0.9, top_p: 0.8, max_tokens: 20 };
  const more = { top_k: 30, min_p: 0.01, repetition_penalty: 1.2 };
  const request = { model, prompt: PROMPT, ...drawn, ...more };
  const seeded = await client.completions.create(request);
  const flags = [
    ...["--seed", "7", "--temperature", "0.9", "--top-p", "0.8", "-n", "20"],
    ...["--top-k", "30", "--min-p", "0.01", "--repeat-penalty", "1.2"],
  ];
  const { text } = await generated("-p", PROMPT, ...flags);
  t.equal(seeded.choices[0]!.text, text);
  const tokens = await client.completions.create({
    ...request,
    prompt: [...expected.promptTokens],
  });
  t.equal(tokens.choices[0]!.text, text);
});

t.test("usage counts cached tokens of prompts", async (t) => {
  const prompt = Array.from({ length: 150 }, (_, i) => 300 + i);
  const request = { model, prompt, max_tokens: 3, temperature: 0 };
  const cachedOf = async (more: object) => {
    const { usage } = await client.completions.create({ ...request, ...more });
    const { prompt_tokens, prompt_tokens_details: details } = usage!;
    t.ok(details!.cached_tokens! <= prompt_tokens);
    return details!.cached_tokens!;
  };
  t.equal(await cachedOf({}), 0);
  const cached = await cachedOf({});
  t.ok(cached > 0 && cached < prompt.length, String(cached));
  t.equal(await cachedOf({ stop: "none" }), cached, "with a stop text");
  t.equal(await cachedOf({ n: 3 }), cached, "a prompt counts once");
  t.equal(await cachedOf({ prompt: [prompt, prompt] }), 2 * cached);
  const other = prompt.toReversed();
  t.equal(await cachedOf({ prompt: other }), 0, "another prompt");
  const stream = await client.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  const usages: (OpenAI.CompletionUsage | null | undefined)[] = [];
  for await (const { usage } of stream) usages.push(usage);
  t.equal(usages.at(-1)!.prompt_tokens_details!.cached_tokens, cached);
  const input = "Tell me of a king. ".repeat(20);
  const details = async () =>
    (await client.responses.create({ model, input, max_output_tokens: 1 }))
      .usage!.input_tokens_details.cached_tokens;
  t.equal(await details(), 0);
  t.ok(await details() > 0, "of responses");
});

t.test("choices use different random numbers, and streams are equal", async (t) => {
  const request = {
    model,
    prompt: [PROMPT, "The fox"],
    n: 3,
    seed: 11,
    max_tokens: 10,
  };
  const response = await client.completions.create(request);
  const texts = response.choices.map(({ text }) => text);
  t.strictSame(response.choices.map(({ index }) => index), [0, 1, 2, 3, 4, 5]);
  t.equal(new Set(texts).size, 6);
  const streamed = texts.map(() => "");
  const reasons = texts.map((): string | null => null);
  let usage: OpenAI.CompletionUsage | undefined;
  const stream = await client.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    for (const { index, text, finish_reason } of chunk.choices) {
      streamed[index] += text;
      reasons[index] ??= finish_reason;
    }
    usage = chunk.usage ?? usage;
  }
  t.strictSame(streamed, texts);
  t.strictSame(reasons, response.choices.map((choice) => choice.finish_reason));
  t.strictSame(usage, response.usage);
  const alone = await client.completions.create({
    ...request,
    prompt: "The fox",
  });
  t.strictSame(alone.choices.map(({ text }) => text), texts.slice(3));
});

t.test("stop texts, biases and penalties", async (t) => {
  const request = { model, prompt: PROMPT, max_tokens: 24, temperature: 0 };
  const text = async (more: object) =>
    (await client.completions.create({ ...request, ...more })).choices[0]!;
  const plain = (await text({})).text;
  const end = plain.slice(20, 26);
  const stopped = await text({ stop: ["none", end] });
  t.strictSame(
    [stopped.text, stopped.finish_reason],
    [plain.slice(0, plain.indexOf(end)), "stop"],
  );
  const [token] =
    (await generated("-p", PROMPT, "-n", "1", "--logprobs", "0")).tokens;
  const biased = await text({ logit_bias: { [token!]: -100 } });
  t.notOk(
    biased.text.startsWith(plain.slice(0, 4)),
    "its first token is excluded",
  );
  const stop = await text({ logit_bias: { 0: 100 } });
  t.strictSame([stop.text, stop.finish_reason], ["", "stop"], "a stop token");
  const ignored = await text({ logit_bias: { 0: 100 }, ignore_eos: true });
  t.equal(ignored.finish_reason, "length");
  const fresh = await text({ presence_penalty: 2, frequency_penalty: 2 });
  t.not(fresh.text, plain);
});

t.test("tokens of log-probabilities have bytes, also parts of characters", async (t) => {
  // In the vocabulary, 128 is the first byte of "é" and 33 is "A".
  for (const [token, bytes] of [[128, [0xc3]], [33, [0x41]]] as const) {
    const { choices: [choice] } = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content: PROMPT }],
      max_tokens: 1,
      logprobs: true,
      logit_bias: { [token]: 100 },
    });
    t.strictSame(choice!.logprobs!.content![0]!.bytes, bytes);
  }
});

t.test("a completion names parts of characters by their bytes", async (t) => {
  // The first bytes of "é" and of "ĉ": both have the text U+FFFD.
  const { choices: [choice] } = await client.completions.create({
    model,
    prompt: PROMPT,
    max_tokens: 2,
    temperature: 0,
    logprobs: 3,
    logit_bias: { 128: 100, 129: 99 },
  });
  const { tokens, top_logprobs, text_offset } = choice!.logprobs!;
  t.strictSame(tokens, ["bytes:\\xc3", "bytes:\\xc3"]);
  t.equal(Object.keys(top_logprobs![0]!).length, 4);
  t.strictSame(text_offset, [0, 1]);
  // Both bytes of "é" are one character.
  const { choices: [echoed] } = await client.completions.create({
    model,
    prompt: "é!",
    max_tokens: 0,
    echo: true,
    logprobs: 0,
  });
  t.equal(echoed!.text, "é!");
  t.strictSame(echoed!.logprobs!.tokens, [
    "bytes:\\xc3",
    "bytes:\\xa9",
    "!",
  ]);
  t.strictSame(echoed!.logprobs!.text_offset, [0, 1, 1]);
});

t.test("echo has the log-probabilities of the prompt", async (t) => {
  const { choices: [all] } = await client.completions.create({
    model,
    prompt: PROMPT,
    max_tokens: 2,
    temperature: 0,
    echo: true,
    logprobs: 1,
  });
  const { text, logprobs } = all!;
  t.ok(text.startsWith(PROMPT));
  t.equal(logprobs!.tokens!.join(""), text);
  t.equal(logprobs!.token_logprobs![0], null);
  // Each token depends on the ones before it.
  for (let i = 1; i < logprobs!.tokens!.length - 2; i++) {
    const prompt = logprobs!.tokens!.slice(0, i).join("");
    const next = await client.completions.create({
      model,
      prompt,
      max_tokens: 1,
      logprobs: 1,
      temperature: 0,
    });
    t.strictSame(
      Object.entries(next.choices[0]!.logprobs!.top_logprobs![0]!)[0],
      Object.entries(logprobs!.top_logprobs![i]!)[0],
    );
  }
  const score = await client.completions.create({
    model,
    prompt: PROMPT,
    max_tokens: 0,
    echo: true,
    logprobs: 1,
  });
  t.equal(score.choices[0]!.text, PROMPT);
  t.strictSame(
    score.choices[0]!.logprobs!.token_logprobs,
    logprobs!.token_logprobs!.slice(0, -2),
  );
  t.equal(score.usage!.completion_tokens, 0);
  let streamed = "";
  for await (
    const { choices } of await client.completions.create({
      model,
      prompt: PROMPT,
      max_tokens: 2,
      temperature: 0,
      echo: true,
      stream: true,
    })
  ) streamed += choices[0]!.text;
  t.equal(streamed, text);
});

t.test("a conversation is answered as by generate --chat", async (t) => {
  const messages = [
    { role: "system" as const, content: "Be brief." },
    {
      role: "user" as const,
      content: [{ type: "text" as const, text: "Tell me of the fox." }],
    },
  ];
  const request = {
    model,
    messages,
    seed: 3,
    max_completion_tokens: 16,
    logprobs: true,
    top_logprobs: 2,
  };
  const response = await client.chat.completions.create(request);
  const expected = await generated(
    ...["--chat", "--system", "Be brief.", "-p", "Tell me of the fox."],
    ...["--seed", "3", "--temperature", "1", "-n", "16", "--logprobs", "2"],
  );
  const [choice] = response.choices;
  t.equal(choice!.message.content, expected.text);
  t.strictSame(
    choice!.logprobs!.content!.map(({ logprob, top_logprobs }) => [
      logprob,
      ...top_logprobs.map(({ logprob }) => logprob),
    ]),
    expected.logprobs.map(({ logprob, top }) => [
      logprob,
      ...top.map(({ logprob }) => logprob),
    ]),
  );
  let text = "";
  let count = 0;
  const stream = client.chat.completions.stream(request);
  for await (const { choices } of stream) {
    // As examples of OpenAI's documentation do: never null.
    text += choices[0]?.delta.content ??
      (choices[0]?.finish_reason ? "" : "null");
    count += choices[0]?.logprobs?.content?.length ?? 0;
  }
  t.equal(text, expected.text);
  t.equal(count, 16);
  const final = await stream.finalChatCompletion();
  t.equal(final.choices[0]!.finish_reason, "length");
});

t.test("answers end at the end of the context", async (t) => {
  const [served] = (await client.models.list()).data as unknown as [
    { readonly max_model_len: number },
  ];
  const length = served.max_model_len;
  const request = { model, temperature: 0, prompt: Array(length - 2).fill(65) };
  const answer = await client.completions.create({ ...request, max_tokens: 9 });
  t.match(answer, {
    choices: [{ finish_reason: "length" }],
    usage: { completion_tokens: 3, total_tokens: length + 1 },
  });
  const whole = await client.completions.create({ ...request, max_tokens: 3 });
  t.equal(answer.choices[0]!.text, whole.choices[0]!.text);
});

t.test("bad requests give errors with the field", async (t) => {
  const create = (more: object) =>
    refused(
      client.completions.create({ model, prompt: PROMPT, ...more } as never),
    );
  for (
    const [more, status, param] of [
      [{ temperature: -1 }, 400, "temperature"],
      [{ temperature: "hot" }, 400, "temperature"],
      [{ top_p: 1.5 }, 400, "top_p"],
      [{ n: 0 }, 400, "n"],
      [{ stop: [""] }, 400, "stop"],
      [{ prompt: "" }, 400, "prompt"],
      [{ prompt: undefined }, 400, "prompt"],
      [{ prompt: [2048] }, 400, null],
      [{ prompt: PROMPT.repeat(200) }, 400, "prompt"],
      [{ logit_bias: { 2048: 1 } }, 400, "logit_bias"],
      [{ best_of: 3 }, 400, "best_of"],
      [{ suffix: "." }, 400, "suffix"],
      [{ stop_token_ids: [5] }, 400, "stop_token_ids"],
      [{ response_format: { type: "sound" } }, 400, "response_format"],
      [{ json_schema: { type: "hiccup" } }, 400, null],
      [{ grammar: 'root ::= "a" (' }, 400, null],
      [{ grammar: 'root ::= "a"', json_schema: {} }, 400, null],
      [{ model: "other" }, 404, "model"],
    ] as const
  ) {
    const error = await create(more);
    t.strictSame([error.status, error.param], [status, param]);
    t.match(error.message, /^\d+ Cannot .*: .*\. [A-Z]/);
  }
  t.match(await create({ prompt: PROMPT.repeat(200) }), {
    code: "context_length_exceeded",
  });
  t.match(await create({ stop: [PROMPT.repeat(200)] }), {
    message: "'stop.0': it has more than 1024 characters. ",
  });
  const unknown = { type: "object", properties: { a: { $ref: "#/x" } } };
  t.match(await create({ json_schema: unknown }), {
    message: "Cannot use the JSON Schema: Cannot find field x in {",
  });
  t.match(await create({ prompt: [] }), { message: "'prompt': it is empty. " });
  t.match(await create({ guided_json: {} }), {
    message: "'guided_json': it is not supported. Use 'json_schema'",
  });
  const ofOthers: {
    readonly [path: string]: readonly (readonly [object, string])[];
  } = {
    completions: [
      [{ max_completion_tokens: 2 }, "Use 'max_tokens'"],
      [{ n_predict: 2 }, "Use 'max_tokens'"],
      [{ top_logprobs: 2 }, "Leave it out"],
    ],
    "chat/completions": [
      [{ max_output_tokens: 2 }, "Use 'max_completion_tokens'"],
      [{ echo: true }, "Leave it out"],
    ],
    responses: [
      [{ max_tokens: 2 }, "Use 'max_output_tokens'"],
      [{ n: 2 }, "Leave it out"],
      [{ receipt: true }, "Leave it out"],
      [{ routed_experts: true }, "Leave it out"],
      [{ include: ["message.output_text.logprobs"] }, "Leave it out"],
    ],
  };
  for (const [path, cases] of Object.entries(ofOthers)) {
    for (const [more, remedy] of cases) {
      const messages = [{ role: "user", content: PROMPT }];
      const body = path === "responses"
        ? { input: PROMPT, ...more }
        : { prompt: PROMPT, messages, ...more };
      const answer = await server.post(`/v1/${path}`, body);
      const [field] = Object.keys(more);
      t.equal(answer.status, 400, `${path} ${field}`);
      t.match(await answer.json(), {
        error: {
          message: `Cannot use '${field}': it is not supported. ${remedy}`,
          param: field,
        },
      });
    }
  }
  t.match(await create({ repeat_penalty: 1.1 }), {
    message: "'repeat_penalty': it is not supported. Use 'repetition_penalty'",
  });
  t.match(await create({ response_format: { type: "json_schema" } }), {
    message: "'response_format.json_schema': it is missing. ",
  });
  t.match(await create({ stop: 5 }), {
    message: "'stop': it must be a string or an array. ",
  });
  t.match(await create({ logit_bias: { fox: 1 } }), {
    message: "'logit_bias': it has an illegal name 'fox'. ",
  });
  t.match(
    await refused(client.chat.completions.create({ model, messages: [] })),
    { status: 400, param: "messages" },
  );
  t.match(
    await refused(client.chat.completions.create({
      model,
      messages: [{ role: "user", content: "Hello" }],
      tools: [{ type: "function", function: { name: "f" } }],
    })),
    {
      status: 400,
      param: "tools",
      code: "unsupported_parameter",
      message: /the checkpoint's chat template has no known format/,
    },
  );
  const status = async (
    body: string | Uint8Array<ArrayBuffer>,
    headers: Record<string, string> = {},
  ) =>
    (await server.post("/v1/completions", "", {
      body,
      headers: { "content-type": "application/json", ...headers },
    })).status;
  t.equal(await status("{"), 400);
  t.equal(await status("[]"), 400);
  t.equal(await status(new Uint8Array([0x7b, 0xff, 0x7d])), 400, "not UTF-8");
  t.equal(await status(`{"a":${"[".repeat(1e5)}`), 400, "deep");
  t.equal(await status(" ".repeat(5 << 20)), 413);
  t.equal(await status("{}", { "content-type": "text/plain" }), 415);
  t.equal(await status(new Uint8Array(2), { "content-encoding": "gzip" }), 415);
  const plain = JSON.stringify({ prompt: PROMPT, max_tokens: 1 });
  t.equal(await status(plain, { "content-encoding": "identity" }), 200);
  t.equal((await fetch(`${server.address}/v1/completion`)).status, 404);
  const got = await fetch(`${server.address}/v1/completions`);
  t.strictSame([got.status, got.headers.get("allow")], [405, "POST"]);
  t.equal((await fetch(`${server.address}/health`)).status, 200);
});

t.test("metrics count tokens and responses", async (t) => {
  const counts = async () => ({
    generated: await metricOf(server, "switchyard_generated_tokens_total"),
    first: await metricOf(
      server,
      "switchyard_time_to_first_token_seconds_count",
    ),
    next: await metricOf(server, "switchyard_inter_token_seconds_count"),
    done: await metricOf(
      server,
      'switchyard_requests_total{route="/v1/completions",status="200"}',
    ),
    bad: await metricOf(
      server,
      'switchyard_requests_total{route="/v1/completions",status="400"}',
    ),
  });
  const before = await counts();
  const request = { model, prompt: PROMPT, max_tokens: 5, n: 2 };
  await client.completions.create({ ...request, stream: false });
  await refused(client.completions.create({ ...request, n: 0 }));
  const after = await counts();
  t.strictSame(after, {
    generated: before.generated + 10,
    first: before.first + 2,
    next: before.next + 8,
    done: before.done + 1,
    bad: before.bad + 1,
  });
});

t.test("routed experts of tokens, their load, and bytes sent", async (t) => {
  const stats = await startServer(folder, "--mesh", "ep=2", "--stats");
  t.teardown(() => stats.stop());
  const ask = { prompt: PROMPT, max_tokens: 40, temperature: 0 };
  interface Body {
    readonly choices: readonly {
      readonly text: string;
      readonly routed_experts: readonly (number[][])[];
    }[];
  }
  const response = await (await stats.post("/v1/completions", {
    ...ask,
    routed_experts: true,
  })).json() as Body;
  const experts = response.choices[0]!.routed_experts;
  t.equal(experts.length, 40);
  for (const layers of experts) {
    t.equal(layers.length, 4);
    for (const chosen of layers) {
      t.equal(new Set(chosen).size, 2);
      t.ok(chosen.every((expert) => expert >= 0 && expert < 8));
    }
  }
  const streamed = async (body: object) => {
    const response = await server.post("/v1/completions", {
      ...body,
      routed_experts: true,
      stream: true,
    });
    return (await response.text()).split("\n")
      .filter((line) => line.startsWith("data: {"))
      .flatMap((line) =>
        (JSON.parse(line.slice("data: ".length)) as Body).choices[0]!
          .routed_experts
      );
  };
  t.strictSame(await streamed(ask), experts);
  // The first token is half of a character, without text.
  const halved = { ...ask, max_tokens: 2, grammar: 'root ::= "é"' };
  t.equal((await streamed(halved)).length, 2);
  const layer = (name: string) =>
    metricOf(stats, `switchyard_${name}{layer="0"}`);
  t.ok(await layer("expert_choices") > 0);
  t.ok(await layer("expert_imbalance") >= 1);
  t.ok(await metricOf(stats, 'switchyard_sent_bytes{kind="dispatch"}') > 0);
});

t.test("a prefix stays cached after its request", async (t) => {
  const ask = async (last: string) => {
    const before = await metricOf(server, "switchyard_prompt_tokens_total");
    const { choices, usage } = await client.completions.create({
      model,
      prompt: `${"A long prefix of a prompt. ".repeat(12)}${last}`,
      max_tokens: 4,
      temperature: 0,
    });
    const { prompt_tokens } = usage!;
    return {
      text: choices[0]!.text,
      prompt_tokens,
      fed: await metricOf(server, "switchyard_prompt_tokens_total") - before,
    };
  };
  const first = await ask("Once");
  t.equal(first.fed, first.prompt_tokens);
  const [again, other] = [await ask("Once"), await ask("The fox")];
  t.equal(again.text, first.text);
  for (const { fed, prompt_tokens } of [again, other]) {
    t.ok(
      fed < prompt_tokens / 2,
      `${fed} of ${prompt_tokens} tokens are computed`,
    );
  }
});

t.test("keys, origins and hosts", async (t) => {
  const guarded = await startServer(
    checkpointFolder("demo-lm"),
    ...["--api-key", "one", "--api-key", "two"],
    ...["--cors", "http://page.example"],
  );
  t.teardown(() => guarded.stop());
  const models = `${guarded.address}/v1/models`;
  const status = async (headers: Record<string, string>) =>
    (await fetch(models, { headers })).status;
  t.equal(await status({}), 401);
  t.equal(await status({ authorization: "Bearer on" }), 401);
  t.equal(await status({ authorization: "Bearer one" }), 200);
  t.equal(await status({ authorization: "Bearer two" }), 200);
  t.equal((await fetch(`${guarded.address}/health`)).status, 200);
  const statusAt = async (host: string) => {
    const request = get(`${guarded.address}/health`, { headers: { host } });
    const [response] = await once(request, "response") as [IncomingMessage];
    response.resume();
    return response.statusCode;
  };
  t.equal(await statusAt("LOCALHOST:8000"), 200, "without case");
  t.equal(await statusAt("page.example"), 403);
  const { headers } = await fetch(models, {
    method: "OPTIONS",
    headers: {
      "origin": "http://page.example",
      "access-control-request-method": "POST",
    },
  });
  t.equal(headers.get("access-control-allow-origin"), "http://page.example");
  for (const stream of [false, true]) {
    const { headers } = await guarded.post("/v1/completions", {
      prompt: PROMPT,
      max_tokens: 1,
      stream,
    }, {
      headers: {
        "content-type": "application/json",
        "authorization": "Bearer one",
        "origin": "http://page.example",
      },
    });
    t.equal(
      headers.get("access-control-allow-origin"),
      "http://page.example",
    );
  }
  const { client } = guarded;
  t.match(
    await refused(
      client.chat.completions.create({
        model,
        messages: [{ role: "user", content: "Hello" }],
      }, { headers: { authorization: "Bearer one" } }),
    ),
    { status: 400, message: /it has no chat template/ },
  );
});

t.test("requests beyond the queue limit are rejected until others end", async (t) => {
  const small = await startServer(
    folder,
    ...["--max-sequences", "1", "--max-queue", "0"],
  );
  t.teardown(() => small.stop());
  const long = { model, prompt: PROMPT, n: 16, max_tokens: 500 };
  const stream = await small.client.completions.create({
    ...long,
    ignore_eos: true,
    stream: true,
  } as OpenAI.CompletionCreateParamsStreaming);
  const short = { model, prompt: PROMPT, max_tokens: 1 };
  const error = await refused(small.client.completions.create(short));
  t.match(error, { status: 429, code: "queue_full", type: "rate_limit_error" });
  t.ok(error.headers!.get("retry-after"));
  stream.controller.abort();
  // The client retries as the header asks.
  const after = await small.client.completions.create(short, { maxRetries: 9 });
  t.equal(after.choices.length, 1);
  const alone = await small.client.completions.create({
    ...long,
    n: 1,
    ignore_eos: true,
    stream: true,
  } as OpenAI.CompletionCreateParamsStreaming);
  t.equal(
    (await refused(small.client.completions.create(short))).message,
    "429 Cannot answer: 1 sequence would wait, and at most 0 may. Try again later",
  );
  alone.controller.abort();
});

t.test("a client that reads nothing is disconnected", async (t) => {
  const part = "x".repeat(1 << 16);
  let [left, unread] = [false, 0];
  const { address, close } = await listen(({ url }, connection) => {
    const { pathname } = new URL(url);
    if (pathname === "/whole") connection.send(part.repeat(512), {});
    else {
      // The routes cancel its sequences.
      connection.onLeave(() => left = true);
      connection.begin({});
      void (async () => {
        while (!connection.closed) {
          if (connection.write(part)) continue;
          await connection.drained(new AbortController().signal);
        }
      })();
    }
    return connection.sent;
  }, {
    host: "127.0.0.1",
    port: 0,
    silentMs: 3_600_000,
    sendMs: 50,
    onUnread: () => unread++,
  });
  for (const path of ["/whole", "/parts"]) {
    const socket = connect(Number(new URL(address).port), "127.0.0.1");
    socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    // The socket reads a part, and the test none of it.
    await once(socket, "readable");
    const before = unread;
    while (unread === before) await setTimeout(1);
    socket.destroy();
  }
  while (!left) await setTimeout(1);
  t.equal(unread, 2);
  await close();
});

t.test("a request has a deadline", async (t) => {
  const hurried = await startServer(folder, "--request-deadline", "0.001");
  t.teardown(() => hurried.stop());
  const request = { model, prompt: PROMPT, max_tokens: 400 };
  t.match(await refused(hurried.client.completions.create(request)), {
    status: 504,
    message: /takes longer than 0.001 s/,
  });
  const stream = await hurried.client.completions.create({
    ...request,
    stream: true,
  });
  await t.rejects(async () => {
    for await (const _ of stream);
  }, /takes longer/);
});

t.test("an interrupted server completes its requests in progress", async (t) => {
  const ending: TestServer = await startServer(folder);
  const stream = await ending.client.completions.create({
    model,
    prompt: PROMPT,
    max_tokens: 40,
    temperature: 0,
    stream: true,
  });
  ending.interrupt();
  t.equal((await fetch(`${ending.address}/health`)).status, 503);
  const other = ending.client.completions.create({ model, prompt: PROMPT });
  t.equal((await refused(other)).status, 503);
  let text = "";
  for await (const { choices } of stream) text += choices[0]!.text;
  t.equal(text, (await generated("-p", PROMPT, "-n", "40")).text);
  t.match(await ending.ended, {
    code: 0,
    err:
      "Ending after the requests in progress; interrupt again to end immediately\n",
  });
});

t.test("reasons why a server cannot start", async (t) => {
  const errorOf = async (...args: string[]) => {
    const { code, err } = await switchyard(["serve", ...args]);
    return [code, err.split(":")[0]];
  };
  t.strictSame(await errorOf("examples/layer.ts"), [
    1,
    "Cannot serve 'examples/layer.ts'",
  ]);
  t.strictSame(await errorOf(folder, "--port", "99999"), [
    2,
    "Cannot use --port '99999'. Give a whole number from 0 to 65535\n",
  ]);
  const { port } = new URL(server.address);
  t.strictSame(await errorOf(folder, "--adapter", "cpu", "--port", port), [
    3,
    `Cannot listen on 127.0.0.1, port ${port}`,
  ]);
});

t.test("a connection without a request does not delay shutdown", async (t) => {
  const { address, close } = await listen(() => new Response(), {
    host: "127.0.0.1",
    port: 0,
    silentMs: 60_000,
    sendMs: 60_000,
  });
  const socket = connect(Number(new URL(address).port), "127.0.0.1");
  let received = "";
  socket.on("data", (data) => received += data);
  await once(socket, "connect");
  await Promise.all([close(), once(socket, "close")]);
  t.equal(received, "", "no timeout response");
});

t.test("the programs of docs/serve.md print the documented output", async (t) => {
  const demo = await startServer(checkpointFolder("demo-lm"));
  t.teardown(() => demo.stop());
  const page = readPage("serve.md");
  const [response, stream] = programsOf(page).map((text) =>
    runProgram(text.replaceAll("http://127.0.0.1:8000", demo.address))
  );
  const [, shown] = /```\n\n```\n(there.*?\n)```/s.exec(page)!;
  t.equal(await response, shown);
  t.equal((await stream)!.trimEnd().split("\n").length, 3);
});

/** Runs a JavaScript program; returns its output. */
async function runProgram(text: string): Promise<string> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", text], {
    cwd: clonePath("."),
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  for await (const part of child.stdout) out += part;
  return out;
}

t.test("requests are rejected until a model is loaded", async (t) => {
  const http = await startHttp({
    folder,
    host: "127.0.0.1",
    port: 0,
    silentMs: 1000,
    sendMs: 1000,
  });
  const { address, post } = serverAt(http.address);
  for (
    const response of [
      await fetch(`${address}/health`),
      await post("/v1/completions", { model, prompt: PROMPT }),
    ]
  ) {
    t.equal(response.status, 503);
    t.equal(response.headers.get("retry-after"), "1");
    t.match(await response.json(), {
      error: {
        message: "Cannot answer: the model is loading. Try again later",
        code: "loading",
      },
    });
  }
  await http.close();
  await t.rejects(fetch(`${address}/health`), "the thread has ended");
});

t.test("an unreadable tokenizer is reported while the model loads", async (t) => {
  const broken = t.testdir({ "tokenizer.json": "{" });
  await t.rejects(
    async () => {
      const http = await startHttp({
        folder: broken,
        host: "127.0.0.1",
        port: 0,
        silentMs: 1000,
        sendMs: 1000,
      });
      for (;;) {
        http.check();
        await setTimeout(1);
      }
    },
    { name: "DataError", message: /^Cannot read '.*tokenizer\.json'/ },
  );
});
