/**
 * Ranks in several processes: rank 0 serves and schedules. It sends every run of the decoder to the other ranks, which
 * execute the same run.
 */

import { ARRAYS } from "../../runtime/host_tensor.ts";
import type { HostTensor, RunOptions } from "../../runtime/mod.ts";
import type { DecoderRun } from "../decoder.ts";
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

/** An input. Without data, it is equal to that of the previous run with this input. */
interface SentTensor {
  readonly name: string;
  readonly dtype: HostTensor["dtype"];
  readonly shape: readonly number[];
  readonly data?: readonly number[];
}

/** Milliseconds between messages of a server without requests; a rank that has ended is noticed by them. */
export const HEARTBEAT_MS = 10_000;

/** Messages of rank 0. */
export interface Leader {
  /** Sends a run of the decoder, or of one of its companions. Call it before the run. */
  run(
    run: DecoderRun,
    options?: { readonly companion?: number },
  ): Promise<void>;
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
  const sent = new Map<string, HostTensor["data"]>();
  return {
    run: async ({ inputs, options }, { companion } = {}) => {
      const tensors = Object.entries(inputs).map(
        ([name, { dtype, shape, data }]) => {
          const before = sent.get(name);
          if (before && equal(before, data)) return { name, dtype, shape };
          sent.set(name, data.slice());
          return { name, dtype, shape, data: [...data] };
        },
      );
      await send({ kind: "run", companion, inputs: tensors, options });
    },
    idle: () => send({ kind: "idle" }),
    end: () => send({ kind: "end" }),
  };
}

/** Executes the runs of rank 0 until it ends. */
export async function follow(
  opened: Channel & Pick<Opened, "plan" | "session" | "companions">,
): Promise<void> {
  const known: { [name: string]: HostTensor } = {};
  for (;;) {
    const [text] = await opened.gatherTexts("", "a step of the server");
    const message = JSON.parse(text!) as Message;
    if (message.kind === "end") return;
    if (message.kind === "idle") continue;
    const { companion } = message;
    const { plan, session } = companion === undefined
      ? opened
      : opened.companions[companion]!;
    for (const { name, dtype, shape, data } of message.inputs) {
      const values = data ?? known[name]!.data;
      known[name] = { dtype, shape, data: ARRAYS[dtype].from(values) };
    }
    const { name, inputs } = plan.programs[0]!;
    const given = Object.keys(inputs).map((input) => [input, known[input]!]);
    await session.run(name, Object.fromEntries(given), message.options);
  }
}

function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
