/** Runs `switchyard serve` in this process. */

import { readFileSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import OpenAI from "openai";
import type { CliIo } from "../../cli/io.ts";
import { main } from "../../cli/main.ts";
import { checkpointFolder } from "./checkpoints.ts";
import { copyCheckpoint, type Finished, withOutput } from "./cli.ts";

/** Client of a server. */
export interface ServerClient {
  /** `http://127.0.0.1:PORT`. */
  readonly address: string;
  readonly client: OpenAI;
  /** Posts a body to a path, as JSON unless it is text. */
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
}

/** Returns a client of the server at an address. */
export function serverAt(address: string): ServerClient {
  return {
    address,
    client: new OpenAI({
      baseURL: `${address}/v1`,
      apiKey: "none",
      maxRetries: 0,
    }),
    post: (path, body, init = {}) =>
      fetch(`${address}${path}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...init,
      }),
  };
}

/** Returns the address in the output of a server, or undefined. */
export function addressIn(printed: string): string | undefined {
  return /(http:\S+)\/v1/.exec(printed)?.[1];
}

export interface TestServer extends ServerClient {
  /** Interrupts the server, as Ctrl-C does. */
  interrupt(): void;
  /** Resolves to its exit code and output when it ends. */
  readonly ended: Promise<Finished>;
  /** Interrupts the server and waits for its end. */
  stop(): Promise<Finished>;
}

/** Starts a server of a checkpoint on a free port. */
export async function startServer(
  folder = checkpointFolder("demo-lm"),
  ...args: string[]
): Promise<TestServer> {
  return await startServerWith({}, [folder, ...args]);
}

/** As `startServer`, with overrides of the IO, for example the clock. */
export async function startServerWith(
  overrides: Partial<CliIo>,
  [folder, ...args]: readonly [folder: string, ...args: string[]],
): Promise<TestServer> {
  let interrupt = () => {};
  let ended: Promise<Finished>;
  const address = await new Promise<string>((resolve, reject) => {
    let printed = "";
    const argv = ["serve", folder, "--port", "0", "--adapter", "cpu", ...args];
    ended = withOutput((io) =>
      main(argv, {
        ...io,
        out: async (text) => {
          await io.out(text);
          printed += text;
          const found = addressIn(printed);
          if (found) resolve(found);
        },
        onInterrupt: (action) => {
          interrupt = () => action(constants.signals.SIGINT);
          return () => {};
        },
      }), overrides);
    ended.then(({ err }) => reject(new Error(err)), reject);
  });
  return {
    ...serverAt(address),
    interrupt: () => interrupt(),
    ended: ended!,
    stop: async () => {
      interrupt();
      return await ended;
    },
  };
}

/** Copies the bundled checkpoint and adds a chat template. */
export async function chatCheckpoint(
  folder: string,
  template =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>",
): Promise<string> {
  const checkpoint = await copyCheckpoint("demo-lm", folder);
  const config = path.join(checkpoint, "tokenizer_config.json");
  writeFileSync(
    config,
    JSON.stringify({
      ...JSON.parse(readFileSync(config, "utf8")) as object,
      chat_template: template,
    }),
  );
  return checkpoint;
}
