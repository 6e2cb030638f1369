/**
 * The share of parsing kernel text in compiling the bundled checkpoint for four ranks, from its files to the verified plan
 * (`switchyard plan`): the time in the functions through which all text is read, of the time in which the event loop was
 * busy in the same run; the median over runs. No profiler runs: one makes code slower that runs for the first time, as most
 * of the parser does. Each run is a process of its own, which compiles three times: in code that has not run before; again,
 * with the kernels that were put together lately; and another checkpoint, whose kernels are new, in code that has run.
 */

import { execFileSync } from "node:child_process";
import { register } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { machine, median } from "./measure.ts";
import { timingOf, writeDocument } from "./results.ts";

const RUNS = 15;

/** Files of spec/kernel, and what others call of them to read text: cut, compare and resolve it. */
const ENTRIES = {
  text: ["wgsl"],
  text_key: ["textKey"],
  resolve: ["expr", "resolveStatements"],
};

/** A hook for loading modules: what they export of `ENTRIES` runs in `globalThis.timed`. */
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

/** What compiles, loaded behind the hook. */
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
  // Busy time is counted from turn to turn of the event loop.
  await new Promise((resolve) => setImmediate(resolve));
  const { active } = performance.eventLoopUtilization(before);
  return { busy: active, parsing: parsing.ms - start };
}

if (process.argv[2] === "--once") {
  Object.assign(globalThis, { timed });
  register(`data:text/javascript,${encodeURIComponent(HOOK)}`);
  // The event loop counts from its first turn on.
  await new Promise((resolve) => setImmediate(resolve));
  // Loading modules is no part of the figure, and neither is the TypeScript compiler.
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
      `${compilation}: parsing ${percent} %; ${parsing.median} of ${busy.median} ms, at best ${parsing.least} of ${busy.least} (medians of ${RUNS} runs)`,
    );
  }
  if (process.argv.includes("--keep")) {
    const file = new URL("results/parse.json", import.meta.url);
    writeDocument(fileURLToPath(file), { machine: machine(), rows });
  }
}
