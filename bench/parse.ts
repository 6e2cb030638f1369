/**
 * The share of parsing kernel text in compiling the bundled checkpoint for four ranks, from its files to the verified plan
 * (`switchyard plan`): of samples of a CPU profile, those whose stack has a function of the parser. Each run is a process
 * of its own, which compiles three times: in code that has not run before; again, with the kernels that were put together
 * lately; and another checkpoint, whose kernels are new, in code that has run.
 */

import { execFileSync } from "node:child_process";
import { type Profiler, Session } from "node:inspector/promises";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { loadTarget, planTarget } from "../engine/mod.ts";
import {
  checkpointFolder,
  files,
  meshOf,
} from "../test/helpers/checkpoints.ts";
import { machine, median } from "./measure.ts";
import { timingOf, writeDocument } from "./results.ts";

const RUNS = 7;

/** Files of the parser: from the cutting of templates into tokens to keys of equal text. */
const PARSER =
  /spec\/kernel\/(text|text_key|text_scope|scanner|parse|parse_expression|resolve|resolve_expression|resolve_name|resolve_target)\.[jt]s$/;

/** One compilation. */
interface Compilation {
  readonly ms: number;
  readonly share: number;
}

/** Samples below a function of the parser, of all in which the process was busy. */
function shareOf({ nodes, samples = [] }: Profiler.Profile): number {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const inside = new Set<number>();
  const idle = new Set<number>();
  const visit = (id: number, parsing: boolean): void => {
    const { callFrame: { url, functionName }, children } = byId.get(id)!;
    const here = parsing || PARSER.test(url);
    if (here) inside.add(id);
    if (functionName === "(idle)") idle.add(id);
    children?.forEach((child) => visit(child, here));
  };
  visit(nodes[0]!.id, false);
  const busy = samples.filter((id) => !idle.has(id));
  return busy.filter((id) => inside.has(id)).length / busy.length;
}

async function compileOnce(checkpoint: string): Promise<Compilation> {
  const session = new Session();
  session.connect();
  await session.post("Profiler.enable");
  await session.post("Profiler.setSamplingInterval", { interval: 100 });
  await session.post("Profiler.start");
  const start = performance.now();
  const target = await loadTarget(checkpointFolder(checkpoint), files);
  await planTarget(target, files, {
    mesh: meshOf("ep=4"),
    bounds: { maxTokens: 256, maxSequences: 4, maxContext: 256 },
  });
  const ms = performance.now() - start;
  const { profile } = await session.post("Profiler.stop");
  session.disconnect();
  return { ms, share: shareOf(profile) };
}

if (process.argv[2] === "--once") {
  // Loading the TypeScript compiler is no part of the figure.
  await import("@ts-morph/common");
  const compilations: Compilation[] = [];
  for (const checkpoint of ["demo-lm", "demo-lm", "deepseekv3-16e"]) {
    compilations.push(await compileOnce(checkpoint));
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
      const shares = runs.map((run) => run[i]!.share * 100);
      const percent = (value: number) => Number(value.toFixed(2));
      return {
        compilation,
        percent: {
          median: percent(median(shares)),
          least: percent(Math.min(...shares)),
          most: percent(Math.max(...shares)),
        },
        ms: timingOf(runs.map((run) => run[i]!.ms)),
      };
    },
  );
  console.log(machine());
  for (const { compilation, percent, ms } of rows) {
    console.log(
      `${compilation}: parsing ${percent.median} % (${percent.least} to ${percent.most}, ${RUNS} runs) of ${ms.median} ms`,
    );
  }
  if (process.argv.includes("--keep")) {
    const file = new URL("results/parse.json", import.meta.url);
    writeDocument(fileURLToPath(file), { machine: machine(), rows });
  }
}
