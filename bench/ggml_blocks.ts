/**
 * Decoding of GGUF blocks against ggml's `dequantize_row_*`: the bits of every element are compared, for random and
 * extreme bytes. ggml is the library in the npm package of llama.cpp, which `bench/peers` installs. Linux on x64 only.
 */

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import koffi from "koffi";
import {
  BLOCK_TYPES,
  blocksOf,
  digestOf,
  valuesOf,
} from "./peers/gguf_blocks.ts";

const LIBRARY =
  "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so";

const { values: flags } = parseArgs({
  options: {
    blocks: { type: "string", default: "1000000" },
    seed: { type: "string", default: "1" },
    // Write the reference data of `test/gguf.test.ts`.
    record: { type: "string" },
    peers: {
      type: "string",
      default: fileURLToPath(new URL("peers", import.meta.url)),
    },
  },
});

/** Number of blocks in one comparison. */
const PIECE = 4096;

/** Yields bytes from a seed (xorshift). */
function* bytesFrom(seed: number): Generator<number, never> {
  let state = seed | 1;
  for (;;) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    yield state & 255;
  }
}

const library = join(flags.peers, LIBRARY);
if (!existsSync(library)) {
  console.error(
    `Cannot compare with ggml: '${library}' is missing. Run 'npm run bench -- peers' once`,
  );
  process.exit(3);
}
const ggml = koffi.load(library);
let differ = 0;
const recorded: { [type: string]: string } = {};
for (const type of BLOCK_TYPES) {
  const dequantize = ggml.func(
    `void dequantize_row_${
      type.name.toLowerCase().replace("_k", "_K")
    }(const void *blocks, _Out_ float *values, int64_t count)`,
  );
  const test = blocksOf(type, 64, type.number);
  const expected = new Float32Array(64 * type.elements);
  dequantize(test, expected, expected.length);
  recorded[type.name] = digestOf(expected);
  const bytes = bytesFrom(Number(flags.seed));
  const total = Number(flags.blocks);
  let wrong = 0;
  for (let done = 0; done < total; done += PIECE) {
    const raw = Uint8Array.from(
      { length: PIECE * type.bytes },
      () => bytes.next().value,
    );
    // Some blocks consist of one repeated byte: zeros, ones, and values between them.
    if (done % (8 * PIECE) === 0) raw.fill(bytes.next().value);
    const theirs = new Float32Array(PIECE * type.elements);
    dequantize(raw, theirs, theirs.length);
    const ours = valuesOf(type, raw);
    // Files with non-finite scales are rejected. ggml's table of MXFP4 has no negative zero.
    ours.forEach((value, i) => {
      const same = value === theirs[i] || !Number.isFinite(value);
      if (!same) wrong++;
    });
  }
  differ += wrong;
  console.log(`${type.name}: ${total} blocks, ${wrong} elements differ`);
}
if (flags.record !== undefined) {
  writeFileSync(flags.record, JSON.stringify(recorded, undefined, 2) + "\n");
}
process.exitCode = differ > 0 ? 1 : 0;
