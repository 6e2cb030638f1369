// Disk faults at each call of a load, a run or a save: the message names the file, old files stay complete, and no
// temporary files remain. Class `disk` of `npm run fuzz` tests whole commands.
// needs: cpu
// rotates with: engine/train/saved.ts, runtime/weights/file_source.ts
import {
  cpSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import t, { type Test } from "tap";
import { nodeFiles } from "../cli/files.ts";
import { recordOf } from "../cli/step_record.ts";
import { openMetrics } from "../cli/training_metrics.ts";
import {
  add,
  compileTraining,
  dot,
  mean,
  model,
  sgd,
  upTo,
} from "../compiler/mod.ts";
import { type FileSystem, loadTarget, readTensors } from "../engine/mod.ts";
import { openTokenizer } from "../engine/checkpoint/checkpoint.ts";
import {
  lockFolder,
  prepareFolder,
  saveTraining,
} from "../engine/train/saved.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, tensorsInMemory } from "../runtime/mod.ts";
import { assertLegal } from "../spec/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  floats,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import {
  type Fault,
  FAULTS,
  faultyDisk,
  kindOf,
  wrongMessage,
} from "./helpers/faulty_disk.ts";
import { contents, readOnDisk } from "./helpers/tiny_training.ts";

/** An action on a disk that fails at each of its calls. */
interface Trial {
  /** Faults at the first call of a kind. Default: all. */
  readonly faults?: number;
  /** Creates the initial files. */
  readonly before?: () => void;
  /** Rejects, or resolves to a message, if it fails. */
  readonly action: (files: FileSystem) => Promise<string | undefined>;
  /** Checks the files afterwards; throws if they are wrong. */
  readonly after: (failed: boolean) => unknown;
}

/** Tries all faults at the first call of a kind; its other calls try one fault each, in rotation. */
async function tryAll(
  t: Test,
  { before, action, after, faults = FAULTS.length }: Trial,
): Promise<void> {
  const attempt = async (at: number, fault: Fault) => {
    before?.();
    const { disk, calls, failed } = faultyDisk(at, fault);
    const message = await action(nodeFiles(disk)).then(
      (text) => text,
      (error: Error) => error.message,
    );
    const wrong = message === undefined
      ? undefined
      : wrongMessage(message, failed, fault);
    try {
      await after(message !== undefined);
    } catch (error) {
      return { calls, message, wrong: `${message}, and ${String(error)}` };
    }
    return { calls, message, wrong };
  };
  const { calls, ...good } = await attempt(-1, "short");
  t.strictSame(good, { message: undefined, wrong: undefined });
  const kinds = calls.map(kindOf);
  let failed = 0;
  for (const [at, kind] of kinds.entries()) {
    const count = kinds.indexOf(kind) === at ? faults : 1;
    for (const [i] of FAULTS.slice(0, count).entries()) {
      const fault = FAULTS[(at + i) % FAULTS.length]!;
      const { message, wrong } = await attempt(at, fault);
      if (message !== undefined) failed++;
      if (wrong !== undefined) {
        t.fail(`${fault} at call ${at}, '${kind}': ${wrong}`);
      }
    }
  }
  t.comment(`${calls.length} calls, ${failed} failures`);
  t.ok(failed > calls.length / 2, "most faults make the action fail");
}

t.test("a load", async (t) => {
  const demo = checkpointFolder("demo-lm");
  const weights = path.join(
    checkpointFolder("mixtral-6e"),
    "model.safetensors",
  );
  const loads: {
    readonly [title: string]: (files: FileSystem) => Promise<unknown>;
  } = {
    "a checkpoint": (files) => loadTarget(demo, files),
    "a configuration": (files) =>
      loadTarget(demo, files, { withoutWeights: true }),
    weights: (files) => readTensors(weights, files),
    "a tokenizer": async (files) => (await openTokenizer(demo, files))!.close(),
  };
  for (const [title, load] of Object.entries(loads)) {
    t.comment(title);
    await tryAll(t, {
      action: async (files) => {
        await load(files);
        return undefined;
      },
      after: () => {},
    });
  }
});

t.test("a run and its outputs", async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  writeFileSync(
    at("m.ts"),
    `import { dot, model } from "switchyard-moe";
export const m = model({ a: 4, b: 3 }, (m) =>
  ({ y: dot(m.input("x", "a b"), m.param("w", "a b"), "b") }));
`,
  );
  await writeRaw(at("in"), { x: floats([4, 3], 1) });
  await writeRaw(at("weights"), { w: floats([4, 3], 1) });
  const planned = await switchyard([
    "plan",
    at("m.ts"),
    "--out",
    at("plan.json"),
  ]);
  t.equal(planned.code, 0, planned.err);
  const OLD = "old contents";
  const expected = new Map<string, unknown>();
  await tryAll(t, {
    faults: 1,
    before: () => {
      for (const name of ["out", "trace"]) writeFileSync(at(name), OLD);
    },
    action: async (files) => {
      const { code, err } = await switchyard([
        ...["run", at("plan.json"), "--weights", at("weights")],
        ...[
          "--inputs",
          at("in"),
          "--outputs",
          at("out"),
          "--trace",
          at("trace"),
        ],
        ...["--adapter", "cpu", "--allow-kernels"],
      ], files);
      if (code === 0) return undefined;
      // A run ignores tunings that it cannot read.
      const message = err.replace(/^.* This run does without tunings\n/, "");
      return code === 3 ? message : `exit code ${code}: ${message}`;
    },
    after: (failed) => {
      const names = readdirSync(folder).sort().join();
      if (names !== "in,m.ts,out,plan.json,trace,weights") {
        throw new Error(names);
      }
      for (const name of ["out", "trace"]) {
        const text = readFileSync(at(name), "latin1");
        if (text === OLD && failed) continue;
        // Times in a trace vary.
        const written = name === "out" ? text : JSON.parse(text).length;
        expected.set(name, expected.get(name) ?? written);
        if (written !== expected.get(name)) throw new Error(`another ${name}`);
      }
    },
  });
});

/** Metrics of a step. */
const METRICS = {
  loss: 1,
  crossEntropy: 1,
  auxiliary: undefined,
  gradientNorm: 1,
  rate: 1,
  tokens: 1,
  tokensPerSecond: 1,
  experts: [[0.5, 0.5]],
  sentBytes: 0,
  memoryBytes: 0,
  validation: undefined,
  parts: {},
  saved: true,
};

t.test("a save", async (t) => {
  const folder = temporaryFolder(t);
  const [out, first] = [path.join(folder, "out"), path.join(folder, "first")];
  const from = { config: {}, tokenizer: folder, generation: folder };
  for (const name of ["config.json", "tokenizer.json"]) {
    writeFileSync(path.join(folder, name), "{}");
  }
  const optimizer = sgd({ momentum: 0.9 });
  const plan = await compileTraining(
    model({ a: upTo(4), b: 3 }, (m) => {
      const y = dot(m.input("x", "a b"), m.param("w", "b"), "b");
      return { loss: mean(add(y, m.param("c", "")), "a") };
    }),
    { loss: "loss", optimizer },
  );
  const device = await createCpuDevice();
  const weight = (shape: number[]) => ({
    dtype: "f32" as const,
    shape,
    data: new Float32Array(shape[0] ?? 1).fill(0.5),
  });
  const session = await createSession(plan, {
    devices: [device],
    verify: assertLegal,
    tensors: tensorsInMemory({ w: weight([3]), c: weight([]) }, "weights"),
  });
  t.teardown(() => session.close());
  const settings = { optimizer, schedule: { rate: 0.1 } };
  const save = async (out: string, files: FileSystem, step: number) => {
    const unlock = await lockFolder(out, files);
    try {
      await prepareFolder(out, files, from, plan);
      await saveTraining(out, files, {
        plan,
        session,
        ranks: [0],
        rank: 0,
        optimizer,
        gatherTexts: (text) => Promise.resolve([text]),
      }, { step, position: step, text: "", settings });
    } finally {
      await unlock();
    }
    const metrics = openMetrics({ files }, { out, resume: true });
    for (const more of [0, 1]) {
      await metrics.add(recordOf({ ...METRICS, step: step + more }));
    }
    await metrics.finish();
  };
  await save(first, nodeFiles(), 1);
  let good: { [name: string]: string } | undefined;
  await tryAll(t, {
    faults: 3,
    before: () => {
      rmSync(out, { recursive: true, force: true });
      cpSync(first, out, { recursive: true });
    },
    action: async (files) => {
      await save(out, files, 2);
      return undefined;
    },
    after: async (failed) => {
      const found = await contents(out);
      const names = Object.keys(found);
      const left = names.find((name) => /^\.|\.lock/.test(name));
      if (left !== undefined) throw new Error(`'${left}' is left`);
      good ??= found;
      // All tensors of the current checkpoint match their hashes.
      const { step } = await readOnDisk(out);
      if (failed ? step !== 1 && step !== 2 : !isDeepStrictEqual(found, good)) {
        throw new Error(`step ${step}`);
      }
    },
  });
});
