/** A server of this clone in another process, and requests of completions. Linux only. */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(
  new URL("../../bin/switchyard.mjs", import.meta.url),
);

/** A listening server. */
export interface BenchServer {
  /** `http://HOST:PORT/v1`. */
  readonly url: string;
  readonly pid: number;
  /** Ends it. */
  stop(): Promise<void>;
}

/** The command of a process of this clone; `core`: on this CPU core only, with one thread. */
export function commandOf(
  argv: readonly string[],
  { core }: { readonly core?: number } = {},
): readonly [command: string, ...argv: string[]] {
  const command = [process.execPath, PROGRAM, ...argv] as const;
  return core === undefined
    ? command
    : ["taskset", "-c", `${core}`, ...command];
}

/** Starts `switchyard serve` at a free port. It also ends with this process, unless that is killed by SIGKILL. */
export async function startServer(
  checkpoint: string,
  flags: readonly string[],
  options: { readonly core?: number } = {},
): Promise<BenchServer> {
  const [command, ...argv] = commandOf(
    ["serve", checkpoint, "--port", "0", ...flags],
    options,
  );
  const child = spawn(command, argv, { stdio: ["ignore", "pipe", "inherit"] });
  process.once("exit", () => child.kill("SIGTERM"));
  // A signal alone would not emit "exit".
  for (const [signal, number] of Object.entries({ SIGINT: 2, SIGTERM: 15 })) {
    process.once(signal, () => process.exit(128 + number));
  }
  const url = await new Promise<string>((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`serve ends with ${code}`)));
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      const [found] = /http:\S+/.exec(text) ?? [];
      if (found) resolve(found);
    });
  });
  return {
    url,
    pid: child.pid!,
    stop: async () => {
      child.kill("SIGTERM");
      await new Promise((resolve) => child.on("close", resolve));
    },
  };
}

/** Sends a body to `/v1/completions`. Returns the text of the response. */
export async function complete(
  { url }: Pick<BenchServer, "url">,
  body: object,
): Promise<string> {
  const response = await fetch(`${url}/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  if (response.status !== 200) throw new Error(text);
  return text;
}
