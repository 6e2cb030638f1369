// Waiting uses no CPU: the event loop is idle while a device computes, and an idle session does not poll.
// needs: cpu, gpu
// rotates with: runtime/
import { availableParallelism } from "node:os";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import t, { type Test } from "tap";
import { compile, dot, model, sum } from "../../compiler/mod.ts";
import { openSafetensors, writeSafetensors } from "../../runtime/mod.ts";
import { countTurns } from "../helpers/count_turns.ts";
import { f32, openSession, type Target, TARGETS } from "../helpers/sessions.ts";

/** Some GFLOP per core: at least a tenth of a second on any device of a small machine, with small tensors. */
const [TOKENS, EMBED, FFN] = [128 * availableParallelism(), 1024, 4096];
/** Shorter waits are not checked. */
const MIN_MS = 50;
/** Measures idle time in windows, because cleanup of earlier work may continue. A spinning thread is active in all. */
const [WINDOWS, WINDOW_MS, IDLE_MS] = [50, 100, 2];

const busy = model(
  { token: TOKENS, embed: EMBED, ffn: FFN },
  (m) => {
    const x = m.input("x", "token embed");
    const hidden = dot(x, m.param("w", "ffn embed"), "embed");
    return { y: sum(hidden, "ffn") };
  },
);

async function measure(t: Test, target: Target): Promise<void> {
  const bytes = writeSafetensors({
    w: f32([FFN, EMBED], new Float32Array(FFN * EMBED).fill(0.5)),
  });
  const tensors = await openSafetensors([{
    name: "weights",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  }]);
  const plan = await compile(busy);
  const session = await openSession(plan, { target, tensors });
  const x = f32([TOKENS, EMBED], new Float32Array(TOKENS * EMBED).fill(0.25));
  await session.run("main", { x });

  const turns = countTurns();
  await session.run("main", { x });
  const { milliseconds, unneeded } = turns();
  const skip = milliseconds < MIN_MS &&
    `the device is too fast: ${milliseconds} ms`;
  t.equal(unneeded, 0, "the loop sleeps while the device computes", { skip });

  let [min, windows] = [Infinity, 0];
  for (; min > IDLE_MS && windows < WINDOWS; windows++) {
    const before = process.cpuUsage();
    await setTimeout(WINDOW_MS);
    const { user, system } = process.cpuUsage(before);
    min = Math.min(min, (user + system) / 1000);
  }
  t.comment(`${min} of ${WINDOW_MS} ms in the last of ${windows} windows`);
  t.ok(min <= IDLE_MS, "an idle session uses no CPU");
  session.close();
}

for (const { target, skip } of TARGETS) {
  t.test(`waiting on ${target}`, { skip }, (t) => measure(t, target));
}
