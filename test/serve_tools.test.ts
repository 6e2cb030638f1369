// Structured answers of `switchyard serve` for OpenAI's client: JSON, tool calls and reasoning.
// needs: cpu
// rotates with: engine/server/, engine/text/grammar.ts, engine/text/json_schema.ts

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type OpenAI from "openai";
import t from "tap";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { chatCheckpoint, startServer } from "./helpers/serve.ts";

/** A template with Hermes's tool format, and reasoning. */
const TEMPLATE =
  "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}<think>{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}\n{% endfor %}<assistant>";
const checkpoint = await chatCheckpoint(temporaryFolder(t), TEMPLATE);
const server = await startServer(checkpoint, "--mesh", "ep=2");
t.teardown(() => server.stop());
const { client } = server;
const messages = [{ role: "user" as const, content: "Where is the fox?" }];
const request = { model: "demo-lm", messages, seed: 5, max_tokens: 200 };

const parameters = {
  type: "object",
  properties: { tree: { enum: ["oak", "elm"] }, old: { type: "boolean" } },
  required: ["tree", "old"],
};
const tools = ["climb", "fell"].map((name) => ({
  type: "function" as const,
  function: { name, parameters },
}));

/** Whether arguments match the parameters. */
function isTree(text: string): boolean {
  const { tree, old, ...others } = JSON.parse(text) as {
    [name: string]: unknown;
  };
  return ["oak", "elm"].includes(String(tree)) && typeof old === "boolean" &&
    Object.keys(others).length === 0;
}

/** Requests a chat completion; checks that a stream gives the same. Returns the choice. */
async function complete(
  more: Omit<Partial<OpenAI.ChatCompletionCreateParams>, "stream">,
): Promise<OpenAI.ChatCompletion.Choice> {
  const response = await client.chat.completions.create({
    ...request,
    ...more,
  });
  const stream = client.chat.completions.stream({ ...request, ...more });
  const streamed = await stream.finalChatCompletion();
  const { content, tool_calls } = response.choices[0]!.message;
  const { message, finish_reason } = streamed.choices[0]!;
  t.equal(message.content, content);
  t.strictSame(
    message.tool_calls?.map((
      { id, function: { name, arguments: text } },
    ) => [id, name, text]),
    tool_calls?.map((call) =>
      call.type === "function" &&
      [call.id, call.function.name, call.function.arguments]
    ),
  );
  t.equal(finish_reason, response.choices[0]!.finish_reason);
  return response.choices[0]!;
}

/** Tool calls of a choice. */
function callsOf({ message }: OpenAI.ChatCompletion.Choice) {
  return (message.tool_calls ?? []).map((call) => {
    if (call.type !== "function") throw new Error(call.type);
    return call;
  });
}

t.test("JSON of a schema", async (t) => {
  const choice = await complete({
    response_format: {
      type: "json_schema",
      json_schema: { name: "tree", schema: parameters },
    },
  });
  t.ok(isTree(choice.message.content!), choice.message.content!);
  t.equal(choice.finish_reason, "stop");
  const schema = {
    type: "array",
    items: [{ const: 1 }, { const: "a" }],
    minItems: 2,
    maxItems: 2,
  };
  const list = await complete({ json_schema: schema } as object);
  t.strictSame(JSON.parse(list.message.content!), [1, "a"]);
});

t.test("generate --json-schema: the server's text, on another mesh", async (t) => {
  const file = join(temporaryFolder(t), "schema.json");
  const generated = async (schema: object, ...args: string[]) => {
    writeFileSync(file, JSON.stringify(schema));
    return await switchyard([
      ...["generate", checkpoint, "--adapter", "cpu", "--json-schema", file],
      ...["--prompt", "A fox in the", "--prompt", "A crow in the", ...args],
    ]);
  };
  const drawn = ["--temperature", "1", "--seed", "5", "-n", "200", "--json"];
  const { code, out, err } = await generated(parameters, ...drawn);
  t.equal(code, 0, err);
  const [fox, crow] = JSON.parse(out).sequences as { text: string }[];
  t.ok(isTree(crow!.text), crow!.text);
  const options: OpenAI.CompletionCreateParamsNonStreaming & {
    readonly json_schema: object;
  } = {
    model: "demo-lm",
    prompt: "A fox in the",
    seed: 5,
    max_tokens: 200,
    temperature: 1,
    json_schema: parameters,
  };
  const { choices: [choice] } = await client.completions.create(options);
  t.equal(fox!.text, choice!.text);
  t.ok(isTree(fox!.text), fox!.text);
  const refused = await generated({ type: "hiccup" });
  t.equal(refused.code, 1);
  t.match(refused.err, "Cannot use the JSON Schema: ");
  const alone = await generated(parameters, "--receipt", "receipt.json");
  t.match(alone.err, "Cannot use --json-schema with --receipt: ");
});

t.test("demanded calls", async (t) => {
  for (
    const tool_choice of [
      "required",
      { type: "function", function: { name: "fell" } },
    ] as const
  ) {
    const choice = await complete({ tools, tool_choice });
    t.equal(choice.finish_reason, "tool_calls");
    t.equal(choice.message.content, null);
    const calls = callsOf(choice);
    t.ok(calls.length > 0);
    for (const { id, function: { name, arguments: text } } of calls) {
      t.match(id, /^[0-9a-f]{9}$/);
      t.ok(isTree(text), text);
      if (tool_choice !== "required") t.equal(name, "fell");
    }
  }
  t.equal(
    callsOf(
      await complete({
        tools,
        tool_choice: "required",
        parallel_tool_calls: false,
      }),
    ).length,
    1,
  );
});

t.test("reasoning and calls of the template's format, and their results", async (t) => {
  const grammar =
    'root ::= "<think>\\nHm.</think>\\n\\nYes.\\n<tool_call>\\n{\\"name\\": \\"climb\\", \\"arguments\\": {\\"tree\\": \\"elm\\"}}\\n</tool_call>"';
  const choice = await complete({ tools, grammar } as object);
  t.strictSame(choice.message.content, "Yes.");
  t.match(choice.message, { reasoning_content: "Hm." });
  const [call] = callsOf(choice);
  t.match(call!.function, { name: "climb", arguments: '{"tree": "elm"}' });
  t.equal(choice.finish_reason, "tool_calls");
  const text = await complete(
    { tools, grammar, tool_choice: "none" } as object,
  );
  t.match(text.message.content, /^Yes.\n<tool_call>/, "calls are disabled");
  const next = await complete({
    max_tokens: 3,
    tools,
    messages: [
      ...messages,
      { role: "assistant", tool_calls: [call!] },
      { role: "tool", tool_call_id: call!.id, content: "Down." },
    ],
  });
  t.equal(next.finish_reason, "length");
});

t.test("null fields count as omitted", async (t) => {
  const bare = [
    ...messages,
    { role: "assistant", content: "By the oak." },
    { role: "user", content: "Why?" },
  ];
  const textOf = async (messages: readonly object[], more = {}) => {
    const asked = { max_tokens: 5, messages, ...more };
    return (await complete(asked as object)).message.content;
  };
  t.equal(
    await textOf(
      bare.map((one) => ({
        ...one,
        name: null,
        function_call: null,
        tool_calls: null,
        reasoning_content: null,
      })),
      { response_format: { type: "text", schema: null } },
    ),
    await textOf(bare),
  );
  const response = await server.post("/v1/responses", {
    model: "demo-lm",
    input: [{ ...messages[0], id: null }, { type: "reasoning", content: null }],
    reasoning: { effort: null, summary: null },
    text: { format: null },
    tools: [{
      type: "function",
      name: "climb",
      description: null,
      parameters: null,
      strict: null,
    }],
    max_output_tokens: 3,
  });
  t.equal(response.status, 200);
  const schema = {
    type: "object",
    properties: { tree: { const: null } },
    required: ["tree"],
    additionalProperties: false,
  };
  const { output_text } = await client.responses.create({
    model: "demo-lm",
    input: "Where?",
    text: { format: { type: "json_schema", name: "null", schema } },
  });
  t.strictSame(JSON.parse(output_text), { tree: null }, "schemas keep theirs");
});

t.test("bad requests", async (t) => {
  for (
    const [more, expected] of [
      [{ tool_choice: "required" }, "Cannot use 'tool_choice'"],
      [
        { tools, tool_choice: { type: "function", function: { name: "h" } } },
        "Cannot use 'tool_choice'",
      ],
      [{
        messages: [{
          role: "assistant",
          tool_calls: [{
            id: "1",
            type: "function",
            function: { name: "f", arguments: "{" },
          }],
        }],
      }, "Cannot use 'messages'"],
      [{
        messages: [{
          role: "user",
          content: [{ type: "image_url", image_url: { url: "" } }],
        }],
      }, "Cannot use 'messages.0.content.0'"],
      [{
        response_format: { type: "json_object" },
        tools,
        tool_choice: "required",
      }, "Cannot use several"],
    ] as const
  ) {
    const answer = await server.post("/v1/chat/completions", {
      ...request,
      ...more,
    });
    t.equal(answer.status, 400);
    const { error } = await answer.json() as { error: { message: string } };
    t.equal(error.message.split(":")[0]!.split(" of")[0], expected);
  }
});

t.test("references in parameters of tools are to the parameters", async (t) => {
  const named = ["climb", "fell"].map((name, i) => ({
    type: "function" as const,
    function: {
      name,
      parameters: {
        type: "object",
        properties: { default: { $ref: "#/$defs/tree" } },
        required: ["default"],
        $defs: { tree: { enum: [["oak", "elm"][i]] } },
      },
    },
  }));
  const found = new Map<string, unknown>();
  for (let seed = 1; found.size < 2 && seed < 20; seed++) {
    const { tool_calls } = (await complete({
      tools: named,
      tool_choice: "required",
      parallel_tool_calls: false,
      temperature: 2,
      seed,
    })).message;
    const [call] = tool_calls!;
    if (call?.type !== "function") throw new Error("no call of a function");
    found.set(call.function.name, JSON.parse(call.function.arguments));
  }
  t.strictSame(
    [...found].sort(),
    [["climb", { default: "oak" }], ["fell", { default: "elm" }]],
  );
  const nested = {
    type: "object",
    properties: { old: { type: "boolean" }, in: { $ref: "#" } },
    required: ["old"],
  };
  const { tool_calls } = (await complete({
    tools: [{
      type: "function",
      function: { name: "climb", parameters: nested },
    }],
    tool_choice: "required",
    parallel_tool_calls: false,
  })).message;
  const [call] = tool_calls!;
  const { old } = JSON.parse(
    call?.type === "function" ? call.function.arguments : "{}",
  );
  t.type(old, "boolean");
});

t.test("grammars without a finite text", async (t) => {
  const endless = {
    type: "object",
    properties: { a: { $ref: "#" } },
    required: ["a"],
  };
  const format = (schema: object) => ({
    response_format: {
      type: "json_schema",
      json_schema: { name: "s", schema },
    },
  });
  const leaf = { anyOf: [{ $ref: "#" }, { const: 7 }] };
  for (
    const [more, expected] of [
      [format({ $ref: "#" }), "JSON Schema"],
      [format(endless), "JSON Schema"],
      [format({ ...endless, required: [] }), undefined],
      [format(leaf), undefined],
      [{ grammar: 'root ::= x{2,9} "a"\nx ::= "b" x' }, "grammar"],
      [{ grammar: 'root ::= "(\\"|" | x\nx ::= "b" x' }, undefined],
      [{ grammar: 'root ::= x{0,9} "a"\nx ::= [|)] x' }, undefined],
    ] as const
  ) {
    const answer = await server.post("/v1/chat/completions", {
      ...request,
      ...more,
      max_tokens: 1,
    });
    const { error } = await answer.json() as { error?: { message: string } };
    t.equal(
      error?.message,
      expected &&
        `Cannot use the ${expected}: no finite text follows it. Correct or simplify it`,
      JSON.stringify(more),
    );
  }
});

t.test("responses: items, and the events that build them", async (t) => {
  const grammar =
    'root ::= "<think>Hm.</think>Yes.<tool_call>{\\"name\\": \\"climb\\", \\"arguments\\": {\\"tree\\": \\"elm\\"}}</tool_call>"';
  const named = tools.map(({ type, function: one }) => ({
    type,
    strict: false,
    ...one,
  }));
  const asked = {
    model: "demo-lm",
    instructions: "Be brief.",
    input: [{ role: "user" as const, content: "Where is the fox?" }],
    tools: named,
    seed: 5,
    grammar,
  };
  const response = await client.responses.create(asked);
  t.equal(response.status, "completed");
  t.equal(response.output_text, "Yes.");
  const kinds = response.output.map(({ type }) => type);
  t.strictSame(kinds, ["reasoning", "message", "function_call"]);
  const call = response.output.find((one) => one.type === "function_call")!;
  t.match(call, { name: "climb", arguments: '{"tree": "elm"}' });
  t.ok(response.usage!.output_tokens > 0);

  const stream = client.responses.stream(asked);
  const deltas: { [type: string]: string } = {};
  const types: string[] = [];
  let next = 0;
  for await (const event of stream) {
    t.equal(event.sequence_number, next++);
    types.push(event.type);
    if ("delta" in event) {
      deltas[event.type] = (deltas[event.type] ?? "") + event.delta;
    }
  }
  t.strictSame(deltas, {
    "response.reasoning_text.delta": "Hm.",
    "response.output_text.delta": "Yes.",
    "response.function_call_arguments.delta": '{"tree": "elm"}',
  });
  t.strictSame(
    types.filter((type) => !type.endsWith(".delta")).map((type) =>
      type.slice("response.".length)
    ),
    [
      ...["created", "in_progress"],
      ...["output_item.added", "content_part.added", "reasoning_text.done"],
      ...["content_part.done", "output_item.done"],
      ...["output_item.added", "content_part.added", "output_text.done"],
      ...["content_part.done", "output_item.done"],
      ...["output_item.added", "function_call_arguments.done"],
      ...["output_item.done", "completed"],
    ],
  );
  const final = await stream.finalResponse();
  const plain = (items: readonly object[]) =>
    items.map((item) => ({ ...item, id: "", parsed_arguments: undefined }));
  t.equal(final.output_text, response.output_text);
  t.match(plain(final.output), plain(response.output));

  const followed = await client.responses.create({
    model: "demo-lm",
    input: [
      { role: "user", content: [{ type: "input_text", text: "Where?" }] },
      ...response.output as OpenAI.Responses.ResponseInputItem[],
      { type: "function_call_output", call_id: call.call_id, output: "Down." },
    ],
    max_output_tokens: 3,
  });
  t.equal(followed.status, "incomplete");
  t.match(followed.output.at(-1), { status: "incomplete" });
  t.strictSame(followed.incomplete_details, { reason: "max_output_tokens" });
  const shaped = await client.responses.create({
    ...asked,
    grammar: undefined,
    tools: [],
    text: {
      format: { type: "json_schema", name: "tree", schema: parameters },
    },
  } as OpenAI.Responses.ResponseCreateParamsNonStreaming);
  t.ok(isTree(shaped.output_text), shaped.output_text);
  const refused = async (more: object) => {
    const body = { input: "One", ...more };
    return (await server.post("/v1/responses", body)).status;
  };
  t.equal(await refused({ previous_response_id: "resp_1" }), 400);
  t.equal(await refused({ input: [{ role: "user" }] }), 400);
  t.equal(await refused({ tools: [{ type: "web_search" }] }), 400);
});
