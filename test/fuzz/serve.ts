/**
 * Class `serve`: concurrent hostile clients of one server: invalid, large or deeply nested bodies, partial requests,
 * idle connections, and clients that disconnect or never read. Valid requests get the bytes that they get alone, others
 * an error of the API. Afterwards no sequence and no page is in use.
 */

import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { startServer, type TestServer } from "../helpers/serve.ts";
import {
  answerOf,
  metricOf,
  type RandomRequest,
  randomRequests,
} from "../helpers/serve_requests.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

interface Client {
  readonly kind: keyof typeof KINDS;
  readonly seed: number;
  /** Position of the change or truncation, as a fraction of the length. */
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** Statuses of rejected requests. */
const REFUSED = [400, 404, 413, 415, 429];

/** Actions of clients. Returned sockets are closed after all clients are done. */
const KINDS = {
  async valid(server: TestServer, { seed }: Client) {
    const [request] = randomRequests(1, { seed, chat: false });
    const stays = { ...request!, leaves: false };
    const answer = await answerOf(server, stays);
    if (answer === await aloneOf(server, seed, stays)) return;
    throw new Finding(`request ${seed} has another answer:\n${answer}`);
  },
  async leaves(server: TestServer, { seed }: Client) {
    const [request] = randomRequests(1, { seed, chat: false });
    const body = { ...request!.body, stream: true, max_tokens: 400, n: 4 };
    await answerOf(server, { ...request!, body, leaves: true });
  },
  async mutant(server: TestServer, { seed, at, bytes }: Client) {
    const text = Buffer.from(bodyOf(seed));
    const start = Math.floor(at * text.length);
    bytes.forEach((byte, i) => text[(start + i) % text.length] = byte);
    await refusedOrWhole(server, new Uint8Array(text));
  },
  async noise(server: TestServer, { bytes }: Client) {
    await refusedOrWhole(server, Uint8Array.from(bytes));
  },
  async deep(server: TestServer, { seed, at }: Client) {
    const open = seed % 2 === 0 ? "[" : '{"a":';
    const text = open.repeat(1 + Math.floor(at * 2e5));
    await refusedOrWhole(server, new TextEncoder().encode(text));
  },
  async large(server: TestServer, { at }: Client) {
    const parts = Math.floor(at * 100);
    const part = new Uint8Array(1 << 20).fill(32);
    async function* body() {
      for (let i = 0; i < parts; i++) yield part;
    }
    await server.post("/v1/completions", "", {
      body: ReadableStream.from(body()),
      duplex: "half",
    } as RequestInit).then((response) => expectRefusal(response), () => {
      // The server need not read a body that it rejects.
    });
  },
  async partial(server: TestServer, { seed, at }: Client) {
    const text = rawRequest(bodyOf(seed));
    return await write(server, text.slice(0, Math.floor(at * text.length)));
  },
  async unread(server: TestServer, { seed }: Client) {
    const body = { prompt: "Once", max_tokens: 400, n: 1 + seed % 8 };
    return await write(
      server,
      rawRequest(JSON.stringify({ ...body, stream: true, ignore_eos: true })),
    );
  },
  async idle(server: TestServer, { at }: Client) {
    const count = Math.floor(at * 100);
    const sockets: Socket[] = [];
    for (let i = 0; i < count; i++) sockets.push(...await write(server, ""));
    return sockets;
  },
};

const answers = new Map<number, string>();

/** Returns the answer to a single request, from the second server on first use. */
async function aloneOf(
  server: TestServer,
  seed: number,
  request: RandomRequest,
): Promise<string> {
  const known = answers.get(seed) ?? await answerOf(quiet ?? server, request);
  answers.set(seed, known);
  return known;
}

let quiet: TestServer | undefined;

function bodyOf(seed: number): string {
  return JSON.stringify(randomRequests(1, { seed, chat: false })[0]!.body);
}

function rawRequest(body: string): string {
  return `POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: ${
    Buffer.byteLength(body)
  }\r\n\r\n${body}`;
}

/** Opens a connection and sends a text. Reads nothing. */
async function write(server: TestServer, text: string): Promise<Socket[]> {
  const socket = connect(Number(new URL(server.address).port), "127.0.0.1");
  socket.on("error", () => {});
  await new Promise((resolve) => socket.once("connect", resolve));
  if (text !== "") await new Promise((resolve) => socket.write(text, resolve));
  return [socket];
}

async function refusedOrWhole(
  server: TestServer,
  body: Uint8Array<ArrayBuffer>,
): Promise<void> {
  const response = await server.post("/v1/completions", "", { body });
  if (response.status === 200) await response.text();
  else await expectRefusal(response);
}

async function expectRefusal(response: Response): Promise<void> {
  const text = await response.text();
  const error = REFUSED.includes(response.status) &&
    (JSON.parse(text) as { error?: { message?: string } }).error?.message;
  if (error && /^Cannot .*\. /s.test(error)) return;
  throw new Finding(`status ${response.status}: ${text.slice(0, 300)}`);
}

/** Waits until no sequence and no page is in use: disconnects are detected with a delay. */
async function expectIdle(server: TestServer): Promise<void> {
  let left: string[] = [];
  for (let wait = 1; wait < 20_000; wait *= 2) {
    left = [];
    for (
      const name of ["sequences_running", "sequences_waiting", "pages_used"]
    ) {
      const value = await metricOf(server, `switchyard_${name}`);
      if (value !== 0) left.push(`${name} is ${value}`);
    }
    if (left.length === 0) return;
    await sleep(wait);
  }
  throw new Finding(`after all clients left, ${left.join(", ")}`);
}

/** One to eight concurrent clients. */
export function serveClass(): FuzzClass<readonly Client[]> {
  let server: TestServer | undefined;
  return {
    name: "serve",
    count: 300,
    cases: fc.array(
      fc.record({
        kind: fc.constantFrom(...Object.keys(KINDS) as (keyof typeof KINDS)[]),
        seed: fc.nat(1000),
        at: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
        bytes: fc.uint8Array({ minLength: 1, maxLength: 20 }),
      }),
      { minLength: 1, maxLength: 8 },
    ),
    async judge(clients) {
      const folder = checkpointFolder("demo-lm");
      quiet ??= await startServer(folder);
      server ??= await startServer(
        folder,
        ...["--max-sequences", "6", "--pages", "80x8", "--max-queue", "64"],
      );
      const target = server;
      const sockets = await Promise.all(
        clients.map((client) => KINDS[client.kind](target, client)),
      );
      for (const socket of sockets.flatMap((one) => one ?? [])) {
        socket.destroy();
      }
      await expectIdle(target);
      const { status } = await fetch(`${target.address}/health`);
      if (status !== 200) throw new Finding(`/health is ${status}`);
      return clients.map(({ kind }) => kind).sort()[0]!;
    },
    close: async () => {
      await server?.stop();
      await quiet?.stop();
      server = quiet = undefined;
    },
  };
}
