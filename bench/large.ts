/**
 * A checkpoint of 3 GB in bf16, with OLMoE's shape and fewer layers. It is created in `--folder` on first use.
 *
 * Three things are measured: the command `generate` until its first token, the memory of its processes, and its end.
 * Then decode steps in this process after a prompt of `--prompt N` tokens, for each storage type of the cache,
 * interleaved with a loop in C that reads the same number of bytes.
 *
 * `--config CONFIG.json --only decode` measures the decode step of the shape of a published configuration instead.
 * `--activations f32,q8` compares activation modes, with a cache in bf16, instead of storage types of the cache.
 *
 * `--only shapes` writes, loads and deletes checkpoints of published shapes (14 GB of disk), or that of `--config` with
 * `--layers N` in `--shards N` files.
 *
 * `--only streamed --expert-memory BYTES|auto` measures `--tokens N` decode steps of each of four routings with experts
 * on disk, and compares them with the planner.
 *
 * Flags: `--adapter native|cpu`, `--layers N`, `--runs N`, `--only load|decode|prefill|shapes|streamed`, `--out FILE`.
 * `--ranks N` uses processes of `launch` instead; `--tokens N` gives them a longer prompt (about sixty tokens use every
 * expert). `--only prefill` compares a prefill of `--tokens N` on the native device with llama.cpp; with `--cores` on
 * one thread each, by processor time. `--check` compares the logits of every device and mesh (or of those in `--only
 * WORD`) with llama.cpp.
 */

import {
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  writeSync,
} from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import { parseMemory } from "../cli/flags/values.ts";
import { loadTarget } from "../engine/mod.ts";
import { ACTIVATIONS } from "../spec/weights/activations.ts";
import { checkLarge } from "./large/check.ts";
import { LOOPS } from "./large/bandwidth.ts";
import { measureDecode } from "./large/decode.ts";
import { writeOlmoe } from "./large/olmoe.ts";
import {
  publishedBytes,
  type PublishedConfig,
  withLayers,
  writePublished,
} from "./large/published.ts";
import { measurePrefill } from "./large/prefill.ts";
import { measureShapes, SHAPES } from "./large/shapes.ts";
import { measureStreamed, type Streamed } from "./large/streamed.ts";
import { type Ran, runCommand } from "./large/process.ts";
import { coresMs, describe, machine, median } from "./measure.ts";
import { timingOf, writeDocument } from "./results.ts";

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "native" },
    folder: { type: "string", default: join(tmpdir(), "switchyard-large") },
    check: { type: "boolean", default: false },
    only: { type: "string" },
    out: { type: "string" },
    // The decode step of the shape of this config.json.
    config: { type: "string" },
    activations: { type: "string" },
    layers: { type: "string", default: "3" },
    prompt: { type: "string", default: "16" },
    shards: { type: "string", default: "1" },
    tokens: { type: "string", default: "5" },
    ranks: { type: "string", default: "1" },
    "expert-memory": { type: "string", default: "2.4GB" },
    runs: { type: "string", default: "5" },
    cores: { type: "boolean", default: false },
  },
});
const { only, out } = flags;
const adapter = flags.adapter === "cpu" ? "cpu" : "native";
const activations = flags.activations?.split(",").map((mode) => {
  const known = ACTIVATIONS.find((one) => one === mode);
  if (known) return known;
  throw new Error(
    `Cannot measure activations '${mode}': no such mode. Use ${
      ACTIVATIONS.join(" or ")
    }`,
  );
});
const [ranks, runs] = [Number(flags.ranks), Number(flags.runs)];
if (only === "prefill" && (flags.adapter !== "native" || ranks !== 1)) {
  throw new Error(
    "Cannot compare prefills with --adapter or --ranks: they are of the native device and one rank. Leave both out",
  );
}
const tokens = Array.from(
  { length: Number(flags.tokens) },
  (_, i) => i * 7919 % 50304,
);
const published = flags.config === undefined ? undefined : withLayers(
  JSON.parse(readFileSync(flags.config, "utf8")) as PublishedConfig,
  Number(flags.layers),
);
const shape = flags.config === undefined
  ? ""
  : `-${basename(flags.config, ".json")}`;
const folder = `${flags.folder}${shape}-${flags.layers}`;
if (only === "shapes") {
  const { config, layers, shards } = flags;
  const shapes = await measureShapes(`${flags.folder}-shape`, {
    shapes: config === undefined
      ? SHAPES
      : [{ config, layers: Number(layers), shards: Number(shards) }],
    runs,
  });
  console.log(JSON.stringify(shapes, null, 2));
  const document = { program: "large", machine: machine(), shapes };
  if (out !== undefined) writeDocument(out, document);
  process.exit();
}
if (!existsSync(join(folder, "config.json"))) {
  mkdirSync(folder, { recursive: true });
  const files = {
    write: (name: string, parts: Iterable<Uint8Array>) => {
      const descriptor = openSync(join(folder, name), "w");
      for (const part of parts) writeSync(descriptor, part);
    },
  };
  if (published) await writePublished(published, files);
  else writeOlmoe(Number(flags.layers), files);
}
if (flags.check) {
  const good = await checkLarge(folder, flags);
  // The threads of llama.cpp keep the process alive.
  process.exit(good ? 0 : 1);
}

const weights = join(folder, "model.safetensors");
const { size } = statSync(weights);
console.log(`${machine()}, ${adapter}, weights of ${gb(size)}`);
const found: { [what: string]: unknown } = {
  program: "large",
  machine: machine(),
  adapter,
  ranks,
  bytes: size,
  tokens: tokens.length,
};
if (only === undefined || only === "load") {
  const all: Ran[] = [];
  for (let run = 0; run < runs; run++) {
    const generate = ["generate", folder, "--adapter", adapter];
    generate.push("--tokens", tokens.join(","), "-n", "9", "--jsonl");
    all.push(
      await runCommand(
        ranks === 1
          ? generate
          : ["launch", "-n", `${ranks}`, "--", ...generate],
      ),
    );
  }
  const times = (of: (run: Ran) => number) => all.map(of);
  const cores = median(times(({ firstCores }) => firstCores));
  // The launcher of a job is not among the largest processes.
  const peaks = all.at(-1)!.peaks.slice(0, ranks);
  const peak = Math.max(...peaks);
  console.log(
    `first token after ${describe(times(({ firstMs }) => firstMs))}, of cores ${
      cores.toFixed(2)
    } s
ended ${describe(times(({ endMs }) => endMs))} after the last line, code ${
      all.map(({ code }) => code).join(", ")
    }
most memory of each process: ${peaks.map(gb).join(", ")}; ${
      (peak / size).toFixed(2)
    } of the weights`,
  );
  found["load"] = {
    firstToken: timingOf(times(({ firstMs }) => firstMs)),
    firstTokenCores: cores,
    end: timingOf(times(({ endMs }) => endMs)),
    codes: all.map(({ code }) => code),
    peaks,
  };
}
const target = await loadTarget(folder, nodeFiles());
if (target.kind !== "checkpoint") throw new Error("no checkpoint");
if (only === "prefill") {
  const measured = await measurePrefill(folder, target, {
    tokens: tokens.length,
    runs,
    threads: flags.cores ? 1 : availableParallelism(),
    now: flags.cores ? coresMs : () => performance.now(),
  });
  console.log(JSON.stringify(measured, null, 2));
  found["prefill"] = measured;
}
if (only === "streamed") {
  const expertMemory = parseMemory(flags["expert-memory"]);
  const routings: { [routing: string]: Streamed } = {};
  const streamed = measureStreamed(target, {
    expertMemory,
    tokens: tokens.length,
    file: { name: weights, descriptor: openSync(weights, "r"), bytes: size },
  });
  for await (const [name, measured] of streamed) {
    routings[name] = measured;
    const { predicted, ...one } = measured;
    const text = (
      { ms, bytes, hitRate }: Pick<Streamed, "ms" | "bytes" | "hitRate">,
    ) =>
      `${ms.toFixed(0)} ms, ${(bytes / 1e6).toFixed(0)} MB, hits ${
        (100 * hitRate).toFixed(0)
      } %`;
    console.log(
      `${name}: a token ${text(one)}; ${
        one.coresMs.toFixed(0)
      } ms of cores, reads ${one.readMs.toFixed(0)} ms at ${
        (one.bytes / (one.readMs || Infinity) / 1e6).toFixed(2)
      } GB/s, waits ${one.waitedMs.toFixed(0)} ms; ${
        predicted.map((one) => `predicted from ${one.from} ${text(one)}`).join(
          "; ",
        )
      }; disk ${
        one.disk.map((rate) => (rate / 1e9).toFixed(2)).join(" and ")
      } GB/s`,
    );
  }
  found["streamed"] = { expertMemory, routings };
}
if (only === undefined || only === "decode") {
  const prompt = Number(flags.prompt);
  const steps = await measureDecode(target, {
    adapter,
    prompt,
    runs,
    activations,
    ...published ? { step: (await publishedBytes(published)).used } : {},
  });
  const rate = ({ bytes, stepsMs }: typeof steps[string]) =>
    bytes / median(stepsMs) / 1e6;
  const coresRate = ({ bytes, stepsCoresMs }: typeof steps[string]) =>
    bytes / median(stepsCoresMs) / 1e6;
  found["decode"] = Object.fromEntries(
    Object.entries(steps).map(([what, one]) => {
      const figures = {
        prompt,
        bytes: one.bytes,
        gbPerSecond: rate(one),
        ofLoops: LOOPS.map((loop) => rate(one) / rate(steps[loop]!)),
        gbPerSecondOfCore: coresRate(one),
        ofLoopsByCore: LOOPS.map((loop) =>
          coresRate(one) / coresRate(steps[loop]!)
        ),
        prefillMs: one.prefillMs,
        hostShare: one.hostShare,
        step: timingOf(one.stepsMs),
      };
      console.log(
        `${what}: ${describe(one.stepsMs)}, ${
          figures.gbPerSecond.toFixed(1)
        } GB/s, ${
          figures.ofLoops.map((part) => part.toFixed(2)).join(" and ")
        } of the loops; of a core ${
          figures.gbPerSecondOfCore.toFixed(1)
        } GB/s, ${
          figures.ofLoopsByCore.map((part) => part.toFixed(2)).join(" and ")
        } of the loops${
          one.hostShare === undefined
            ? ""
            : `; prefill ${one.prefillMs.toFixed(0)} ms, the host's share ${
              (100 * one.hostShare).toFixed(1)
            } %`
        }`,
      );
      return [what, figures];
    }),
  );
}
if (out !== undefined) writeDocument(out, found);
// The threads of llama.cpp keep the process alive.
if (only === "prefill") process.exit();

function gb(bytes: number): string {
  return `${(bytes / 1e9).toFixed(2)} GB`;
}
