/** Chat templates: a conversation as the text that a checkpoint was trained to continue. */

import { DataError } from "../spec/errors.ts";
import { shown } from "../spec/shown.ts";
import type { FileSystem } from "./files.ts";
import { readJsonObject } from "./json_file.ts";
import { OpenSandbox } from "./untrusted/open_sandbox.ts";
import { UntrustedError } from "./untrusted/sandbox.ts";

/** A turn of a conversation. */
export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

/** A turn with whatever a template may read of it. */
export type TemplateMessage = { readonly [field: string]: unknown };

/** What a conversation has besides messages. */
export interface RenderOptions {
  /** Functions that the assistant may call, as the template reads them. Default: none. */
  readonly tools?: readonly object[] | undefined;
  /** Further variables of the template. */
  readonly values?: { readonly [name: string]: unknown } | undefined;
}

/** What a checkpoint makes of conversations. */
export interface ChatTemplate {
  /**
   * The text up to where the assistant begins. It spells out every special token, the first one too: encode it with
   * `encodeBare`.
   */
  render(
    messages: readonly (ChatMessage | TemplateMessage)[],
    options?: RenderOptions,
  ): Promise<string>;
  /** End its process. */
  close(): void;
}

/** MiB that a template may take. */
const MEMORY = 256;

/** Characters of a template, at most. Published ones have some thousand. */
const LONGEST = 2 ** 18;

/** Special tokens of tokenizer_config.json that templates may name. */
const TOKENS = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/**
 * The chat template of a checkpoint folder, in a sandbox, since it is untrusted input: chat_template.jinja, else `chat_template` of tokenizer_config.json, a text or
 * a list of named ones, of which the one named "default" is for conversations. Throws DataError where there is none.
 */
export async function openChatTemplate(
  folder: string,
  files: FileSystem,
): Promise<ChatTemplate> {
  const names = new Set(await files.list(folder));
  const config = names.has("tokenizer_config.json")
    ? await readJsonObject(files.join(folder, "tokenizer_config.json"), files)
    : {};
  const source = names.has("chat_template.jinja")
    ? await files.readText(files.join(folder, "chat_template.jinja"))
    : conversationTemplate(config["chat_template"], folder);
  return await createTemplate(source, config, folder);
}

async function createTemplate(
  source: string,
  config: { readonly [key: string]: unknown },
  folder: string,
): Promise<ChatTemplate> {
  if (source.length > LONGEST) {
    throw new DataError(
      `Cannot apply the chat template of '${folder}': it has ${source.length} characters, and at most ${LONGEST} are read. Check the template`,
    );
  }
  const sandbox = new OpenSandbox({
    memory: MEMORY,
    open: ["openTemplate", source],
  });
  const inWords = async <R>(action: () => Promise<R>, remedy: string) => {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof UntrustedError)) throw error;
      throw new DataError(
        `Cannot apply the chat template of '${folder}': ${
          shown(error.state.replace(/[.\s]+$/, ""))
        }. ${remedy}`,
      );
    }
  };
  await inWords(() => sandbox.open(), "Check the template");
  const tokens = Object.fromEntries(TOKENS.flatMap((kind) => {
    const content = contentOf(config[`${kind}_token`]);
    return content === undefined ? [] : [[`${kind}_token`, content]];
  }));
  return {
    render: async (messages, { tools, values } = {}) =>
      await inWords(
        () =>
          sandbox.call(["render", {
            ...values,
            ...tokens,
            messages,
            add_generation_prompt: true,
            // What a template asks for even where a conversation has none.
            tools: tools ?? null,
            documents: null,
          }]),
        "Leave out --system if it takes none, or give the whole text without --chat",
      ) as string,
    close: () => sandbox.close(),
  };
}

/** The template for conversations, of a text or a list of named texts. */
function conversationTemplate(value: unknown, folder: string): string {
  if (typeof value === "string") return value;
  if (value === undefined || value === null) {
    throw new DataError(
      `Cannot chat with '${folder}': it has no chat template, neither chat_template.jinja nor 'chat_template' in tokenizer_config.json. Give the whole text without --chat`,
    );
  }
  const named = (Array.isArray(value) ? value : []).map((entry: unknown) =>
    (entry ?? {}) as { readonly name?: unknown; readonly template?: unknown }
  );
  const chosen = named.find(({ name }) => name === "default")?.template;
  if (typeof chosen === "string") return chosen;
  throw new DataError(
    `Cannot read the chat templates of '${folder}': 'chat_template' is neither a text nor a list with one named 'default'${
      named.length > 0
        ? ` (names: ${named.map(({ name }) => `'${String(name)}'`).join(", ")})`
        : ""
    }. Check tokenizer_config.json`,
  );
}

/** The text of a special token: itself, or in an object with its properties. */
function contentOf(token: unknown): string | undefined {
  if (typeof token === "string") return token;
  const content = (token ?? {}) as { readonly content?: unknown };
  return typeof content.content === "string" ? content.content : undefined;
}
