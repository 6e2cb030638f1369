/** Types of the language: inference, rejected code, agreement with run-time checks, and cost. */
// rotates with: compiler/dsl/, compiler/graph/messages.ts, package-lock.json, test/fixtures/types/

import t from "tap";
import { ModelError } from "../spec/errors.ts";
import { trace } from "../compiler/graph/trace.ts";
import { negative } from "./fixtures/types/negative.ts";
import { errorsOf, programOf, typeErrorsOf } from "./helpers/type_errors.ts";

const FIXTURE = "test/fixtures/types/negative.ts";

t.test("types infer the axes and dtypes of every op", (t) => {
  const program = programOf("test/fixtures/types/positive.ts", (text) => text);
  t.strictSame(errorsOf(program), []);
  t.end();
});

const { mistakes, others } = typeErrorsOf(FIXTURE);

t.test("types reject each mistake with its message", (t) => {
  t.ok(mistakes.length >= 31, `${mistakes.length} mistakes`);
  for (const { line, expected, said } of mistakes) {
    t.ok(said.includes(expected), `${FIXTURE}:${line}: ${expected}`, { said });
  }
  t.strictSame(others, [], "no other errors");
  t.end();
});

/** Quoted names, sorted. */
function quoted(text: string, quote: RegExp): string[] {
  return [...text.matchAll(quote)].map((match) => match[1]!).sort();
}

t.test("run-time checks have the messages and lines of type errors", (t) => {
  const thrown = new Map<number, string>();
  let calls = 0;
  trace(negative((call) => {
    calls++;
    try {
      call();
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      t.match(error.span?.file, /negative\.ts$/);
      thrown.set(error.span?.line ?? 0, error.message);
    }
  }));
  const called = mistakes.slice(0, calls);
  t.equal(thrown.size, calls, "every call throws");
  for (const { line, said } of called) {
    const message = thrown.get(line) ?? "";
    const sentence = /"(Cannot [^"]*)"/.exec(said)?.[1];
    if (sentence !== undefined) {
      t.equal(message.split(". ")[0], sentence, `line ${line}`);
      continue;
    }
    t.match(message, /^Cannot /, `line ${line}`);
    const choice =
      /[Aa]rgument of type '"([^"]*)"' is not assignable to parameter of type '(.*)'|^Type '"([^"]*)"' is not assignable to type '("(?:token|expert|embed).*)'/
        .exec(said);
    const options = choice?.[2] ?? choice?.[4];
    if (options === undefined || options === "DType") continue;
    const name = choice?.[1] ?? choice?.[3] ?? "";
    t.ok(message.includes(name), `line ${line} names '${name}'`, { message });
    const expected = message.split(": expected ")[1];
    if (expected === undefined) continue;
    t.strictSame(
      quoted(expected, /'([^']*)'/g),
      quoted(options, /"([^"]*)"/g),
      `line ${line} offers the same axes`,
    );
  }
  t.end();
});

/** An unrolled mixture-of-experts decoder of `layers` layers. */
function unrolled(layers: number): string {
  const lines = Array.from({ length: layers }, (_, i) => `
  const h${i} = rmsNorm(x${i}, m.param("l${i}.norm", "embed"), "embed");
  const q${i} = rope(split(dot(h${i}, m.param("l${i}.q", "qEmbed embed"), "embed"), "qEmbed", "head headDim"), "headDim", { position });
  const k${i} = rope(split(dot(h${i}, m.param("l${i}.k", "kvEmbed embed"), "embed"), "kvEmbed", "kvHead headDim"), "headDim", { position });
  const v${i} = split(dot(h${i}, m.param("l${i}.v", "kvEmbed embed"), "embed"), "kvEmbed", "kvHead headDim");
  const a${i} = attention(q${i}, { key: k${i}, value: v${i}, keys: m.state("l${i}.keys", "sequence context kvHead headDim"), values: m.state("l${i}.values", "sequence context kvHead headDim"), sequence, position });
  const o${i} = add(x${i}, dot(merge(a${i}.y, "head headDim", "qEmbed"), m.param("l${i}.o", "embed qEmbed"), "qEmbed"));
  const n${i} = rmsNorm(o${i}, m.param("l${i}.norm2", "embed"), "embed");
  const r${i} = route(dot(n${i}, m.param("l${i}.router", "expert embed"), "embed"), { over: "expert", topK: 2, preset: "mixtral" });
  const s${i} = dispatch(n${i}, r${i});
  const g${i} = dot(s${i}, m.param("l${i}.{expert}.gate", "expert ffn embed"), "embed");
  const u${i} = dot(s${i}, m.param("l${i}.{expert}.up", "expert ffn embed"), "embed");
  const e${i} = map((g, u) => (g / (1 + Math.exp(-g))) * u, g${i}, u${i});
  const d${i} = dot(e${i}, m.param("l${i}.{expert}.down", "expert embed ffn"), "ffn");
  const x${i + 1} = add(o${i}, combine(d${i}, r${i}));`);
  const states = Array.from(
    { length: layers },
    (_, i) => `"l${i}.keys": a${i}.keys, "l${i}.values": a${i}.values,`,
  );
  return `
import { add, attention, combine, dispatch, dot, embedding, map, merge, model, rmsNorm, rope, route, split, upTo } from "../../../compiler/dsl/mod.ts";
export const net = model({ token: upTo(4096), embed: 512, qEmbed: 512, kvEmbed: 256, ffn: 1024, expert: 8, head: 8, kvHead: 4, headDim: 64, sequence: 16, context: 4096, vocab: 1000 }, (m) => {
  const position = m.input("position", "token", { dtype: "i32" });
  const sequence = m.input("sequence", "token", { dtype: "i32" });
  const x0 = embedding(m.param("embed", "vocab embed"), m.input("ids", "token", { dtype: "i32" }), "vocab");
${lines.join("\n")}
  return { y: x${layers}, ${states.join(" ")} };
});
const axes: "token embed" = net.build().outputs.y ? "token embed" : "token embed";
void axes;
`;
}

/** Calls of one block per layer, each with other sizes. */
function inBlocks(layers: number): string {
  const lines = Array.from({ length: layers }, (_, i) => `
  const x${i + 1} = m.block("layers.${i}", { expert: ${i + 4}, ffn: ${
    i + 8
  }, choice: 2 }, (m) => add(x${i}, moe(m, x${i}, 2)));`);
  return `
import { add, combine, dispatch, dot, map, model, route, type Scope, type Tensor, upTo } from "../../../compiler/dsl/mod.ts";
function moe(m: Scope<"token" | "embed" | "expert" | "ffn" | "choice">, x: Tensor<"token embed", "f32">, topK: number) {
  const routing = route(dot(x, m.param("router", "expert embed"), "embed"), { over: "expert", topK, preset: "mixtral" });
  const sent = dispatch(x, routing);
  const gate = dot(sent, m.param("experts.{expert}.gate", "expert ffn embed"), "embed");
  const up = dot(sent, m.param("experts.{expert}.up", "expert ffn embed"), "embed");
  const hidden = map((g, u) => (g / (1 + Math.exp(-g))) * u, gate, up);
  return combine(dot(hidden, m.param("experts.{expert}.down", "expert embed ffn"), "ffn"), routing);
}
export const net = model({ token: upTo(64), embed: 32 }, (m) => {
  const x0 = m.input("x", "token embed");
${lines.join("")}
  return { y: x${layers} };
});
`;
}

for (
  const { title, source, max } of [
    { title: "unrolled layers", source: unrolled, max: 40_000 },
    { title: "layers of one block", source: inBlocks, max: 60_000 },
  ]
) {
  t.test(`60 ${title} cost at most ${max} type instantiations`, (t) => {
    const count = (layers: number) => {
      const program = programOf(
        "test/fixtures/types/unrolled.ts",
        () => source(layers),
      );
      t.strictSame(errorsOf(program), []);
      return program.getInstantiationCount();
    };
    const cost = count(60);
    t.ok(cost <= max, `${cost} instantiations`);
    t.ok(cost > count(1), "layers are counted");
    t.comment(`${cost} instantiations for 60 ${title}`);
    t.end();
  });
}
