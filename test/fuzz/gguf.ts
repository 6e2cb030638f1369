/** Class `gguf`: a mutated GGUF file is rejected, or its configuration, tokenizer and tensors are within the file. */

import fc from "fast-check";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "../../bench/peers/gguf.ts";
import type { GgufValue } from "../../engine/gguf/write.ts";
import { BLOCK_TYPES, blocksOf } from "../../bench/peers/gguf_blocks.ts";
import { configurationOf } from "../../engine/checkpoint/configuration.ts";
import type { FileSystem } from "../../engine/files.ts";
import { madeFiles } from "../../engine/gguf/made_files.ts";
import { withTensors } from "../../engine/checkpoint/tensors.ts";
import { readTensor } from "../../runtime/mod.ts";
import type { FuzzClass } from "./fuzz.ts";
import { acceptedOrRefused, checkRange } from "./refusal.ts";

/** A change of the header. Numbers are taken modulo the number of choices. */
type Change =
  | { readonly at: number; readonly byte: number }
  /** Overwrites 4 or 8 bytes, which may be a count, a length, a type or an offset. */
  | { readonly at: number; readonly word: number; readonly wide: boolean }
  | { readonly at: number; readonly remove: number }
  /** Truncates the file to this length. */
  | { readonly length: number }
  | { readonly at: number; readonly insert: readonly number[] };

interface Case {
  /** Index of the file. */
  readonly file: number;
  readonly changes: readonly Change[];
}

/** Boundary values of counts and lengths. */
const WORDS = [
  ...[0n, 1n, 2n, 3n, 7n, 8n, 9n, 12n, 31n, 32n, 33n, 64n, 255n, 256n],
  ...[1000n, 65_536n, 999_999n, 1_000_000n, 9_999_999n, 10_000_000n],
  ...[2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n],
  ...[2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n],
];

const PATH = "model.gguf";
const [EMBED, EXPERTS, VOCABULARY] = [256, 2, 264];

/** Value heads of a delta net, two per key head, and their elements. */
const [VALUE_HEADS, VALUES] = [4, 256];

const DELTA_NET: { readonly [key: string]: GgufValue } = {
  "ssm.conv_kernel": { u32: 4 },
  "ssm.group_count": { u32: VALUE_HEADS / 2 },
  "ssm.inner_size": { u32: VALUES },
  "ssm.state_size": { u32: VALUES / VALUE_HEADS },
  "ssm.time_step_rank": { u32: VALUE_HEADS },
};

/** Files of small models of different architectures, with the lengths of their headers. */
function models(): { readonly bytes: Uint8Array; readonly head: number }[] {
  return ["olmoe", "qwen3moe", "llama", "qwen35moe", "lfm2moe"].map(
    (name, model) => {
      const size = (count: number): GgufValue => ({ u32: count });
      const keys: { readonly [key: string]: GgufValue } = {
        "general.architecture": { text: name },
        "general.alignment": size(32),
        ...Object.fromEntries(
          Object.entries({
            block_count: size(1),
            context_length: size(64),
            embedding_length: size(EMBED),
            feed_forward_length: size(EMBED),
            expert_feed_forward_length: size(EMBED),
            expert_count: size(EXPERTS),
            expert_used_count: size(1),
            "attention.head_count": size(2),
            "attention.head_count_kv": name === "lfm2moe"
              ? { i32s: [2] }
              : size(2),
            ...name === "qwen35moe" ? DELTA_NET : {},
            "attention.layer_norm_rms_epsilon": { f32: 1e-5 },
            "rope.freq_base": { f32: 10000 },
          }).map(([key, value]) => [`${name}.${key}`, value]),
        ),
        ...vocabularyKeys(VOCABULARY),
      };
      const tensors: { [name: string]: GgufTensor<GgufData> } = {};
      const put = (tensor: string, ...shape: number[]) => {
        const type = BLOCK_TYPES[
          (model + Object.keys(tensors).length) % BLOCK_TYPES.length
        ]!;
        const elements = shape.reduce((n, length) => n * length, 1);
        const blocks = blocksOf(type, elements / type.elements, model);
        tensors[tensor] = { shape, data: { type: type.number, blocks } };
      };
      put("token_embd.weight", 4, EMBED);
      put("blk.0.attn_q.weight", 4, EMBED);
      put("blk.0.ffn_gate_exps.weight", EXPERTS, 4, EMBED);
      if (name === "qwen35moe") {
        put("blk.0.attn_gate.weight", VALUES, EMBED);
        put("blk.0.ssm_out.weight", 4, VALUES);
        tensors["blk.0.ssm_a"] = {
          shape: [VALUE_HEADS],
          data: new Float32Array(VALUE_HEADS).fill(-1),
        };
      }
      tensors["output_norm.weight"] = {
        shape: [EMBED],
        data: new Float32Array(EMBED).fill(1),
      };
      const parts = [...writeGguf(keys, tensors)];
      // Each tensor has a part of data and one of padding; so does the header.
      const data = parts.slice(-2 * Object.keys(tensors).length);
      const bytes = Buffer.concat(parts);
      return { bytes, head: bytes.length - Buffer.concat(data).length };
    },
  );
}

function changed(bytes: Uint8Array, head: number, change: Change): Buffer {
  if ("length" in change) {
    return Buffer.from(bytes.subarray(0, change.length % bytes.length));
  }
  const at = change.at % head;
  const copy = Buffer.from(bytes);
  if ("byte" in change) copy[at] = change.byte;
  else if ("word" in change) {
    const word = WORDS[change.word % WORDS.length]!;
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(word);
    part.copy(copy, at, 0, change.wide ? 8 : 4);
  } else if ("remove" in change) {
    return Buffer.concat([
      copy.subarray(0, at),
      copy.subarray(at + change.remove),
    ]);
  } else {
    const inserted = Buffer.from(change.insert);
    return Buffer.concat([copy.subarray(0, at), inserted, copy.subarray(at)]);
  }
  return copy;
}

/** Returns a file system with a file in memory. Reads out of bounds are findings. */
function filesOf(bytes: Uint8Array): FileSystem {
  return {
    open: () =>
      Promise.resolve({
        size: bytes.length,
        read: (from: number, length: number) => {
          checkRange(bytes, from, length);
          return Promise.resolve(
            Uint8Array.from(bytes.subarray(from, from + length)),
          );
        },
        close: () => Promise.resolve(),
      }),
  } as Partial<FileSystem> as FileSystem;
}

const at = fc.oneof(fc.nat(100_000), fc.nat(64));

const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ length: fc.nat(100_000) }),
  fc.record({ at, byte: fc.nat(255) }),
  fc.record({ at, word: fc.nat(WORDS.length - 1), wide: fc.boolean() }),
  fc.record({ at, remove: fc.integer({ min: 1, max: 64 }) }),
  fc.record({
    at,
    insert: fc.array(fc.nat(255), { minLength: 1, maxLength: 64 }),
  }),
);

/** Mutants of GGUF files of models. */
export function ggufClass(): FuzzClass<Case> {
  const all = models();
  return {
    name: "gguf",
    count: 50_000,
    cases: fc.record({
      file: fc.nat(all.length - 1),
      changes: fc.oneof(
        { arbitrary: fc.tuple(change), weight: 3 },
        {
          arbitrary: fc.array(change, { minLength: 0, maxLength: 4 }),
          weight: 1,
        },
      ),
    }),
    judge: async ({ file, changes }) => {
      const { bytes, head } = all[file]!;
      let mutant: Uint8Array = bytes;
      for (const each of changes) mutant = changed(mutant, head, each);
      const files = filesOf(mutant);
      return await acceptedOrRefused("A file", async () => {
        const documents = await madeFiles(PATH, files);
        const config = JSON.parse(documents.get("config.json")!) as {
          readonly [field: string]: unknown;
        };
        configurationOf(config, PATH);
        await withTensors([PATH], files, async (tensors) => {
          for (const entry of tensors.values()) await readTensor(entry);
        });
      });
    },
    close: () => Promise.resolve(),
  };
}
