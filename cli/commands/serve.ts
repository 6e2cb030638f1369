/** `switchyard serve`: serve a checkpoint with an OpenAI-compatible API. */

import {
  type ChatTemplate,
  Decoder,
  decoderShape,
  openChatTemplate,
  openTarget,
  openTokenizer,
} from "../../engine/mod.ts";
import {
  BatchLoop,
  createApp,
  Metrics,
  TokenTexts,
} from "../../engine/server/mod.ts";
import { DataError } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import { closeServer, listen } from "../listen.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { requireTokenizer } from "../prompts.ts";
import type { ServeFlags } from "../serve_flags.ts";
import { UsageError } from "../values.ts";
import { openOptions, targetOf } from "./options.ts";

/** Defaults of tokens per step, sequences in one batch and positions of a sequence. */
const [STEP_TOKENS, SEQUENCES, CONTEXT] = [512, 32, 4096] as const;

/** Default size of the caches, as a part of the size for all sequences at full length. */
const CACHED_PART = 0.25;

/** Milliseconds that a connection may be idle after the deadline of its request. */
const SILENT_MS = 5000;

/** The names of this machine that are reachable only from itself. */
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];

/** Serves a checkpoint until Ctrl-C or SIGTERM. Requests in progress are completed first. */
export async function serveCommand(
  base: CliIo,
  name: string,
  flags: ServeFlags,
): Promise<number> {
  const { host = "127.0.0.1", port = 8000, requestDeadline = 600 } = flags;
  const apiKeys = keysOf(base, flags);
  if (flags.devices === "mpi") {
    throw new UsageError(
      "Cannot serve where ranks are processes. Use --devices shared",
    );
  }
  const { io, model: folder } = await locate(base, name, flags);
  const target = await targetOf(io, folder, flags);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot serve '${folder}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const encoder = requireTokenizer(await openTokenizer(folder, io.files));
  const decoder = requireTokenizer(await openTokenizer(folder, io.files));
  const chat = await templateOf(io, folder);
  const close = () => {
    encoder.close();
    decoder.close();
    if (!("missing" in chat)) chat.close();
  };
  const sequences = flags.maxSequences ?? SEQUENCES;
  const context = flags.maxContext ??
    Math.min(CONTEXT, target.checkpoint.published.decoder.maxPositions);
  const bar = createProgressBar(io);
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, {
      ...flags,
      ...flags.maxBatchTokens === undefined
        ? {}
        : { maxTokens: flags.maxBatchTokens },
    }),
    next: { candidates: 1, logits: true },
    need: {
      tokens: STEP_TOKENS,
      sequences,
      context,
      lengths: Array.from(
        { length: sequences },
        () => Math.ceil(CACHED_PART * context),
      ),
    },
    onProgress: bar.update,
  }).finally(bar.stop).catch((error) => {
    close();
    throw error;
  });
  try {
    const shape = new Decoder(opened.session, decoderShape(opened.plan)!);
    const metrics = new Metrics();
    const loop = new BatchLoop(shape, { now: io.now, ...metrics.hooks });
    metrics.watch(loop, shape);
    const app = await createApp({
      name: flags.name ?? (name === folder ? nameOf(folder) : name),
      created: Math.floor(Date.now() / 1000),
      loop,
      shape,
      stop: target.checkpoint.stop,
      encoder,
      decoder,
      tokenTexts: new TokenTexts(decoder),
      metrics,
      now: io.now,
      chat,
    }, {
      apiKeys,
      origins: flags.cors ?? [],
      hosts: isLoopback(host) ? [...LOOPBACK, host] : undefined,
      maxQueue: flags.maxQueue ?? 256,
      maxBody: flags.maxBody ?? 4 * 2 ** 20,
      requestMs: 1000 * requestDeadline,
    });
    const { server, address } = await listen(app.fetch, {
      host,
      port,
      silentMs: 1000 * requestDeadline + SILENT_MS,
    });
    if (!isLoopback(host) && apiKeys.length === 0) {
      io.err(
        `Anyone who reaches ${host} can send requests. Give --api-key to restrict it`,
      );
    }
    await io.out(`Serving ${address}/v1 (Ctrl-C ends it)\n`);
    const release = io.onInterrupt(() => {
      io.err("Ending after the requests in progress; once more to end at once");
      void app.drain().then(() => loop.close());
    });
    try {
      await loop.run();
    } finally {
      release();
      await app.drain();
      await closeServer(server);
    }
    return 0;
  } finally {
    close();
    await opened.close();
  }
}

/** Returns the chat template, or the reason for its absence. */
async function templateOf(
  io: CliIo,
  folder: string,
): Promise<ChatTemplate | { readonly missing: string }> {
  try {
    return await openChatTemplate(folder, io.files);
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    const [, missing = error.message] = /: (.*)\. /.exec(error.message) ?? [];
    return { missing };
  }
}

/** Returns the API keys from the flags, otherwise from the environment. */
function keysOf(
  { environment }: CliIo,
  { apiKey }: ServeFlags,
): readonly string[] {
  const given = environment["SWITCHYARD_API_KEY"];
  return apiKey ?? (given ? [given] : []);
}

/** Returns the last component of a path. */
function nameOf(folder: string): string {
  return folder.split(/[/\\]/).findLast((part) => part !== "") ?? folder;
}

function isLoopback(host: string): boolean {
  return ["127.0.0.1", "localhost", "::1"].includes(host);
}
