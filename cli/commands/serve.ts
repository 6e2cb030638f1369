/** `switchyard serve`: serve a checkpoint with an OpenAI-compatible API. */

import { MessageChannel } from "node:worker_threads";
import {
  Decoder,
  decoderShape,
  type Opened,
  openTarget,
} from "../../engine/mod.ts";
import {
  createLeader,
  createLoop,
  follow,
  HEARTBEAT_MS,
  type LoopOptions,
  pageCounts,
} from "../../engine/server/mod.ts";
import { DataError, MachineError } from "../../spec/mod.ts";
import type { PageAssets } from "../../view/mod.ts";
import type { CliIo } from "../io.ts";
import { pageAssets } from "../page_assets.ts";
import {
  grammarsOf,
  type HttpThread,
  loopPort,
  startHttp,
} from "../http/thread.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { checkTokenizer } from "../prompts.ts";
import type { HttpSettings } from "../http_program.ts";
import { receiptOfRun } from "../receipts.ts";
import {
  type Drafted,
  draftedOptions,
  openSpeculation,
} from "../speculation.ts";
import { checkSpeculation, nextPerSequence } from "../flags/speculation.ts";
import type { ServeFlags } from "../flags/serve.ts";
import { joinAsRank } from "../launch/rank.ts";
import { begunLine } from "../launch/rank_lines.ts";
import { ENDING, stopFile } from "../launch/mpi_job.ts";
import { finishLine } from "../flags/values.ts";
import { openOptions, targetOf } from "./options.ts";

/** Defaults of tokens per step, sequences in one batch and positions of a sequence. */
const [STEP_TOKENS, SEQUENCES, CONTEXT] = [512, 32, 4096] as const;

/** Default positions of the caches for each sequence: a part of the context, and a minimum. */
const [CACHED_PART, CACHED_MIN] = [0.25, 1024];

/** Default maximum milliseconds between writes of streamed tokens. */
const STREAM_MS = 10;

/** Default address, and default seconds of a request. */
const [HOST, DEADLINE_S] = ["127.0.0.1", 600] as const;

/** Default seconds in which a client must read a part of its response. */
const SEND_S = 60;

/** Milliseconds that a connection may be idle after the deadline of its request. */
const SILENT_MS = 5000;

/** The error of requests in progress when another rank of the job ends. */
const KILLED =
  "Cannot go on: another rank of the job has ended. Start the command again";

/** Milliseconds between looks for the request of 'launch' to end. */
const LOOK_MS = 100;

/** The names of this machine that are reachable only from itself. */
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];

/** Serves a checkpoint until Ctrl-C or SIGTERM. Requests in progress are completed first. */
export async function serveCommand(
  base: CliIo,
  name: string,
  flags: ServeFlags,
): Promise<number> {
  checkSpeculation(flags);
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const { io, model: folder } = await locate(base, name, flags);
  const target = await targetOf(io, folder, flags);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot serve '${folder}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const { checkpoint } = target;
  const sequences = flags.maxSequences ?? SEQUENCES;
  const context = flags.maxContext ??
    Math.min(CONTEXT, checkpoint.published.decoder.maxPositions);
  const { companions, hidden } = draftedOptions(flags, target, io.files);
  await checkTokenizer(folder, io.files);
  // Only one rank of a job listens. Its number is known when the model is loaded.
  let http = flags.devices === "mpi"
    ? undefined
    : await listenFor(io, folder, flags);
  let opened: Opened | undefined;
  const bar = createProgressBar(io);
  try {
    opened = await openTarget(target, io.files, {
      ...await openOptions(io, target, {
        ...flags,
        ...flags.maxBatchTokens === undefined
          ? {}
          : { maxTokens: flags.maxBatchTokens },
      }),
      next: {
        candidates: 1,
        logits: true,
        normalizer: true,
        perSequence: nextPerSequence(flags),
        hidden,
      },
      companions,
      need: {
        tokens: STEP_TOKENS,
        sequences,
        context,
        lengths: Array.from(
          { length: sequences },
          () =>
            Math.min(
              context,
              Math.max(Math.ceil(CACHED_PART * context), CACHED_MIN),
            ),
        ),
      },
      statistics: flags.stats ?? false,
      onProgress: (progress) => {
        http?.check();
        bar.update(progress);
      },
    }).finally(bar.stop);
    const { session } = opened;
    const shape = decoderShape(opened.plan)!;
    if (opened.rank > 0) await follow(opened);
    else {
      const served = {
        http: http ??= await listenFor(io, folder, flags),
        companions: opened.companions,
        name: flags.name ?? (name === folder ? nameOf(folder) : name),
        folder,
        stop: checkpoint.stop,
        weightFiles: checkpoint.weightFiles,
        receipt: flags.numerics === "fast"
          ? undefined
          : await receiptOfRun({ model: name, opened, flags }),
        sentBytes: flags.stats ? () => sentBytes({ session }) : () => ({}),
      };
      if (flags.devices === "mpi") {
        const leader = createLeader(opened);
        await serveModel(io, {
          ...served,
          companions: opened.companions.map(({ plan, session }, companion) => ({
            plan,
            session: leader.lead(session, { companion }),
          })),
          model: new Decoder(leader.lead(session), shape),
          idle: { ms: HEARTBEAT_MS, action: leader.idle },
        }, flags);
        await leader.end();
      } else {
        const model = new Decoder(session, shape);
        await serveModel(io, { ...served, model }, flags);
      }
    }
    await opened.finish();
    if (flags.job !== undefined && opened.rank === 0) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    return 0;
  } finally {
    await http?.close();
    await opened?.close();
  }
}

/** Bytes that the ranks in this process sent to others, by kind. */
function sentBytes({ session }: Pick<Opened, "session">): {
  [kind: string]: number;
} {
  const sent: { [kind: string]: number } = {};
  for (const rank of session.statistics().ranks) {
    for (const [kind, { actual }] of Object.entries(rank.sentBytes)) {
      sent[kind] = (sent[kind] ?? 0) + actual;
    }
  }
  return sent;
}

/** The assets of the page. Undefined if they were not built. */
async function assetsOf(io: CliIo): Promise<PageAssets | undefined> {
  try {
    return await pageAssets(io);
  } catch (error) {
    if (error instanceof DataError) return undefined;
    throw error;
  }
}

/** Starts the thread that listens where the flags say. */
async function listenFor(
  io: CliIo,
  folder: string,
  flags: ServeFlags,
): Promise<HttpThread> {
  const { host = HOST, port = 8000 } = flags;
  const { requestDeadline = DEADLINE_S, sendTimeout = SEND_S } = flags;
  return await startHttp({
    folder,
    host,
    port,
    silentMs: 1000 * requestDeadline + SILENT_MS,
    sendMs: 1000 * sendTimeout,
  }, () =>
    io.err(
      `Cannot send a response: its client has read nothing for ${sendTimeout} s. Its connection is closed`,
    ));
}

/** A loaded model. */
interface LoadedModel
  extends
    Pick<LoopOptions, "idle">,
    Pick<HttpSettings, "weightFiles" | "receipt"> {
  readonly http: HttpThread;
  readonly companions: Drafted["companions"];
  /** Bytes that the ranks in this process sent, by kind. */
  readonly sentBytes: () => { readonly [kind: string]: number };
  readonly name: string;
  readonly folder: string;
  readonly model: Decoder;
  readonly stop: ReadonlySet<number>;
}

/** Answers requests until the process is asked to end. */
async function serveModel(
  io: CliIo,
  { http, model, companions, idle, sentBytes, ...served }: LoadedModel,
  flags: ServeFlags,
): Promise<void> {
  const { host = HOST, requestDeadline = DEADLINE_S } = flags;
  const { streamInterval = STREAM_MS } = flags;
  const apiKeys = keysOf(io, flags);
  const { vocabulary, maxContext, maxSequences, experts } = model.shape;
  const { port1: ours, port2: routes } = new MessageChannel();
  const draft = await openSpeculation(io, flags, {
    decoder: model,
    companions,
    alone: true,
  });
  const shape = { vocabulary, maxContext };
  const grammars = grammarsOf({ ...served, shape }, io.files);
  const loop = createLoop(model, loopPort(ours), {
    now: io.now,
    openGrammars: grammars.open,
    sentBytes,
    streamInterval,
    speculation: draft.speculation,
    ...idle ? { idle } : {},
  });
  try {
    await http.serve({
      ...served,
      shape,
      capacity: maxSequences,
      experts,
      assets: await assetsOf(io),
      pages: pageCounts(model.shape),
      speculates: draft.speculation !== undefined,
      app: {
        apiKeys,
        origins: flags.cors ?? [],
        hosts: isLoopback(host) ? [...LOOPBACK, host] : undefined,
        maxQueue: flags.maxQueue ?? 256,
        maxBody: flags.maxBody ?? 4 * 2 ** 20,
        requestMs: 1000 * requestDeadline,
      },
    }, { routes, onFail: (error) => loop.fail(error) });
    if (!isLoopback(host) && apiKeys.length === 0) {
      io.err(
        `Anyone who reaches ${host} can send requests. Give --api-key to restrict it`,
      );
    }
    const release = onEnd(io, flags, {
      asked: () => void http.drain().then(() => loop.close()),
      killed: () => loop.fail(new MachineError(KILLED)),
    });
    await io.out(`Serving ${http.address}/v1 (Ctrl-C ends it)\n`);
    try {
      await loop.run();
    } finally {
      await http.close();
      // Until the last response is sent, another signal must not end the process.
      release();
    }
  } finally {
    ours.close();
    await grammars.close();
    await draft.close();
  }
}

/**
 * Calls `asked` when a signal or the job requests the end of the process, and `killed` when the job ends at once, for
 * example because another rank has ended. Returns a function that removes the handlers.
 */
function onEnd(
  io: CliIo,
  { job }: ServeFlags,
  { asked, killed }: {
    readonly asked: () => void;
    readonly killed: () => void;
  },
): () => void {
  if (job === undefined) {
    return io.onInterrupt(() => {
      io.err(ENDING);
      asked();
    });
  }
  // A job that ends repeats the signal: it must not end the process before the last response is sent.
  let release = () => {};
  const hear = () => {
    release = io.onInterrupt(() => {
      hear();
      killed();
    });
  };
  hear();
  const timer = setInterval(async () => {
    if (await io.files.stat(stopFile(job)) === undefined) return;
    clearInterval(timer);
    asked();
  }, LOOK_MS);
  io.err(begunLine());
  return () => {
    clearInterval(timer);
    release();
  };
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
