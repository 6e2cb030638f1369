/** A server of `switchyard serve` in this process. */

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import OpenAI from "openai";
import type { CliIo } from "../../cli/io.ts";
import { main } from "../../cli/main.ts";
import { checkpointFolder } from "./checkpoints.ts";
import { copyCheckpoint, type Finished, withOutput } from "./cli.ts";

/** A server that can be asked. */
export interface Asked {
  /** `http://127.0.0.1:PORT`. */
  readonly address: string;
  readonly client: OpenAI;
  /** Sends a body to a path. */
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
}

/** A server at an address. */
export function serverAt(address: string): Asked {
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

/** The address in what a server prints. */
export function addressIn(printed: string): string | undefined {
  return /(http:\S+)\/v1/.exec(printed)?.[1];
}

/** A running server. */
export interface TestServer extends Asked {
  /** Asks it to end, as Ctrl-C does. */
  interrupt(): void;
  /** What it printed, when it has ended. */
  readonly ended: Promise<Finished>;
  /** Asks it to end, and waits. */
  stop(): Promise<Finished>;
}

/** Starts a server of a checkpoint at a free port. */
export async function startServer(
  folder = checkpointFolder("demo-lm"),
  ...args: string[]
): Promise<TestServer> {
  return await startServerWith({}, [folder, ...args]);
}

/** As `startServer`, with another clock, for example. */
export async function startServerWith(
  given: Partial<CliIo>,
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
          interrupt = action;
          return () => {};
        },
      }), given);
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

/** A copy of the bundled checkpoint with a chat template. */
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
