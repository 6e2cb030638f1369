/** The program of the thread that answers a server's requests: routes, tokenizers and connections. */

import process from "node:process";
import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import {
  type ChatTemplate,
  hashCheckpoint,
  openChatTemplate,
  openTokenizer,
  type Receipt,
} from "../engine/mod.ts";
import {
  type AppOptions,
  createApp,
  loadingResponse,
  Metrics,
  type PageCount,
  RemoteLoop,
  type Served,
  type ServerApp,
  TokenTexts,
} from "../engine/server/mod.ts";
import { livePageHtml, type PageAssets } from "../view/mod.ts";
import { DataError, MachineError } from "../spec/mod.ts";
import { nodeFiles } from "./files.ts";
import { grammarsOf, loopPort } from "./http/thread.ts";
import { listen, type ListenOptions } from "./http/listen.ts";
import { requireTokenizer } from "./prompts.ts";

/** A served checkpoint, and the options of its server. */
export interface HttpSettings extends Pick<Served, "name" | "shape" | "stop"> {
  readonly folder: string;
  /** Maximum number of sequences in the caches. */
  readonly capacity: number;
  /** Experts per layer. */
  readonly experts: number;
  readonly pages: readonly PageCount[];
  /** Whether tokens are drafted. */
  readonly speculates: boolean;
  readonly weightFiles: readonly string[];
  /** Fields of receipts about the run. Undefined for fast numerics. */
  readonly receipt: Omit<Receipt, "checkpoint" | "sequences"> | undefined;
  readonly app: AppOptions;
  /** Undefined: there is no page. */
  readonly assets: PageAssets | undefined;
}

/** Where to listen, and the folder of the checkpoint to serve. */
export interface HttpOptions extends Omit<ListenOptions, "onUnread"> {
  readonly folder: string;
}

/**
 * A message to the thread. `serve`: answer requests, `loop` being the port of the loop. `drain`: reject further
 * requests. `close`: drain, close all connections, and end.
 */
export type HttpRequest =
  | {
    readonly kind: "serve";
    readonly settings: HttpSettings;
    readonly loop: MessagePort;
  }
  | { readonly kind: "drain" }
  | { readonly kind: "close" };

/** A message of the thread. */
export type HttpReport =
  | { readonly kind: "listens"; readonly address: string }
  | { readonly kind: "serves" }
  | {
    readonly kind: "refused";
    readonly message: string;
    /** Whether the machine is the reason, not the checkpoint. */
    readonly machine: boolean;
  }
  | { readonly kind: "drained" }
  /** A client reads none of its response. */
  | { readonly kind: "unread" };

const files = nodeFiles();
const { folder, ...options } = workerData as HttpOptions;

/** The routes. Undefined until the model is loaded. */
let app: ServerApp | undefined;

function send(report: HttpReport): void {
  parentPort!.postMessage(report);
}

/** Remedies of requests. */
const REMEDIES = {
  missing: "Use /v1/completions",
  failed: "Leave out what the template rejects, or use /v1/completions",
};

/** Returns the chat template, or the reason for its absence. */
async function templateOf(
  folder: string,
): Promise<ChatTemplate | { readonly missing: string }> {
  try {
    return await openChatTemplate(folder, files, { remedies: REMEDIES });
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    const [, missing = error.message] = /: (.*)\. /.exec(error.message) ?? [];
    return { missing };
  }
}

/** Returns receipts without sequences. The checkpoint is hashed once, on the first call. */
function receiptsOf(
  run: NonNullable<HttpSettings["receipt"]>,
  settings: HttpSettings,
) {
  let hashed: ReturnType<typeof hashCheckpoint> | undefined;
  return async () => {
    hashed ??= hashCheckpoint(settings, files);
    return { ...run, checkpoint: await hashed };
  };
}

/** Opens the chat template, and a tokenizer for each direction. */
async function open(folder: string) {
  const tokenizer = async () =>
    requireTokenizer(await openTokenizer(folder, files));
  return await Promise.all([templateOf(folder), tokenizer(), tokenizer()]);
}

/** They are opened while the model loads. */
const opened = open(folder);

/** Creates the routes of a loaded model. */
async function routesOf(
  settings: HttpSettings,
  port: MessagePort,
): Promise<ServerApp> {
  const { capacity, experts, pages, speculates, ...served } = settings;
  const [chat, encoder, decoder] = await opened;
  return await createApp({
    ...served,
    created: Math.floor(Date.now() / 1000),
    loop: new RemoteLoop(loopPort(port), { capacity }),
    encoder,
    decoder,
    openGrammars: grammarsOf(settings, files).open,
    tokenTexts: new TokenTexts(decoder),
    metrics: new Metrics({ capacity, experts, pages, speculates }),
    now: () => performance.now(),
    receipt: served.receipt && receiptsOf(served.receipt, settings),
    chat,
  }, {
    ...settings.app,
    page: settings.assets && livePageHtml({
      title: served.name,
      served: {
        model: served.name,
        chat: !("missing" in chat),
        keyed: settings.app.apiKeys.length > 0,
        experts,
        maxContext: served.shape.maxContext,
      },
    }, settings.assets),
  });
}

/** Sends the report of an action, if it has one, or an error that the caller states to the user. */
async function reported(
  action: () => Promise<HttpReport | undefined>,
): Promise<void> {
  try {
    const report = await action();
    if (report) send(report);
  } catch (error) {
    const machine = error instanceof MachineError;
    if (!machine && !(error instanceof DataError)) throw error;
    send({ kind: "refused", message: error.message, machine });
  }
}

void reported(async () => {
  await opened;
  return undefined;
});
await reported(async () => {
  const { address, close } = await listen(
    (request, connection) =>
      app ? app.fetch(request, connection) : loadingResponse(),
    { ...options, onUnread: () => send({ kind: "unread" }) },
  );
  parentPort!.on("message", async (request: HttpRequest) => {
    if (request.kind === "serve") {
      return await reported(async () => {
        app = await routesOf(request.settings, request.loop);
        return { kind: "serves" };
      });
    }
    await app?.drain();
    if (request.kind === "drain") return send({ kind: "drained" });
    await close();
    process.exit();
  });
  return { kind: "listens", address };
});
