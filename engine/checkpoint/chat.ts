/** Chat templates: format a conversation as the text that a checkpoint was trained to continue. */

import { DataError } from "../../spec/errors.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import { OpenSandbox } from "../untrusted/open_sandbox.ts";
import { callUntrusted } from "../untrusted/sandbox.ts";

/** A turn of a conversation. */
export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

/** A turn with any fields that a template may read. */
export type TemplateMessage = { readonly [field: string]: unknown };

/** Conversation data besides messages. */
export interface RenderOptions {
  /** Functions that the assistant may call, in the template's format. Default: none. */
  readonly tools?: readonly object[] | undefined;
  /** Additional variables of the template. */
  readonly values?: { readonly [name: string]: unknown } | undefined;
  /** Whether the start of an assistant's turn is added. Default: true. */
  readonly generationPrompt?: boolean;
}

/** The chat template of a checkpoint. */
export interface ChatTemplate {
  /** Its text. */
  readonly source: string;
  /**
   * The text up to the start of the assistant's turn. It contains all special tokens, including the first one: encode
   * it with `encodeBare`.
   */
  render(
    messages: readonly (ChatMessage | TemplateMessage)[],
    options?: RenderOptions,
  ): Promise<string>;
  /** Whether `MARKS` enclose the text of the assistant, because the template has `{% generation %}` blocks. */
  readonly marked: boolean;
  /** Terminates its process. */
  close(): void;
}

/** Options of opening a chat template. */
export interface OpenTemplateOptions {
  /** Whether `MARKS` enclose the text of `{% generation %}` blocks. Default: false. */
  readonly mark?: boolean;
  /** Remedies in error messages. Default: those of `generate`. */
  readonly remedies?: ChatRemedies;
}

/** Characters around the assistant's text: Unicode noncharacters, which no text contains. */
export const MARKS = { start: "\ufdd0", end: "\ufdd1" } as const;

/** Memory limit of a template in MiB. */
const MEMORY = 256;

/** Maximum characters of a template. Published ones have some thousand. */
const LONGEST = 2 ** 18;

/** Special tokens of tokenizer_config.json that templates may use. */
const TOKENS = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/**
 * Opens the chat template of a checkpoint folder in a sandbox, because it is untrusted: chat_template.jinja, else
 * `chat_template` of tokenizer_config.json, a text or a list of named texts, of which "default" is used. Throws
 * DataError if there is none.
 */
export async function openChatTemplate(
  folder: string,
  files: FileSystem,
  { remedies = COMMAND_REMEDIES, mark = false }: OpenTemplateOptions = {},
): Promise<ChatTemplate> {
  const names = new Set(await files.list(folder));
  const config = names.has("tokenizer_config.json")
    ? await readJsonObject(files.join(folder, "tokenizer_config.json"), files)
    : {};
  const source = names.has("chat_template.jinja")
    ? await files.readText(files.join(folder, "chat_template.jinja"))
    : conversationTemplate(config["chat_template"], { folder, remedies });
  return await createTemplate(source, config, { folder, remedies, mark });
}

/** Remedies in error messages. */
export interface ChatRemedies {
  /** If there is no template. */
  readonly missing: string;
  /** If the template fails for a conversation. */
  readonly failed: string;
}

const COMMAND_REMEDIES: ChatRemedies = {
  missing: "Give the complete text without --chat",
  failed:
    "Leave out --system if it takes none, or give the complete text without --chat",
};

/** The folder of a template, and remedies, for messages. */
interface TemplateSource {
  readonly folder: string;
  readonly remedies: ChatRemedies;
}

async function createTemplate(
  given: string,
  config: { readonly [key: string]: unknown },
  { folder, remedies, mark }: TemplateSource & { readonly mark: boolean },
): Promise<ChatTemplate> {
  const source = mark ? markedSource(given) : given;
  if (source.length > LONGEST) {
    throw new DataError(
      `Cannot apply the chat template of '${folder}': it has ${source.length} characters, and at most ${LONGEST} are read. Check the template`,
    );
  }
  const sandbox = new OpenSandbox({
    memory: MEMORY,
    open: ["openTemplate", source],
  });
  const purpose = `apply the chat template of '${folder}'`;
  await callUntrusted(() => sandbox.open(), {
    purpose,
    remedy: "Check the template",
  });
  const tokens = Object.fromEntries(TOKENS.flatMap((kind) => {
    const content = contentOf(config[`${kind}_token`]);
    return content === undefined ? [] : [[`${kind}_token`, content]];
  }));
  return {
    source: given,
    marked: source !== given,
    render: async (messages, { tools, values, generationPrompt = true } = {}) =>
      await callUntrusted(
        () =>
          sandbox.call(["render", {
            ...values,
            ...tokens,
            messages,
            add_generation_prompt: generationPrompt,
            // Variables that a template requires even if they are empty.
            tools: tools ?? null,
            documents: null,
          }]),
        { purpose, remedy: remedies.failed },
      ) as string,
    close: () => sandbox.close(),
  };
}

/**
 * Replaces the tags of `{% generation %}` blocks, which produce nothing, by expressions that produce marks. Line breaks
 * and indentation around a tag are removed, as around any other.
 */
function markedSource(source: string): string {
  return source
    .replace(/^[ \t]*(?={%-?\s*(?:end)?generation\s*-?%})/gm, "")
    .replace(
      /{%(-?)\s*(end)?generation\s*(-?)%}\n?/g,
      (_, before: string, end: string | undefined, after: string) =>
        `{{${before} "${end ? MARKS.end : MARKS.start}" ${after}}}`,
    );
}

/** The template for conversations from a text or a list of named texts. */
function conversationTemplate(
  value: unknown,
  { folder, remedies }: TemplateSource,
): string {
  if (typeof value === "string") return value;
  if (value === undefined || value === null) {
    throw new DataError(
      `Cannot chat with '${folder}': it has no chat template, neither chat_template.jinja nor 'chat_template' in tokenizer_config.json. ${remedies.missing}`,
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

/** The text of a special token, given as a string or as an object with its properties. */
function contentOf(token: unknown): string | undefined {
  if (typeof token === "string") return token;
  const content = (token ?? {}) as { readonly content?: unknown };
  return typeof content.content === "string" ? content.content : undefined;
}
