// Waiting leaves the core to others: the event loop is idle while a device computes, and nothing polls when nothing is asked.
import { performance } from "node:perf_hooks";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import t, { type Test } from "tap";
import { compile, dot, model, sum } from "../../compiler/mod.ts";
import { openSafetensors, writeSafetensors } from "../../runtime/mod.ts";
import { f32, openSession, type Target, TARGETS } from "../helpers/sessions.ts";

/** Some 10 GFLOP: at least a tenth of a second on any device of a small machine, and small tensors. */
const [TOKENS, EMBED, FFN] = [1024, 1024, 4096];
/** A loop that spins is active all the time; one that sleeps between polls, a few hundredths of it. */
const MOST_ACTIVE = 0.5;
/** Shorter waits say nothing. */
const LEAST_MS = 50;

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

  const loop = performance.eventLoopUtilization();
  const start = performance.now();
  await session.run("main", { x });
  const took = performance.now() - start;
  const { utilization } = performance.eventLoopUtilization(loop);
  t.comment(
    `${took.toFixed(0)} ms, ${(100 * utilization).toFixed(1)} % active`,
  );
  const skip = took < LEAST_MS && `the device is too fast: ${took} ms`;
  t.ok(utilization < MOST_ACTIVE, "the loop sleeps while it computes", {
    skip,
  });

  const before = process.cpuUsage();
  await setTimeout(300);
  const { user, system } = process.cpuUsage(before);
  const used = (user + system) / 1000;
  t.comment(`idle: ${used.toFixed(0)} of 300 ms`);
  t.ok(used < 150, "an idle session takes no processor");
  session.close();
}

for (const { target, skip } of TARGETS) {
  t.test(`waiting on ${target}`, { skip }, (t) => measure(t, target));
}
