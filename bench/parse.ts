/**
 * The fraction of parsing kernel text in compiling the bundled checkpoint for four ranks, from its files to the
 * verified plan (`switchyard plan`). It is the time in the text-reading functions, divided by the busy time of the
 * event loop in the same run; the median over runs. No profiler is used: it slows code that runs for the first time,
 * which includes most of the parser.
 *
 * Each run is a separate process that compiles three times: with code that has not run before; again, with cached
 * kernels; and another checkpoint with new kernels, with code that has run.
 */

import { execFileSync } from "node:child_process";
import { register } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { machine, median } from "./measure.ts";
import { timingOf, writeDocument } from "./results.ts";

const RUNS = 15;

/** The entry points of spec/kernel for reading text: functions that split, compare and resolve it. */
const ENTRIES = {
  text: ["wgsl"],
  text_key: ["textKey"],
  resolve: ["expr", "resolveStatements"],
};

/** A module hook: exported functions of `ENTRIES` run in `globalThis.timed`. */
const HOOK = `
export async function load(url, context, next) {
  const loaded = await next(url, context);
  const file = /spec\\/kernel\\/(\\w+)\\.js$/.exec(url)?.[1];
  const names = ${JSON.stringify(ENTRIES)}[file] ?? [];
  if (names.length === 0) return loaded;
  const [before, exported = ""] = String(loaded.source).split(/^(?=export \\{$)/m);
  const renamed = names.reduce((text, name) => {
    const entry = new RegExp("^  " + name + "\\\\b", "m");
    if (!entry.test(text)) throw new Error("no export " + name + " in " + url);
    return text.replace(entry, "  timed_" + name + " as " + name);
  }, exported);
  const timed = names.map((name) =>
    "function timed_" + name + "(...args) { return globalThis.timed(" + name + ", args); }");
  return { ...loaded, source: [before, ...timed, renamed].join("\\n") };
}`;

/** The compiler, loaded with the hook. */
type Compiler =
  & typeof import("../engine/mod.ts")
  & typeof import("../test/helpers/checkpoints.ts");

/** One compilation. */
interface Compilation {
  /** Milliseconds. */
  readonly busy: number;
  readonly parsing: number;
}

/** Milliseconds in `ENTRIES`, and whether one of them is running. */
const parsing = { ms: 0, inside: false };

function timed(entry: (...args: unknown[]) => unknown, args: unknown[]) {
  if (parsing.inside) return entry(...args);
  parsing.inside = true;
  const start = performance.now();
  try {
    return entry(...args);
  } finally {
    parsing.ms += performance.now() - start;
    parsing.inside = false;
  }
}

async function compileOnce(
  checkpoint: string,
  { loadTarget, planTarget, checkpointFolder, files, meshOf }: Compiler,
): Promise<Compilation> {
  const before = performance.eventLoopUtilization();
  const start = parsing.ms;
  const target = await loadTarget(checkpointFolder(checkpoint), files);
  await planTarget(target, files, {
    mesh: meshOf("ep=4"),
    bounds: { maxTokens: 256, maxSequences: 4, maxContext: 256 },
  });
  // Busy time is counted per turn of the event loop.
  await new Promise((resolve) => setImmediate(resolve));
  const { active } = performance.eventLoopUtilization(before);
  return { busy: active, parsing: parsing.ms - start };
}

if (process.argv[2] === "--once") {
  Object.assign(globalThis, { timed });
  register(`data:text/javascript,${encodeURIComponent(HOOK)}`);
  // The event loop counts from its first turn on.
  await new Promise((resolve) => setImmediate(resolve));
  // Loads modules and the TypeScript compiler, which are not part of the figure.
  await import("@ts-morph/common");
  const compiler: Compiler = {
    ...await import("../engine/mod.ts"),
    ...await import("../test/helpers/checkpoints.ts"),
  };
  const compilations: Compilation[] = [];
  for (const checkpoint of ["demo-lm", "demo-lm", "deepseekv3-16e"]) {
    compilations.push(await compileOnce(checkpoint, compiler));
  }
  console.log(JSON.stringify(compilations));
} else {
  const runs = Array.from({ length: RUNS }, () =>
    JSON.parse(
      execFileSync(
        process.execPath,
        [process.argv[1]!, "--once"],
        { encoding: "utf8" },
      ),
    ) as Compilation[]);
  const rows = ["first", "again", "another checkpoint"].map(
    (compilation, i) => {
      const all = runs.map((run) => run[i]!);
      const [parsing, busy] = [
        timingOf(all.map((run) => run.parsing)),
        timingOf(all.map((run) => run.busy)),
      ];
      const percent = Number(
        median(all.map((run) => 100 * run.parsing / run.busy)).toFixed(1),
      );
      return { compilation, percent, parsing, busy };
    },
  );
  console.log(machine());
  for (const { compilation, percent, parsing, busy } of rows) {
    console.log(
      `${compilation}: parsing ${percent} %; ${parsing.median} of ${busy.median} ms, at best ${parsing.min} of ${busy.min} (medians of ${RUNS} runs)`,
    );
  }
  if (process.argv.includes("--keep")) {
    const file = new URL("results/parse.json", import.meta.url);
    writeDocument(fileURLToPath(file), { machine: machine(), rows });
  }
}
