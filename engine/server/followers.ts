/**
 * Ranks in several processes: rank 0 serves and schedules. It sends every run of the decoder to the other ranks, which
 * execute the same run. Pipeline stages execute several runs concurrently: their messages are no collectives, which
 * would wait for those of earlier runs.
 */

import { bytesOf, tensorOf, words } from "../../runtime/host_tensor.ts";
import type { HostTensor, RunOptions, Session } from "../../runtime/mod.ts";
import type { Runs } from "../generation/decoder.ts";
import type { Opened } from "../open.ts";

/** A message of rank 0. */
type Message =
  | {
    readonly kind: "run";
    /** The companion of the decoder that runs. Absent: the decoder. */
    readonly companion?: number | undefined;
    readonly inputs: readonly SentTensor[];
    readonly options: RunOptions;
  }
  | { readonly kind: "idle" }
  | { readonly kind: "end" };

/**
 * An input: its data, or the elements that differ from those of the previous run with this input. Elements are the u32
 * of their bits, because JSON has neither -0 nor NaN.
 */
interface SentTensor {
  readonly name: string;
  readonly dtype: HostTensor["dtype"];
  readonly shape: readonly number[];
  readonly data?: readonly number[];
  /** Pairs of an index and its element. */
  readonly changes?: readonly (readonly [index: number, element: number])[];
}

/** Milliseconds between messages of a server without requests; a rank that has ended is noticed by them. */
export const HEARTBEAT_MS = 10_000;

/** The purpose of messages. */
const WHAT = "a step of the server";

/** Messages of rank 0. */
export interface Leader {
  /**
   * Returns a session whose runs the other ranks execute, too: that of the decoder, or of one of its companions. Only
   * rank 0 receives outputs.
   */
  lead(session: Runs, options?: { readonly companion?: number }): Runs;
  /** Sends a sign of life. */
  idle(): Promise<void>;
  /** Ends the other ranks' part. */
  end(): Promise<void>;
}

type Channel = Pick<Opened, "gatherTexts" | "broadcastText"> & {
  readonly session: Pick<Session, "concurrentRuns">;
};

/** Sends a message of rank 0, or receives it on another rank. */
async function exchange(
  { session, ...channel }: Channel,
  message?: Message,
): Promise<Message> {
  const text = message ? JSON.stringify(message) : "";
  const found = session.concurrentRuns > 1
    ? await channel.broadcastText(text, WHAT)
    : (await channel.gatherTexts(text, WHAT))[0]!;
  return message ?? JSON.parse(found) as Message;
}

/** Meets all ranks between runs: a collective notices that a rank has ended. */
async function meet({ session, ...channel }: Channel): Promise<void> {
  if (session.concurrentRuns > 1) await channel.gatherTexts("", WHAT);
}

/** Creates the messages of rank 0 to the other ranks. */
export function createLeader(channel: Channel): Leader {
  let last: Promise<unknown> = Promise.resolve();
  const send = (message: Message): Promise<void> => {
    const sent = last.then(() => exchange(channel, message)).then(() => {});
    last = sent.catch(() => {});
    return sent;
  };
  const sent = new Map<string, Uint32Array>();
  return {
    lead: (session, { companion } = {}) => ({
      concurrentRuns: session.concurrentRuns,
      runsAhead: false,
      run: async (name, inputs, given) => {
        const options = { ...given, everywhere: false };
        const tensors = Object.entries(inputs).map(
          ([name, tensor]): SentTensor => {
            const { dtype, shape } = tensor;
            const data = words(tensor);
            const before = sent.get(name);
            const changes = before && changesOf(before, data);
            if (changes?.length !== 0) sent.set(name, data.slice());
            return changes
              ? { name, dtype, shape, changes }
              : { name, dtype, shape, data: [...data] };
          },
        );
        await send({ kind: "run", companion, inputs: tensors, options });
        return await session.run(name, inputs, options);
      },
    }),
    idle: async () => {
      await send({ kind: "idle" });
      await meet(channel);
    },
    end: () => send({ kind: "end" }),
  };
}

/** Executes the runs of rank 0 until it ends. */
export async function follow(
  opened: Channel & Pick<Opened, "plan" | "session" | "companions">,
): Promise<void> {
  const known: { [name: string]: HostTensor } = {};
  /** Runs in flight, oldest first, and their session. */
  let flight: Promise<unknown>[] = [];
  let last: Session | undefined;
  let fail!: (error: unknown) => void;
  const failed = new Promise<never>((_, reject) => fail = reject);
  failed.catch(() => {});
  for (;;) {
    const message = await Promise.race([failed, exchange(opened)]);
    if (message.kind === "end") {
      await Promise.all(flight);
      return;
    }
    if (message.kind === "idle") {
      await Promise.all(flight);
      await meet(opened);
      continue;
    }
    const { companion } = message;
    const { plan, session } = companion === undefined
      ? opened
      : opened.companions[companion]!;
    for (const { name, dtype, shape, data, changes = [] } of message.inputs) {
      // Runs in flight use the previous elements.
      const values = new Uint32Array(data ?? words(known[name]!));
      for (const [index, element] of changes) values[index] = element;
      known[name] = tensorOf(bytesOf(values), { dtype, shape });
    }
    const { name, inputs } = plan.programs[0]!;
    const given = Object.keys(inputs).map((input) => [input, known[input]!]);
    if (session !== last) {
      await Promise.all(flight);
      flight = [];
      last = session;
    }
    const run = session.run(name, Object.fromEntries(given), message.options);
    run.catch(fail);
    flight.push(run);
    if (flight.length >= session.concurrentRuns) await flight.shift();
  }
}

/** The elements that differ. Undefined if the lengths differ, or if these elements would not be shorter than all. */
function changesOf(
  before: ArrayLike<number>,
  now: ArrayLike<number>,
): [index: number, element: number][] | undefined {
  if (before.length !== now.length) return undefined;
  const changes: [number, number][] = [];
  for (let i = 0; i < now.length; i++) {
    if (before[i] !== now[i]) changes.push([i, now[i]!]);
  }
  return 2 * changes.length < Math.max(1, now.length) ? changes : undefined;
}
