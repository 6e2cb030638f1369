/**
 * Runs an example on random data: `node examples/run.mjs layer|decoder|fairscale [switchyard run flags]`. It reads the model's
 * plan to learn which inputs and weights there are, writes them as safetensors, and calls `switchyard run`.
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const TOKENS = 24;
const SEQUENCES = 3;

const [name, ...flags] = process.argv.slice(2);
if (!["layer", "decoder", "fairscale"].includes(name)) {
  console.error(
    "Usage: node examples/run.mjs layer|decoder|fairscale [--mesh ep=4] …",
  );
  process.exit(2);
}
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const model = here(`${name}.ts`);

/** Runs `switchyard ARGS` and returns its standard output. */
function switchyard(argv) {
  const { status, stdout } = spawnSync(
    process.execPath,
    [here("../bin/switchyard.mjs"), ...argv],
    { stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1 << 30 },
  );
  if (status !== 0) process.exit(status ?? 1);
  return stdout.toString();
}

/** A small repeatable generator (mulberry32): numbers from -1 to 1. */
function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  };
}

/** Writes `tensors` ({ name: { dtype, shape, data } }) as a safetensors file: a JSON header and the bytes. */
function writeSafetensors(file, tensors) {
  const header = {};
  const parts = [];
  let offset = 0;
  for (const [key, { dtype, shape, data }] of Object.entries(tensors)) {
    const bytes = new Uint8Array(data.buffer);
    header[key] = {
      dtype,
      shape,
      data_offsets: [offset, offset + bytes.length],
    };
    parts.push(bytes);
    offset += bytes.length;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - text.length % 8) % 8);
  const length = new BigUint64Array([BigInt(text.length)]);
  writeFileSync(
    file,
    Buffer.concat([
      new Uint8Array(length.buffer),
      Buffer.from(text),
      ...parts,
    ]),
  );
}

const next = randomNumbers(1);
const size = (shape) => shape.reduce((product, n) => product * n, 1);

/** Random values, scaled so that sums over the last axis stay near 1. */
function randomTensor(shape) {
  const scale = Math.sqrt(3 / (shape.at(-1) ?? 1));
  const data = Float32Array.from({ length: size(shape) }, () => next() * scale);
  return { dtype: "F32", shape, data };
}

/** Token ids, and which sequence and position each token has: sequences of equal length, one after the other. */
function integers(input, shape) {
  const each = TOKENS / SEQUENCES;
  const value = {
    sequence: (i) => Math.floor(i / each),
    position: (i) => i % each,
  }[input] ?? ((i) => (i * 37) % 101);
  const data = Int32Array.from({ length: size(shape) }, (_, i) => value(i));
  return { dtype: "I32", shape, data };
}

const plan = JSON.parse(switchyard(["plan", model, "--json"]));
const inputs = {};
for (const [key, port] of Object.entries(plan.programs[0].inputs)) {
  const shape = port.axes.map((axis) =>
    plan.axes[axis].dynamic
      ? Math.min(TOKENS, plan.axes[axis].size)
      : plan.axes[axis].size
  );
  inputs[key] = port.dtype === "f32"
    ? randomTensor(shape)
    : integers(key, shape);
}
const weights = {};
for (const { source, shape, pick } of plan.weights) {
  const stacked = source.includes("{");
  const indices = stacked ? plan.axes[pick.axis].size : 1;
  for (let i = 0; i < indices; i++) {
    weights[source.replace(/\{.*?\}/, String(i))] = randomTensor(shape);
  }
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-"));
const file = (name) => join(folder, `${name}.safetensors`);
writeSafetensors(file("inputs"), inputs);
writeSafetensors(file("weights"), weights);
const mesh = flags.includes("--mesh") ? [] : ["--mesh", "ep=4"];
const argv = ["run", model, "--inputs", file("inputs")];
argv.push("--weights", file("weights"), "--outputs", file("outputs"));
argv.push(...mesh, ...flags);
console.log(`switchyard ${argv.join(" ")}`);
process.stdout.write(switchyard(argv));
