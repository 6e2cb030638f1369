// Inputs that rank 0 of a server sends to the other ranks.

import t from "tap";
import type { OpenedCompanion } from "../engine/companions.ts";
import { createLeader, follow } from "../engine/server/mod.ts";
import type { HostTensor } from "../runtime/mod.ts";
import { words } from "../runtime/host_tensor.ts";

/** Quiet NaNs of both signs, with payloads. */
const NANS = [0x7fc00001, 0xffc12345];

function f32(bits: readonly number[]): HostTensor {
  const data = new Float32Array(Uint32Array.from(bits).buffer);
  return { dtype: "f32", shape: [data.length], data };
}

t.test("inputs arrive with their bits, also as changes", async (t) => {
  const texts: string[] = [];
  const session = { concurrentRuns: 1, runsAhead: false };
  const leader = createLeader({
    session,
    gatherTexts: (text) => {
      texts.push(text);
      return Promise.resolve([text]);
    },
    broadcastText: () => Promise.reject(new Error("one run at a time")),
  });
  const sent: (readonly number[])[] = [
    [0, NANS[0]!, 2, 3, 4, 5, 6, 0x80000000],
    // Fewer than half of the elements differ: 0 and -0, and two NaNs.
    [0x80000000, NANS[0]!, 7, 3, 4, 5, 6, 0x80000000],
    [0x80000000, NANS[1]!, 7, 3, 4, 5, 6, 0],
  ];
  const led = leader.lead({ ...session, run: () => Promise.resolve({}) });
  // Callers may reuse the arrays of their inputs.
  const hidden = f32(sent[0]!);
  for (const bits of sent) {
    words(hidden).set(bits);
    await led.run("main", { hidden, ids: f32([1]) }, {});
  }
  await leader.end();
  t.notMatch(texts.slice(1).join(), /"data"/, "only changes are sent");
  const found: HostTensor[] = [];
  const follower = {
    ...session,
    run: (_: string, inputs: { readonly [name: string]: HostTensor }) => {
      found.push(inputs["hidden"]!);
      return Promise.resolve({});
    },
  };
  const plan = { programs: [{ name: "main", inputs: { hidden: 0, ids: 0 } }] };
  const opened = { plan, session: follower } as unknown as OpenedCompanion;
  await follow({
    ...opened,
    companions: [],
    gatherTexts: () => Promise.resolve([texts.shift()!]),
    broadcastText: () => Promise.reject(new Error("one run at a time")),
  });
  t.strictSame(found.map((tensor) => [...words(tensor)]), sent);
});
