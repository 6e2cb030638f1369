/**
 * Class `serve`: hostile clients of one server at the same time: broken bodies, bodies that are too large or too deep, parts of
 * requests, idle connections, clients that leave or never read. Valid requests among them have the bytes that they have
 * alone; every other one is an error of the API; afterwards no sequence and no page is in use.
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
  /** Where something is cut or changed, as a part of the whole. */
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** Statuses of requests that are not as they should be. */
const REFUSED = [400, 404, 413, 415, 429];

/** What one client does. Sockets that it returns are closed once all clients are done. */
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
      // The server need not read what it refuses.
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

/** The answer of a request by itself; computed at the first use, when others may be there too, on the second server. */
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

/** A connection on which some text was sent, and nothing is read. */
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

/** Waits until no sequence and no page is in use: a client that leaves is noticed a little later. */
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

/** One to eight clients at the same time. */
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
      const asked = server;
      const sockets = await Promise.all(
        clients.map((client) => KINDS[client.kind](asked, client)),
      );
      for (const socket of sockets.flatMap((one) => one ?? [])) {
        socket.destroy();
      }
      await expectIdle(asked);
      const { status } = await fetch(`${asked.address}/health`);
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
