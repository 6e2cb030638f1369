/** Answers that follow a grammar: of a response format, or of calls that a request demands. */

import { type GrammarSource, schemaGrammar } from "../text/grammar.ts";
import { withPrefixItems, withRoot } from "../text/json_schema.ts";
import { closed } from "../../spec/document/schema.ts";
import { RequestError } from "./errors.ts";
import type { CallText } from "./message/formats.ts";
import { inRequestAsync } from "./prompts.ts";
import type {
  ChatRequest,
  SamplingRequest,
  ToolRequest,
} from "./request_types.ts";
import type { Served } from "./served.ts";

/** The grammar of a request, checked. Undefined: any text. Throws RequestError. */
export async function grammarOf(
  request: SamplingRequest & Pick<ChatRequest, "tools" | "tool_choice">,
  { openGrammars }: Pick<Served, "openGrammars">,
): Promise<GrammarSource | undefined> {
  const { response_format: format, json_schema, grammar } = request;
  const schema =
    (format?.type === "json_schema"
      ? format.json_schema.schema
      : format?.type === "json_object"
      ? format.schema
      : undefined) ?? json_schema;
  const tools = demandedTools(request);
  const sources: readonly (GrammarSource | undefined)[] = [
    schema && schemaGrammar(schema),
    !schema && format?.type === "json_object" ? { kind: "object" } : undefined,
    grammar === undefined ? undefined : { kind: "ebnf", text: grammar },
    tools && {
      kind: "schema",
      schema: callsSchema(tools, request),
      compact: true,
    },
  ];
  const [source, another] = sources.filter((one) => one !== undefined);
  if (another) {
    throw new RequestError(
      "Cannot use several of 'response_format', 'json_schema', 'grammar' and a demanded tool: an answer follows one grammar. Leave out all but one",
    );
  }
  if (source) {
    await inRequestAsync(async () => (await openGrammars()).check(source));
  }
  return source;
}

/** The tools that an answer must call. Undefined if the request requires no call. Throws RequestError. */
export function demandedTools(
  { tools = [], tool_choice = "auto" }: Pick<
    ChatRequest,
    "tools" | "tool_choice"
  >,
): readonly ToolRequest[] | undefined {
  if (tool_choice === "auto" || tool_choice === "none") return undefined;
  const demanded = tool_choice === "required"
    ? tools
    : tools.filter((one) => one.function.name === tool_choice.function.name);
  if (demanded.length > 0) return demanded;
  throw new RequestError(
    `Cannot use 'tool_choice': ${
      tools.length > 0 ? "'tools' has no such function" : "'tools' is empty"
    }. Add the function`,
    { param: "tool_choice" },
  );
}

/** The schema of a list of calls. */
function callsSchema(
  tools: readonly ToolRequest[],
  { tool_choice, parallel_tool_calls = true }: Pick<
    ChatRequest,
    "tool_choice" | "parallel_tool_calls"
  >,
): object {
  const isOne = tool_choice !== "required" || !parallel_tool_calls;
  return {
    type: "array",
    minItems: 1,
    ...isOne ? { maxItems: 1 } : {},
    $defs: Object.fromEntries(
      tools.map(({ function: { parameters = { type: "object" } } }, i) => [
        `tool${i}`,
        withRoot(withPrefixItems(parameters), `#/$defs/tool${i}`),
      ]),
    ),
    items: {
      anyOf: tools.map(({ function: { name } }, i) =>
        closed(
          {
            name: { const: name },
            arguments: { $ref: `#/$defs/tool${i}` },
          } satisfies { readonly [F in keyof Omit<CallText, "id">]: object },
        )
      ),
    },
  };
}
