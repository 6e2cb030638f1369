/**
 * Ranks in several processes: rank 0 serves and schedules. It sends every run of the decoder to the other ranks, which
 * execute the same run.
 */

import type { HostTensor, RunOptions } from "../../runtime/mod.ts";
import type { DecoderRun } from "../decoder.ts";
import type { Opened } from "../open.ts";

/** A message of rank 0. */
type Message =
  | {
    readonly kind: "run";
    readonly inputs: readonly SentTensor[];
    readonly options: RunOptions;
  }
  | { readonly kind: "idle" }
  | { readonly kind: "end" };

/** An input. Without data, it is equal to that of the previous run. */
interface SentTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly data?: readonly number[];
}

/** Milliseconds between messages of a server without requests; a rank that has ended is noticed by them. */
export const HEARTBEAT_MS = 10_000;

/** Messages of rank 0. */
export interface Leader {
  /** Sends a run. Call it before the run. */
  run(run: DecoderRun): Promise<void>;
  /** Sends a sign of life. */
  idle(): Promise<void>;
  /** Ends the other ranks' part. */
  end(): Promise<void>;
}

type Channel = Pick<Opened, "gatherTexts">;

/** Creates the messages of rank 0 to the other ranks. */
export function createLeader(channel: Channel): Leader {
  const send = async (message: Message) => {
    await channel.gatherTexts(JSON.stringify(message), "a step of the server");
  };
  const sent = new Map<string, Int32Array>();
  return {
    run: async ({ inputs, options }) => {
      const tensors = Object.entries(inputs).map(([name, { shape, data }]) => {
        const before = sent.get(name);
        if (before && equal(before, data)) return { name, shape };
        sent.set(name, Int32Array.from(data));
        return { name, shape, data: [...data] };
      });
      await send({ kind: "run", inputs: tensors, options });
    },
    idle: () => send({ kind: "idle" }),
    end: () => send({ kind: "end" }),
  };
}

/** Executes the runs of rank 0 until it ends. */
export async function follow(
  { session, ...channel }: Channel & Pick<Opened, "session">,
  program: string,
): Promise<void> {
  const inputs: { [name: string]: HostTensor } = {};
  for (;;) {
    const [text] = await channel.gatherTexts("", "a step of the server");
    const message = JSON.parse(text!) as Message;
    if (message.kind === "end") return;
    if (message.kind === "idle") continue;
    for (const { name, shape, data } of message.inputs) {
      inputs[name] = {
        dtype: "i32",
        shape,
        data: data
          ? Int32Array.from(data)
          : inputs[name]!.data as Int32Array<ArrayBuffer>,
      };
    }
    await session.run(program, inputs, message.options);
  }
}

function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
