// Parts of the engine without a device: sampling, tokenizer, packing, bounds, stop tokens.
import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import t from "tap";
import fc from "fast-check";
import { chooseBounds, choosePages } from "../engine/bounds.ts";
import { openTokenizer } from "../engine/checkpoint/checkpoint.ts";
import { checkSharing, chooseAdapter } from "../engine/devices.ts";
import type { Decoder } from "../engine/generation/decoder.ts";
import { generate } from "../engine/generation/generate.ts";
import {
  checkTokens,
  packBatch,
  packPrompts,
  unpackRows,
} from "../engine/generation/packing.ts";
import {
  candidatesOf,
  greedy,
  logprobsOf,
  randomNumbers,
  sample,
} from "../engine/generation/sampling.ts";
import { configField } from "../engine/checkpoint/config_field.ts";
import { stopTokens } from "../engine/checkpoint/stop_tokens.ts";
import { withKnownTexts } from "../engine/text/known_texts.ts";
import {
  completeText,
  type HeldText,
  TextStream,
} from "../engine/text/tokenizer.ts";
import type { GpuAdapter } from "../runtime/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { repeatWith, SEED } from "./helpers/seed.ts";

t.test("choosePages() covers the longest consecutive sequences", (t) => {
  const few = fc.integer({ min: 1, max: 9 });
  const lengths = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1 });
  fc.assert(
    fc.property(lengths, few, few, (lengths, maxSequences, groupSize) => {
      const maxContext = 256;
      const { count, size } = choosePages(lengths, {
        maxTokens: 8,
        maxSequences,
        maxContext,
      }, groupSize);
      const pages = lengths.map((n) =>
        Math.ceil(Math.min(n, maxContext) / size)
      );
      const each = Math.ceil(maxSequences / groupSize);
      const needs = pages.map((_, i) =>
        pages.slice(i, i + maxSequences).sort((a, b) => b - a).slice(0, each)
          .reduce((a, b) => a + b)
      );
      return count === Math.max(...needs, Math.ceil(maxContext / size));
    }),
  );
  t.end();
});

t.test("greedy() breaks ties by the lowest id", (t) => {
  t.equal(greedy(new Float32Array([1, 3, 2, 3])), 1);
  t.equal(greedy(new Float32Array([-5])), 0);
  t.end();
});

t.test("greedy() rejects NaN logits", (t) => {
  t.throws(() => greedy(new Float32Array([1, NaN])), {
    message:
      "Cannot choose a token: logit 1 is NaN. Check the weights for values that overflow",
  });
  t.end();
});

t.test("randomNumbers() repeats by seed and stream, and is uniform", (t) => {
  const draw = (seed: number, stream: number): number[] => {
    const next = randomNumbers(seed, stream);
    return Array.from({ length: 2000 }, next);
  };
  t.strictSame(draw(7, 0), draw(7, 0));
  t.notOk(isDeepStrictEqual(draw(7, 0), draw(8, 0)));
  t.notOk(isDeepStrictEqual(draw(7, 0), draw(7, 1)));
  const numbers = draw(7, 0);
  t.ok(numbers.every((x) => x >= 0 && x < 1));
  const mean = numbers.reduce((a, b) => a + b) / numbers.length;
  t.ok(Math.abs(mean - 0.5) < 0.03, `mean ${mean}`);
  const tenths = Array.from(
    { length: 10 },
    (_, i) => numbers.filter((x) => Math.floor(10 * x) === i).length,
  );
  t.ok(tenths.every((n) => Math.abs(n - 200) < 50), `tenths ${tenths}`);
  t.end();
});

t.test("sample() draws by probability, top-k and top-p", (t) => {
  const logits = new Float32Array([0, Math.log(2), Math.log(5), Math.log(2)]);
  const at = (random: number, options: object = {}): number =>
    sample({ logits }, { temperature: 1, ...options, random: () => random });
  t.strictSame(
    [0, 0.49, 0.51, 0.69, 0.71, 0.89, 0.91].map((r) => at(r)),
    [2, 2, 1, 1, 3, 3, 0],
    "in order of probability, ties by id",
  );
  t.equal(at(0.999, { topK: 2 }), 1, "ties beyond top-k are excluded");
  t.equal(at(0.999, { topP: 0.5 }), 2);
  t.equal(at(0.999, { topP: 0.6 }), 1);
  t.equal(
    at(0.999, { topP: 1e-9 }),
    2,
    "the most probable token always remains",
  );
  t.equal(at(0.999, { temperature: 1e-3 }), 2);
  t.equal(
    sample({ logits }, { random: () => t.fail("drew") as never }),
    2,
    "greedy",
  );
  t.end();
});

t.test("sample() draws the same from candidates as from all logits", (t) => {
  const random = randomNumbers(5, 0);
  const logits = Float32Array.from(
    { length: 300 },
    // Multiples of a quarter on both sides of 0: ties, and both 0 and -0.
    () => Math.round(20 * random() - 10) / 4,
  );
  t.ok(logits.some((x) => Object.is(x, -0)), "-0 occurs");
  t.ok(logits.some((x) => Object.is(x, 0)), "0 occurs");
  const ids = Int32Array.from(
    [...logits.keys()].sort((i, j) => logits[j]! - logits[i]! || i - j),
  );
  for (
    const options of [
      {},
      { temperature: 0.8, topK: 40 },
      { temperature: 2, topK: 7, topP: 0.6 },
      { temperature: 1, topK: 200 },
      { temperature: 3, topP: 0.9 },
      { temperature: 3 },
    ]
  ) {
    const k = candidatesOf(options) ?? logits.length;
    const best = {
      logits: Float32Array.from(ids.subarray(0, k), (id) => logits[id]!),
      ids: ids.slice(0, k),
    };
    for (let seed = 0; seed < 50; seed++) {
      const draw = (from: Parameters<typeof sample>[0]) =>
        sample(from, { ...options, random: randomNumbers(seed, 0) });
      t.equal(draw(best), draw({ logits }), JSON.stringify(options));
    }
  }
  t.equal(candidatesOf({ temperature: 1 }), undefined, "the whole vocabulary");
  t.equal(candidatesOf({ temperature: 1, topK: 1000 }), undefined, "too many");
  t.end();
});

t.test("the most probable tokens are ordered, ties by the lowest id", (t) => {
  const random = randomNumbers(SEED, 7);
  const bytes = new Uint32Array(5000).map(() => random() * 2 ** 32);
  const logits = new Float32Array(bytes.buffer)
    .map((x) => Number.isFinite(x) ? x : 1);
  const topOf = (logits: Float32Array, logprobs: number) =>
    logprobsOf({ logits }, 0, { logprobs }).top.map(({ token }) => token);
  const equal = logits.map((x) => Math.sign(x) * 0);
  for (const values of [logits, logits.map(Math.sign), equal]) {
    const order = [...values.keys()]
      .sort((i, j) => values[j]! - values[i]! || i - j);
    for (const count of [1, 5, 64, 65, values.length]) {
      t.strictSame(
        topOf(values, count),
        order.slice(0, count),
        repeatWith(),
      );
    }
  }
  t.strictSame(topOf(logits.subarray(0, 3), 5).length, 3, "all there are");
  t.end();
});

t.test("the tokenizer reproduces recorded ids and texts", async (t) => {
  const tokenizer = await openTokenizer(checkpointFolder("demo-lm"), files);
  const vectors = JSON.parse(readFileSync(
    new URL("references/demo-lm/tokenizer_vectors.json", import.meta.url),
    "utf8",
  )) as { text: string; ids: number[]; decoded: string }[];
  t.equal(vectors.length, 24);
  for (const { text, ids, decoded } of vectors) {
    t.strictSame(await tokenizer!.encode(text), ids, JSON.stringify(text));
    t.equal(await tokenizer!.decodeAll(ids), decoded, JSON.stringify(text));
    const stream = new TextStream(tokenizer!);
    const pieces: string[] = [];
    for (const id of ids) pieces.push(await stream.push(id));
    const expected = await tokenizer!.decode(ids);
    t.equal(pieces.join("") + await stream.end(), expected, "streamed");
    t.ok(
      pieces.every((piece) => !piece.includes("\ufffd")),
      "no piece is a broken character",
    );
  }
});

t.test("withKnownTexts() completes texts like the tokenizer", async (t) => {
  // Incomplete UTF-8 characters, a special token, and texts that depend on the previous token.
  const tokens = [[0xc3], [0xa4], [0xe2, 0x82], [0xac], [], [32], [46], [97]];
  const decode = (ids: readonly number[]) =>
    Buffer.from(ids.flatMap((id) => tokens[id]!)).toString()
      .replace(/^ /, "").replaceAll(" .", ".");
  let called = 0;
  const complete = (held: HeldText, added: readonly number[]) => {
    called += added.length;
    return Promise.resolve(completeText(decode, held, added));
  };
  const known = withKnownTexts(complete);
  const random = randomNumbers(SEED, 3);
  const below = (n: number) => Math.floor(n * random());
  let [total, unknown] = [0, 0];
  for (let text = 0; text < 200; text++) {
    let held: HeldText = { tokens: [], given: 0 };
    for (let part = 0; part < 8; part++) {
      const added = Array.from({ length: below(5) }, () => below(8));
      total += added.length;
      called = 0;
      const completed = await known(held, added);
      unknown += called;
      t.strictSame(completed, await complete(held, added), repeatWith());
      held = completed.held;
    }
  }
  t.ok(unknown < total, `${unknown} of ${total} texts were not known`);
});

t.test("generate() fills steps with prompt tokens after decode tokens", async (t) => {
  const steps: string[] = [];
  const next: Decoder["next"] = ({ ids, sequence, position }, ends) => {
    steps.push(
      [...ids].map((id, i) =>
        `${sequence[i]}:${position[i]}:${id}${ends.includes(i) ? "!" : ""}`
      ).join(" "),
    );
    return Promise.resolve(ends.map(() => ({ logits: Float32Array.of(0, 1) })));
  };
  const decoder = {
    shape: {
      maxTokens: 3,
      maxSequences: 2,
      maxContext: 16,
      vocabulary: 9,
      gives: "logits",
    },
    concurrentRuns: 1,
    next,
  } as unknown as Decoder;
  const prompts = [[2], [3, 4, 5, 6, 7], [8]];
  const { sequences, prefillTokens, decodeSteps } = await generate(
    decoder,
    prompts,
    { maxNewTokens: 3, stop: new Set(), temperature: 0 },
  );
  t.strictSame(steps, [
    "0:0:2! 1:0:3 1:1:4",
    "0:1:1! 1:2:5 1:3:6",
    "0:2:1! 1:4:7!",
    "1:5:1! 0:0:8!",
    "1:6:1! 0:1:1!",
    "0:2:1!",
  ]);
  t.ok(sequences.every(({ tokens }) => tokens.join() === "1,1,1"));
  t.strictSame([prefillTokens, decodeSteps], [7, 2]);
});

t.test("packBatch() removes padding and unpackRows() restores it", (t) => {
  const packed = packBatch({
    rows: 3,
    columns: 3,
    ids: [1, 2, 3, 4, 99, 99, 99, 99, 99],
    mask: [1, 1, 1, 1, 0, 0, 0, 0, 0],
  });
  t.strictSame([...packed.ids], [1, 2, 3, 4]);
  t.strictSame([...packed.sequence], [0, 0, 0, 1]);
  t.strictSame([...packed.position], [0, 1, 2, 0]);
  const padded = new Float32Array(18);
  const rows = new Float32Array([1, 2, 3, 4, 5, 6, 7, 8]);
  unpackRows(padded, rows, { cell: packed.cell, width: 2 });
  t.strictSame([...padded.subarray(0, 10)], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
  t.strictSame([...packPrompts([[5], [], [6, 7]]).sequence], [0, 2, 2]);
  t.equal(packPrompts([]).ids.length, 0);
  t.end();
});

t.test("packBatch() rejects masks that are not right-padded", (t) => {
  const mask = (values: number[]): object =>
    packBatch({ rows: 1, columns: 3, ids: [1, 2, 3], mask: values });
  t.throws(() => mask([1, 0, 1]), {
    message:
      "Cannot use 'attention_mask': row 0 has a token after padding, in column 2. Pad on the right",
  });
  t.throws(() => mask([1, 2, 1]), {
    message:
      "Cannot use 'attention_mask': entry [0, 1] is 2. Give 1 for a token and 0 for padding",
  });
  t.end();
});

t.test("checkTokens() rejects ids outside the vocabulary", (t) => {
  for (const id of [-1, 10]) {
    t.throws(() => checkTokens([0, id], 10, (i) => `token ${i}`), {
      message:
        `Cannot use token ${id} (token 1): the vocabulary has ids 0 to 9. Use the tokenizer of this checkpoint`,
    });
  }
  t.end();
});

t.test("configField() reads fields of multimodal models", (t) => {
  const config = {
    hidden_size: null,
    vocab_size: 9,
    text_config: { hidden_size: 4, vocab_size: 8, seed: null },
  };
  t.strictSame(
    ["hidden_size", "vocab_size", "seed", "other"].map((name) =>
      configField(config, name)
    ),
    [4, 9, undefined, undefined],
  );
  t.equal(configField({ text_config: null }, "seed"), undefined);
  t.end();
});

t.test("stopTokens() reads a number or a list, or uses a fallback", (t) => {
  t.strictSame([...stopTokens({ eos_token_id: 2 }, {})], [2]);
  t.strictSame(
    [...stopTokens({ eos_token_id: 2 }, { eos_token_id: [3, 4] })],
    [3, 4],
  );
  t.strictSame(
    [...stopTokens({ text_config: { eos_token_id: 5 } }, {})],
    [5],
    "of a multimodal model",
  );
  t.strictSame([...stopTokens({ eos_token_id: null }, {})], []);
  t.throws(() => stopTokens({ eos_token_id: "x" }, {}), {
    message:
      `Cannot read the checkpoint: 'eos_token_id' is "x". It must be a token id or a list of them`,
  });
  t.end();
});

t.test("chooseBounds() keeps given bounds and rounds the others up", (t) => {
  const need = { tokens: 300, sequences: 3, context: 300 };
  t.strictSame(chooseBounds(need, {}, { maxPositions: 4096 }), {
    maxTokens: 512,
    maxSequences: 4,
    maxContext: 320,
  });
  t.strictSame(
    chooseBounds(need, { maxTokens: 7, maxContext: 9 }, { maxPositions: 100 }),
    {
      maxTokens: 7,
      maxSequences: 4,
      maxContext: 9,
    },
  );
  t.equal(chooseBounds(need, {}, { maxPositions: 100 }).maxContext, 100);
  t.end();
});

/** An adapter that cannot be opened. */
function adapter(
  number: number,
  type: "hardware" | "software",
  twins?: number,
): GpuAdapter {
  return {
    number,
    type,
    packedDot: false,
    name: `a${number}`,
    vendor: "",
    architecture: "",
    description: "",
    limits: {},
    features: [],
    ...twins === undefined ? {} : { twins },
    request: () => Promise.reject(new Error("not asked for")),
  };
}

t.test("chooseAdapter() prefers hardware, then the native CPU device, then the other CPU device; never software", (t) => {
  const list = [adapter(0, "software"), adapter(1, "hardware")];
  t.equal(chooseAdapter(list, undefined).adapter, list[1]);
  t.equal(chooseAdapter(list.slice(0, 1), undefined).adapter, "native");
  t.strictSame(chooseAdapter([], "there is no compiler"), {
    adapter: "cpu",
    why: "there is no hardware GPU, and there is no compiler",
  });
  t.end();
});

t.test("checkSharing() reports shared adapters and rejects unintended sharing", (t) => {
  const [a, b] = [adapter(0, "hardware"), adapter(1, "hardware")];
  const messages: string[] = [];
  const check = (
    list: readonly GpuAdapter[],
    ranks: number,
    choice: "auto" | readonly number[] = "auto",
  ) =>
    checkSharing(list, ranks, {
      adapter: choice,
      notice: (text) => messages.push(text),
    });
  check([a, b], 2);
  check([a, b], 1);
  t.strictSame(messages, []);
  check([a], 2);
  check([a, b], 4);
  t.strictSame(messages.splice(0), [
    "2 ranks share 1 adapter: a0",
    "4 ranks share 2 adapters: a0, a1",
  ]);
  t.throws(() => check([a, a], 2, [0, 0]), {
    name: "MachineError",
    message:
      "Cannot give 2 ranks an adapter each: the list names only 1 different. Name 2 different adapters, or fewer to share them",
  });
  const twin = adapter(0, "hardware", 2);
  const twins =
    "There are 2 adapters named 'a0', and they cannot be distinguished";
  t.throws(() => check([twin], 2), {
    name: "MachineError",
    message: new RegExp(
      `^Cannot give 2 ranks an adapter each: only 1 can be opened\\. ${twins}\\. Install .*, or share it by --adapter 0$`,
    ),
  });
  t.strictSame(messages, []);
  check([twin], 2, [0]);
  t.match(messages, [
    new RegExp(`^2 ranks share 1 adapter: a0\\. ${twins}\\. `),
  ]);
  t.end();
});
