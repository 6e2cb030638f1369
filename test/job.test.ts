// Facts that ranks in separate processes compare before a run, tested with two ranks in one process.
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import {
  checkJob,
  gatherTrace,
  type JobFacts,
  RankCountError,
} from "../engine/job.ts";
import { VERSION } from "../engine/mod.ts";
import { fileBytes, unchanged } from "../engine/quantize/folder.ts";
import { compile } from "../compiler/mod.ts";
import { openSafetensors, Tracer } from "../runtime/mod.ts";
import type { MpiWorld } from "../runtime/mpi/mod.ts";
import type { Plan } from "../spec/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { smallLayer } from "./helpers/plans.ts";

const WEIGHTS = readFileSync(
  path.join(checkpointFolder("mixtral-6e"), "model.safetensors"),
);

/** A file in memory. */
function fileOf(name: string, bytes: Uint8Array) {
  const read = (offset: number, length: number) =>
    Promise.resolve(bytes.subarray(offset, offset + length));
  return { name, size: bytes.length, read };
}

/** A checkpoint in memory. */
function tensorsOf(bytes: Uint8Array): ReturnType<typeof openSafetensors> {
  return openSafetensors([fileOf("model", bytes)]);
}

/** Facts of a rank. */
interface Rank extends Partial<JobFacts> {
  readonly plan?: Plan;
  readonly version?: string;
}

const plan = await compile(smallLayer, { mesh: { ep: 2 } });
const tensors = await tensorsOf(WEIGHTS);

/** Lets rank 0 and another rank compare facts; returns the result of each. */
async function compare(other: Rank): Promise<string[]> {
  const reported: string[] = [];
  let resolveTexts!: (texts: string[]) => void;
  const all = new Promise<string[]>((resolve) => resolveTexts = resolve);
  const join = async (rank: number, facts: Rank): Promise<string> => {
    const world: Partial<MpiWorld> = {
      size: 2,
      rank,
      hosts: ["near", "far"],
      gatherTexts: async (text) => {
        const { version = VERSION } = facts;
        reported[rank] = text.replace(`"${VERSION}"`, `"${version}"`);
        if (reported[0] && reported[1]) resolveTexts(reported);
        return await all;
      },
    };
    const checked = checkJob(world as MpiWorld, facts.plan ?? plan, {
      tensors,
      kind: "cpu",
      equal: { "set of inputs": "x" },
      ...facts,
    });
    return await checked.then(
      () => "the same",
      (error: Error) => error.message,
    );
  };
  return await Promise.all([join(0, {}), join(1, other)]);
}

/** Error of both ranks if the other rank differs. */
function different(fact: string): string[] {
  const text =
    `Cannot run the plan: rank 1 on far has another ${fact} than rank 0 on near. Give every rank the same command and the same files`;
  return [text, text];
}

t.test("equal ranks continue", async (t) => {
  t.strictSame(await compare({}), ["the same", "the same"]);
});

t.test("every rank names the differences", async (t) => {
  t.strictSame(
    await compare({ version: "0.0.1" }),
    different("version of the package"),
  );
  t.strictSame(await compare({ kind: "gpu" }), different("kind of device"));
  t.strictSame(
    await compare({ equal: { "set of inputs": "y" } }),
    different("set of inputs"),
  );
  t.strictSame(
    await compare({
      plan: await compile(smallLayer, { mesh: { ep: 2 }, chunks: 2 }),
    }),
    different("plan"),
  );
  t.strictSame(
    await compare({ kind: "gpu", version: "0.0.1" }),
    different("version of the package and another kind of device"),
  );
});

t.test("a difference in any tensor of a checkpoint is detected", async (t) => {
  let changed = 0;
  for (const { name, offset, bytes } of tensors.values()) {
    const other = Uint8Array.from(WEIGHTS);
    // A tensor after further training: all bytes differ.
    for (let i = 0; i < bytes; i++) other[offset + i]! ^= 1;
    const results = await compare({ tensors: await tensorsOf(other) });
    t.strictSame(results, different("checkpoint"), name);
    changed++;
  }
  t.ok(changed > 20);
  const [name] = [...tensors.keys()];
  const fewer = new Map(tensors);
  fewer.delete(name!);
  t.strictSame(await compare({ tensors: fewer }), different("checkpoint"));
});

/** How files are written: one piece at a time. */
const ONE = { atOnce: 1, onProgress: () => {} };

t.test("equal tensors may be in other files", async (t) => {
  const entries = [...tensors.values()].reverse();
  const half = entries.length >> 1;
  const files = await Promise.all(
    [entries.slice(0, half), entries.slice(half)].map(async (part, i) => {
      const pieces: Uint8Array[] = [];
      for await (const piece of fileBytes(part.map(unchanged), ONE)) {
        pieces.push(piece);
      }
      return fileOf(`model-${i}`, Buffer.concat(pieces));
    }),
  );
  const results = await compare({ tensors: await openSafetensors(files) });
  t.strictSame(results, ["the same", "the same"]);
});

t.test("a plan for another number of ranks is rejected", async (t) => {
  const three = await compile(smallLayer, { mesh: { ep: 3 } });
  const world: Partial<MpiWorld> = { size: 2 };
  await t.rejects(
    checkJob(world as MpiWorld, three, { tensors, kind: "cpu", equal: {} }),
    new RankCountError(
      "Cannot run a mesh of 3 ranks on 2 processes. Start as many as the mesh has ranks: 'switchyard launch -n 3 -- …'",
    ),
  );
});

t.test("a trace has the events of every rank on the clock of rank 0", async (t) => {
  // The ranks meet at 500 ms on the clock of rank 0, which is 30 ms on the other clock.
  const clocks = [[100, 400, 500], [10, 20, 30]];
  const parts: Uint8Array[] = [];
  let arrive!: (parts: Uint8Array[]) => void;
  const all = new Promise<Uint8Array[]>((resolve) => arrive = resolve);
  const join = (rank: number) => {
    const times = clocks[rank]!;
    let met = false;
    const tracer = new Tracer(() => {
      if (times.length === 1 && !met) {
        throw new Error("read before the ranks met");
      }
      return times.shift()!;
    });
    tracer.begin("main");
    tracer.end();
    const world: Partial<MpiWorld> = {
      size: 2,
      rank,
      hosts: ["near", "far"],
      barrier: () => {
        met = true;
        return Promise.resolve();
      },
      gatherTexts: (text) => Promise.resolve([text, text]),
      gather: async (part) => {
        parts[rank] = await part;
        if (parts[0] && parts[1]) arrive(parts);
        return rank === 0 ? await all : undefined;
      },
    };
    return gatherTrace(world as MpiWorld, tracer);
  };
  const [trace, nothing] = await Promise.all([join(0), join(1)]);
  t.equal(nothing, undefined);
  t.strictSame(
    trace!.traceEvents.filter(({ ph }) => ph === "X")
      .map(({ pid, name, ts, dur }) => ({ pid, name, ts, dur })),
    [
      { pid: 0, name: "main", ts: 100_000, dur: 300_000 },
      { pid: 1, name: "main", ts: 480_000, dur: 10_000 },
    ],
  );
  t.match(trace!.traceEvents.filter(({ pid }) => pid === 1)[0], {
    name: "process_name",
    args: { name: "rank 1 on far" },
  });
});
