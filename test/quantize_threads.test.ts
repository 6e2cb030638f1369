/** Quantization with threads: equal bytes, order, errors and interrupts. */
// rotates with: engine/quantize/, cli/encode_threads.ts

import { readdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { startEncodeThreads } from "../cli/encode_threads.ts";
import { main } from "../cli/main.ts";
import { type EncodeTask, quantizeCheckpoint } from "../engine/mod.ts";
import { inOrder } from "../engine/in_order.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { temporaryFolder, withOutput } from "./helpers/cli.ts";

const demo = checkpointFolder("demo-lm");

/** Threads that are closed at teardown. */
function threads(t: Test, count: number) {
  const started = startEncodeThreads(count);
  t.teardown(() => started.close());
  return started;
}

t.test("actions run at the same time, with results in order", async (t) => {
  let [running, most, requested] = [0, 0, 0];
  const finish: (() => void)[] = [];
  const actions = async function* () {
    for (let i = 0; i < 7; i++) {
      requested++;
      yield async () => {
        most = Math.max(most, ++running);
        await new Promise<void>((resolve) => finish.push(resolve));
        running--;
        if (i === 5) throw new Error("the sixth");
        return i;
      };
    }
  };
  const found: number[] = [];
  const reading = t.rejects(
    (async () => {
      for await (const i of inOrder(actions(), 3)) found.push(i);
    })(),
    { message: "the sixth" },
  );
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  await turn();
  t.equal(requested, 3);
  // Later actions end before earlier ones.
  while (finish.length > 0) {
    finish.pop()!();
    await turn();
  }
  await reading;
  t.strictSame(found, [0, 1, 2, 3, 4]);
  t.equal(most, 3);
});

const FORMATS = [
  ["q8_0", "model.gguf"],
  ["q4_k", "model.gguf"],
  ["mxfp4", "folder"],
  ["fp8", "folder"],
] as const;

t.test("bytes do not depend on the number of threads", async (t) => {
  const folder = temporaryFolder(t);
  const importance = ({ name }: { readonly name: string }) =>
    Float32Array.from(
      { length: name.includes("down_proj") ? 192 : 128 },
      (_, i) => 1 + i % 5,
    );
  const encoders = [undefined, threads(t, 1), threads(t, 3)];
  for (const [to, name] of FORMATS) {
    const made: Buffer[] = [];
    for (const [i, encoder] of encoders.entries()) {
      const out = join(folder, `${to}-${i}-${name}`);
      await quantizeCheckpoint(demo, files, {
        to,
        out,
        importance,
        ...encoder ? { encoder } : {},
      });
      const file = name === "folder" ? join(out, "model.safetensors") : out;
      made.push(readFileSync(file));
    }
    t.ok(made[0]!.equals(made[1]!), `${to}: 1 thread`);
    t.ok(made[0]!.equals(made[2]!), `${to}: 3 threads`);
  }
});

/** Runs `quantize` with threads that receive other tasks. Returns the number of threads, the result and the files. */
async function quantize(
  t: Test,
  { words = [], change = (task) => task, progress }: {
    readonly words?: readonly string[];
    readonly change?: (task: EncodeTask) => EncodeTask;
    /** Called for each task, with the action of Ctrl-C. */
    readonly progress?: (interrupt: () => void) => void;
  },
) {
  const folder = temporaryFolder(t);
  const out = join(folder, "model.gguf");
  let [count, closed] = [0, false];
  let interrupt = () => {};
  const argv = ["quantize", demo, "--to", "q8_0", "--out", out, ...words];
  const result = await withOutput((io) => main(argv, io), {
    encodeThreads: (threads) => {
      count = threads;
      const started = startEncodeThreads(threads);
      return {
        ...started,
        encode: (task) => {
          progress?.(interrupt);
          return started.encode(change(task));
        },
        close: async () => {
          await started.close();
          closed = true;
        },
      };
    },
    onInterrupt: (action) => {
      interrupt = () => action(constants.signals.SIGINT);
      return () => {};
    },
  });
  t.equal(closed, count > 0, "threads are closed");
  return { ...result, count, left: readdirSync(folder) };
}

t.test("the command uses the threads of --threads", async (t) => {
  const runs = [[[], 2], [["--threads", "3"], 3], [["--threads", "1"], 0]];
  for (const [words, wanted] of runs as [string[], number][]) {
    const { code, err, count, left } = await quantize(t, { words });
    t.equal(code, 0, err);
    t.equal(count, wanted, words.join(" "));
    t.strictSame(left, ["model.gguf"]);
  }
});

t.test("a failure of a thread is one sentence, and leaves no file", async (t) => {
  let tasks = 0;
  const { code, err, left } = await quantize(t, {
    change: (task) => ++tasks < 9 ? task : { ...task, format: { file: "Q9" } },
  });
  t.equal(code, 3);
  t.match(
    err,
    /^Cannot quantize: a thread has ended \(Cannot quantize to type 'Q9'.*\)\. Use --threads 1\n$/,
  );
  t.strictSame(left, []);
});

t.test("an interrupt leaves no file", async (t) => {
  let tasks = 0;
  const { code, left } = await quantize(t, {
    progress: (interrupt) => ++tasks === 9 && interrupt(),
  });
  t.equal(code, 128 + constants.signals.SIGINT);
  t.strictSame(left, []);
});
