// `run` and `generate`: input and output files, saved plans, reports.
// needs: cpu
import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  integers,
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const DEMO = checkpointFolder("demo-lm");

t.test("run writes padded outputs, and a saved plan gives the same bytes", async (t) => {
  const scratch = temporaryFolder(t);
  const file = (name: string): string => path.join(scratch, name);
  await writeRaw(file("in"), {
    input_ids: integers([2, 3], [5, 6, 7, 8, 0, 0]),
    attention_mask: integers([2, 3], [1, 1, 1, 1, 0, 0]),
  });
  const io = (to: string): string[] => [
    ...["--inputs", file("in"), "--outputs", file(to), "--adapter", "cpu"],
  ];
  const one = await switchyard(["run", MIXTRAL, ...io("one")]);
  t.strictSame([one.code, one.err], [0, ""]);
  const outputs = await readRaw(file("one"));
  const shapes = Object.entries(outputs).map(([name, { dtype, shape }]) =>
    `${name} ${dtype} ${shape.join(" ")}`
  );
  t.strictSame(shapes, [
    "logits F32 2 3 160",
    "layer0.router_logits F32 2 3 6",
    "layer0.topk_idx I32 2 3 2",
    "layer0.topk_weight F32 2 3 2",
    "layer1.router_logits F32 2 3 6",
    "layer1.topk_idx I32 2 3 2",
    "layer1.topk_weight F32 2 3 2",
  ]);
  const tail = (name: string, bytes: number): number[] => [
    ...outputs[name]!.data.slice(-bytes),
  ];
  t.ok(tail("logits", 2 * 160 * 4).every((byte) => byte === 0), "masked: 0");
  t.ok(tail("layer1.topk_idx", 16).every((byte) => byte === 255), "masked: -1");

  await switchyard(
    ["plan", MIXTRAL, "--mesh", "ep=4", "--check", "--out", file("p.json")],
  );
  const four = await switchyard([
    ...["run", file("p.json"), "--weights", MIXTRAL, ...io("four")],
    ...["--check", "--json", "--trace", file("trace.json")],
  ]);
  t.strictSame([four.code, four.err], [0, ""]);
  t.strictSame(readFileSync(file("four")), readFileSync(file("one")), "bytes");
  const { ranks, timing, traced } = JSON.parse(four.out) as {
    traced: { rank: number; compute: number; exchange: number }[];
    ranks: {
      rank: number;
      peakBytes: object;
      sentBytes: { dispatch: object; combine: object };
    }[];
    timing: object;
  };
  t.strictSame(ranks.map(({ rank }) => rank), [0, 1, 2, 3]);
  for (const { peakBytes, sentBytes: { dispatch, combine } } of ranks) {
    for (const compared of [peakBytes, dispatch, combine]) {
      const { predicted, actual } = compared as {
        [key: string]: number;
      };
      t.type(actual, "number");
      t.equal(predicted, actual);
    }
  }
  t.ok(timing);
  t.strictSame(traced.map(({ rank }) => rank), [0, 1, 2, 3]);
  t.ok(
    traced.every(({ compute, exchange }) => compute > 0 && exchange > 0),
    "where the time of each rank went",
  );
  const trace = JSON.parse(readFileSync(file("trace.json"), "utf8")) as {
    traceEvents: { name: string }[];
  };
  t.ok(trace.traceEvents.length > 40);
  const names = trace.traceEvents.map(({ name }) => name);
  for (const layer of [0, 1]) {
    const part = new RegExp(`layers\\.${layer}.*\\.dispatch:permute$`);
    t.ok(names.some((name) => part.test(name)), String(part));
  }
  t.notOk(names.includes("dispatch"));

  await switchyard(["plan", MIXTRAL, "--out", file("plain.json")]);
  const unchecked = await switchyard([
    ...["run", file("plain.json"), "--weights", MIXTRAL, ...io("none")],
    "--check",
  ]);
  t.strictSame([unchecked.code, unchecked.err], [
    1,
    "Cannot check the run: the plan was compiled without check steps. Compile it with 'switchyard plan --check'\n",
  ]);
});

t.test("run splits prompts into several steps, with the same bytes", async (t) => {
  const scratch = temporaryFolder(t);
  const file = (name: string): string => path.join(scratch, name);
  const ids = Array.from({ length: 20 }, (_, i) => (7 * i) % 160);
  await writeRaw(file("in"), { input_ids: integers([2, 10], ids) });
  const run = async (to: string, ...flags: string[]): Promise<Buffer> => {
    const { code, err } = await switchyard([
      ...["run", MIXTRAL, "--inputs", file("in"), "--outputs", file(to)],
      ...["--adapter", "cpu", ...flags],
    ]);
    t.strictSame([code, err], [0, ""]);
    return readFileSync(file(to));
  };
  const unsplit = await run("whole");
  t.strictSame(
    await run("steps", "--max-tokens", "3", "--mesh", "ep=2"),
    unsplit,
  );
});

t.test("run accepts empty batches", async (t) => {
  const scratch = temporaryFolder(t);
  const file = (name: string): string => path.join(scratch, name);
  for (const shape of [[0, 0], [2, 0], [0, 3]]) {
    await writeRaw(file("in"), { input_ids: integers(shape, []) });
    const { code, err } = await switchyard([
      ...["run", MIXTRAL, "--inputs", file("in"), "--outputs", file("out")],
      ...["--adapter", "cpu", "--mesh", "ep=2"],
    ]);
    t.strictSame([code, err], [0, ""], String(shape));
    const { logits } = await readRaw(file("out"));
    t.strictSame(logits!.shape, [...shape, 160]);
  }
});

t.test("generate continues prompts the same way alone and in a batch", async (t) => {
  const flags = ["--max-new-tokens", "8", "--adapter", "cpu"];
  const alone = await switchyard(
    ["generate", DEMO, "--prompt", "The king said to his daughter,", ...flags],
  );
  t.strictSame(alone, {
    code: 0,
    out: " 'I have no idea to have a\n",
    err: "",
  });
  const both = await switchyard([
    ...["generate", DEMO, "--prompt", "The king said to his daughter,"],
    ...["--tokens", "1622,323", ...flags, "--mesh", "ep=4", "--json"],
  ]);
  const { sequences } = JSON.parse(both.out) as {
    sequences: { promptTokens: number[]; tokens: number[] }[];
  };
  t.strictSame(sequences[0], {
    promptTokens: [337, 640, 349, 275, 325, 957, 12],
    tokens: [364, 41, 395, 440, 1986, 275, 395, 259],
    text: " 'I have no idea to have a",
    ending: "length",
  });
  t.strictSame(sequences[1]!.promptTokens, [1622, 323]);
  t.equal(sequences[1]!.tokens.length, 8);
});

t.test("generate draws the same tokens from the same seed", async (t) => {
  const draw = async (...flags: string[]): Promise<string> => {
    const { code, out } = await switchyard([
      ...["generate", DEMO, "--prompt", "The king", "--adapter", "cpu"],
      ...["--max-new-tokens", "12", ...flags],
    ]);
    t.equal(code, 0);
    return out;
  };
  const sample = (...flags: string[]) => draw("--temperature", "1", ...flags);
  const first = await sample("--seed", "3");
  t.equal(await sample("--seed", "3", "--mesh", "ep=2"), first);
  t.not(await sample("--seed", "4"), first);
  const greedy = await draw("--temperature", "0");
  t.equal(await sample("--top-k", "1"), greedy);
  t.equal(await sample("--top-p", "0.0001"), greedy);
});

t.test("generate without a tokenizer prints ids, and null for the text", async (t) => {
  const flags = [
    "--tokens",
    "5,6",
    "--max-new-tokens",
    "3",
    "--adapter",
    "cpu",
  ];
  const plain = await switchyard(["generate", MIXTRAL, ...flags]);
  t.match(plain.out, /^\d+,\d+,\d+\n$/);
  const json = await switchyard(["generate", MIXTRAL, ...flags, "--json"]);
  t.match(JSON.parse(json.out), { sequences: [{ text: null }] });
});

t.test("generate stops at the end of the context with a message", async (t) => {
  const { code, out, err } = await switchyard([
    ...["generate", MIXTRAL, "--tokens", "5,6", "--max-context", "4"],
    ...["--adapter", "cpu"],
  ]);
  t.equal(code, 0);
  t.equal(out.split(",").length, 3, "the last token is not fed");
  t.equal(
    err,
    "Sequence 1 stopped at the end of its context of 4 tokens. Raise --max-context for more\n",
  );
  const all = await switchyard([
    ...["generate", MIXTRAL, "--tokens", Array(255).fill(5).join(",")],
    ...["-n", "9", "--adapter", "cpu"],
  ]);
  t.equal(
    all.err,
    "Sequence 1 stopped at the end of its context of 256 tokens. The model has 256 positions. Use a shorter prompt for more\n",
  );
});
