/** Loading of checkpoints of published shapes: time until the first token, memory, and bytes read. */

import { mkdirSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { median } from "../measure.ts";
import { runCommand } from "./process.ts";
import { publishedBytes, withLayers, writePublished } from "./published.ts";

/** Tokens of the longer prompt, and new tokens. */
const PROMPT = 93, NEW = 16;

/** A config.json with this many layers in this many files. */
export interface Shape {
  readonly config: string;
  readonly layers: number;
  readonly shards: number;
}

/** Published shapes. */
export const SHAPES: readonly Shape[] = [
  { config: "gpt-oss-20b", layers: 24, shards: 1 },
  { config: "qwen3-30b-a3b", layers: 6, shards: 3 },
  { config: "qwen3-30b-a3b", layers: 6, shards: 16 },
  { config: "deepseek-v2-lite", layers: 6, shards: 1 },
].map(({ config, layers, shards }) => ({
  config: `test/references/configs/${config}.json`,
  layers,
  shards,
}));

/** Figures of a shape. */
export interface LoadedShape extends Shape {
  readonly bytes: number;
  /** Milliseconds, and core seconds, of the command until its first token. */
  readonly firstMs: number;
  readonly firstCores: number;
  /** Pages of files in memory, as a share of the bytes that a token uses and 15 % of all. */
  readonly filesOfAllowed: number;
  readonly fileBytes: number;
  readonly anonymousBytes: number;
  /** Anonymous memory with a prompt of 93 and 16 new tokens. */
  readonly moreAnonymousBytes: number;
  /** Share of the weights that is read from disk while loading. */
  readonly loadingReads: number;
}

/** Writes each shape to a folder, runs it with warm files, and deletes it. */
export async function measureShapes(
  folder: string,
  { shapes, runs }: {
    readonly shapes: readonly Shape[];
    readonly runs: number;
  },
): Promise<LoadedShape[]> {
  const found: LoadedShape[] = [];
  for (const shape of shapes) {
    rmSync(folder, { recursive: true, force: true });
    found.push(await measureShape(folder, shape, runs));
    rmSync(folder, { recursive: true });
  }
  return found;
}

async function measureShape(
  folder: string,
  shape: Shape,
  runs: number,
): Promise<LoadedShape> {
  const config = withLayers(
    JSON.parse(readFileSync(shape.config, "utf8")),
    shape.layers,
  );
  mkdirSync(folder, { recursive: true });
  await writePublished(config, {
    shards: shape.shards,
    write: (name, parts) => {
      const descriptor = openSync(join(folder, name), "w");
      for (const part of parts) writeSync(descriptor, part);
    },
  });
  const argv = ["generate", folder, "--adapter", "native", "--stats", "--json"];
  // The first run compiles kernels, and reads the pages that the others use.
  const one = [...argv, ...tokens(1, 1)];
  await runCommand(one);
  const all = [];
  for (let run = 0; run < runs; run++) all.push(await runCommand(one));
  const more = await runCommand([...argv, ...tokens(PROMPT, NEW)]);
  const { peaks, anonymous, out } = all.at(-1)!;
  const { stats } = JSON.parse(out) as { stats: { loadDiskBytes: number } };
  const bytes = await publishedBytes(config);
  const fileBytes = peaks[0]! - anonymous;
  return {
    ...shape,
    bytes: bytes.all,
    firstMs: median(all.map(({ firstMs }) => firstMs)),
    firstCores: median(all.map(({ firstCores }) => firstCores)),
    filesOfAllowed: fileBytes / (bytes.used + 0.15 * bytes.all),
    fileBytes,
    anonymousBytes: anonymous,
    moreAnonymousBytes: more.anonymous,
    loadingReads: stats.loadDiskBytes / bytes.all,
  };
}

/** Options for a prompt of some tokens and for new ones. */
function tokens(prompt: number, made: number): string[] {
  const ids = Array.from({ length: prompt }, (_, i) => 1 + i * 7919 % 50_000);
  return ["--tokens", ids.join(","), "-n", `${made}`];
}
