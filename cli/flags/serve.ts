/** Flags of `serve`. */

import type { Command } from "commander";
import type { DeviceFlags, PlanFlags } from "./flags.ts";
import { deviceFlags, planFlags } from "./options.ts";
import { type SpeculationFlags, speculationFlags } from "./speculation.ts";
import { byteCount, integer, positive, UsageError } from "./values.ts";

/** The serving options and API keys. */
export interface ServeFlags extends PlanFlags, DeviceFlags, SpeculationFlags {
  readonly host?: string;
  readonly port?: number;
  readonly name?: string;
  readonly apiKey?: readonly string[];
  readonly cors?: readonly string[];
  readonly maxBatchTokens?: number;
  readonly maxQueue?: number;
  readonly maxBody?: number;
  readonly stats?: boolean;
  /** Seconds. */
  readonly requestDeadline?: number;
  /** Seconds. */
  readonly sendTimeout?: number;
  /** Milliseconds. */
  readonly streamInterval?: number;
}

/** Adds the flags to a command. */
export function serveFlags(command: Command): Command {
  return speculationFlags(deviceFlags(planFlags(
    command
      .option(
        "--port <n>",
        "Port; 0 for any free one. Default: 8000.",
        integer("--port", 0, 65_535),
      )
      .option("--host <address>", "Address to listen on. Default: 127.0.0.1.")
      .option(
        "--api-key <key>",
        "Key that requests must have as 'Authorization: Bearer KEY'. Repeatable. Default: SWITCHYARD_API_KEY, else none.",
        repeated(apiKey),
      )
      .option(
        "--name <id>",
        "Model id in requests. Default: the name of the folder or on the hub.",
      )
      .option(
        "--cors <origin>",
        "Origin of web pages that may send requests, or '*'. Repeatable. Default: none.",
        repeated(origin),
      )
      .option(
        "--max-batch-tokens <n>",
        "Maximum tokens per step, as --max-tokens: long prompts are fed in chunks. Default: 512.",
        integer("--max-batch-tokens", 1),
      )
      .option(
        "--max-queue <n>",
        "Maximum sequences that wait; requests beyond are refused (429). Default: 256.",
        integer("--max-queue", 0),
      )
      .option(
        "--max-body <bytes>",
        "Maximum size of a request, for example 8MiB. Default: 4MiB.",
        byteCount("--max-body"),
      )
      .option(
        "--stats",
        "Count bytes sent between ranks for /metrics. Steps are slower. Default: false.",
      )
      .option(
        "--request-deadline <seconds>",
        "Time limit of a request, waiting included. Default: 600.",
        positive("--request-deadline", 86_400),
      )
      .option(
        "--send-timeout <seconds>",
        "Closes the connection of a client that reads nothing of its response for so long, and cancels its request. Default: 60.",
        positive("--send-timeout", 86_400),
      )
      .option(
        "--stream-interval <ms>",
        "Maximum milliseconds between writes of streamed tokens; the tokens of shorter steps are collected. 0: the tokens of each step are written. Default: 10.",
        integer("--stream-interval", 0, 1000),
      ),
  )));
}

/** Collects the values of an option. `parse` throws UsageError. */
function repeated(parse: (text: string) => string) {
  return (text: string, before: readonly string[] = []): string[] => [
    ...before,
    parse(text),
  ];
}

/** An empty key would admit requests without one, and headers cannot contain all characters. */
function apiKey(text: string): string {
  if (/^[!-~]+$/.test(text)) return text;
  throw new UsageError(
    "Cannot use --api-key: the key is empty, or has white space or characters that are not ASCII. Give another key",
  );
}

/** Browsers send no path with an origin, and 'null' for local files. */
function origin(text: string): string {
  if (/^(\*|null|[a-z][a-z\d+.-]*:\/\/[^/\s]+)$/.test(text)) return text;
  throw new UsageError(
    `Cannot use --cors '${text}'. Give an origin such as http://localhost:3000, or '*'`,
  );
}
