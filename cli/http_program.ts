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
  Metrics,
  type PageCount,
  RemoteLoop,
  type Served,
  TokenTexts,
} from "../engine/server/mod.ts";
import { livePageHtml, type PageAssets } from "../view/mod.ts";
import { DataError, MachineError } from "../spec/mod.ts";
import { nodeFiles } from "./files.ts";
import { grammarsOf, loopPort } from "./http_thread.ts";
import { listen, type ListenOptions } from "./listen.ts";
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
  /** What receipts state of the run. Undefined for fast numerics. */
  readonly receipt: Omit<Receipt, "checkpoint" | "sequences"> | undefined;
  readonly app: AppOptions;
  /** Undefined: there is no page. */
  readonly assets: PageAssets | undefined;
  readonly listen: ListenOptions;
}

/** Data of the thread. */
export interface HttpData {
  readonly settings: HttpSettings;
  /** The port of the loop. */
  readonly loop: MessagePort;
}

/** A message to the thread. `drain`: reject further requests. `close`: drain, close all connections, and end. */
export type HttpRequest = "drain" | "close";

/** A message of the thread. */
export type HttpReport =
  | { readonly kind: "listens"; readonly address: string }
  | {
    readonly kind: "refused";
    readonly message: string;
    /** Whether the machine is the reason, not the checkpoint. */
    readonly machine: boolean;
  }
  | { readonly kind: "drained" };

const files = nodeFiles();
const { settings, loop: port } = workerData as HttpData;

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
function receiptsOf(run: NonNullable<HttpSettings["receipt"]>) {
  let hashed: ReturnType<typeof hashCheckpoint> | undefined;
  return async () => {
    hashed ??= hashCheckpoint(settings, files);
    return { ...run, checkpoint: await hashed };
  };
}

/** Starts to listen. */
async function serve(): Promise<void> {
  const { folder, capacity, experts, pages, speculates, ...served } = settings;
  const chat = await templateOf(folder);
  const now = () => performance.now();
  const tokenizer = async () =>
    requireTokenizer(await openTokenizer(folder, files));
  const [encoder, decoder] = [await tokenizer(), await tokenizer()];
  const metrics = new Metrics({ capacity, experts, pages, speculates });
  const app = await createApp({
    ...served,
    created: Math.floor(Date.now() / 1000),
    loop: new RemoteLoop(loopPort(port), { capacity }),
    encoder,
    decoder,
    openGrammars: grammarsOf(settings, files).open,
    tokenTexts: new TokenTexts(decoder),
    metrics,
    now,
    receipt: served.receipt && receiptsOf(served.receipt),
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
  const { address, close } = await listen(app.fetch, settings.listen);
  parentPort!.on("message", async (request: HttpRequest) => {
    await app.drain();
    if (request === "drain") return send({ kind: "drained" });
    await close();
    process.exit();
  });
  send({ kind: "listens", address });
}

try {
  await serve();
} catch (error) {
  const machine = error instanceof MachineError;
  if (!machine && !(error instanceof DataError)) throw error;
  send({ kind: "refused", message: error.message, machine });
}
