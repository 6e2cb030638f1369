/** The cost of type checking: instantiations and seconds of tsc for a written-out model of 60 layers. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { machine, median } from "./measure.ts";
import { unrolledSource } from "./models.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const LAYERS = 60;
const REPETITIONS = 3;

/** Returns the figures that tsc prints about one run over a file. */
function diagnostics(file: string): { [name: string]: number } {
  const output = execFileSync(process.execPath, [
    join(ROOT, "node_modules/typescript/bin/tsc"),
    ...["-p", file, "--extendedDiagnostics"],
  ], { encoding: "utf8" });
  return Object.fromEntries(
    [...output.matchAll(/^(.+?):\s+([\d.]+)/gm)]
      .map(([, name, value]) => [name!, Number(value)]),
  );
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-types-"));
writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
try {
  const measure = (layers: number) => {
    writeFileSync(join(folder, "model.ts"), unrolledSource(layers));
    const config = {
      extends: join(ROOT, "tsconfig.json"),
      compilerOptions: {
        rootDir: "/",
        types: ["node"],
        typeRoots: [join(ROOT, "node_modules/@types")],
      },
      include: [join(folder, "model.ts")],
      exclude: [],
    };
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
    return diagnostics(join(folder, "tsconfig.json"));
  };
  const base = measure(1);
  console.log(machine());
  const runs = Array.from({ length: REPETITIONS }, () => measure(LAYERS));
  const of = (name: string) => median(runs.map((run) => run[name] ?? NaN));
  const one = base["Instantiations"] ?? NaN;
  const all = of("Instantiations");
  console.log(
    `${LAYERS} layers: ${Math.round((all - one) * LAYERS / (LAYERS - 1))} ` +
      `instantiations, and ${one} for one layer with the whole library; ` +
      `check ${of("Check time")} s, total ${of("Total time")} s`,
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
