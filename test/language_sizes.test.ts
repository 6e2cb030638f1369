/** Declarations and sizes of axes. */

import t from "tap";
import {
  add,
  cast,
  combine,
  concat,
  dot,
  map,
  merge,
  model,
  rename,
  rope,
  route,
  slice,
  softmax,
  split,
  sum,
  type Tensor,
  topK,
  upTo,
} from "../compiler/dsl/mod.ts";
import { MAX_AXIS } from "../spec/limits.ts";
import { trace } from "../compiler/graph/trace.ts";
import { type M, messageOf, mistake, SIZES } from "./helpers/mistakes.ts";

t.test("sizes are checked against the model's axes", (t) => {
  const x = (m: M) => m.input("x", "token embed");
  const cases: [(m: M) => Tensor, string][] = [
    [
      (m) => split(x(m), "embed", "part rest"),
      "Cannot split 'embed' into 'part rest': its size is 8, not 3 * 5",
    ],
    [
      (m) => slice(x(m), "embed", 4, "rest"),
      "Cannot slice 'rest' of 'embed': positions 4 to 8 are not all within its size, 8",
    ],
    [
      (m) =>
        concat(
          slice(x(m), "embed", 0, "part"),
          slice(x(m), "embed", 3, "rest"),
          "part",
          "ffn",
        ),
      "Cannot make axis 'ffn' of 8: its size in this model is 16. Use another name for one of them",
    ],
    [
      (m) => merge(m.input("h", "token head headDim"), "head headDim", "ffn"),
      "Cannot make axis 'ffn' of 8: its size in this model is 16. Use another name for one of them",
    ],
    [
      (m) => rename(x(m), "embed", "ffn"),
      "Cannot rename 'embed' to 'ffn': their sizes are 8 and 16",
    ],
    [
      (m) => split(x(m), "token", "a b"),
      "Cannot split axis 'token': its length is known only at run time",
    ],
    [
      (m) => split(x(m), "embed", "a b"),
      "Cannot size axis 'a': the model does not declare it. Declare it in 'model'",
    ],
    [
      (m) => topK(x(m), { over: "embed", k: 9 }).values,
      "Cannot choose 9 of axis 'embed': expected a whole number from 1 to 8",
    ],
    [
      (m) =>
        add(
          sum(topK(x(m), { over: "embed", k: 2 }).values, "choice"),
          sum(topK(x(m), { over: "embed", k: 3 }).values, "choice"),
        ),
      "Cannot make axis 'choice' of 3: its size in this model is 2. Name it by the option 'axis' of 'topK', such as { axis: 'choice2' }",
    ],
    [
      (m) => {
        const logits = dot(x(m), m.param("router", "expert embed"), "embed");
        const [two, three] = [2, 3].map((topK) =>
          route(logits, { over: "expert", topK, preset: "mixtral" })
        );
        return add(sum(two!.weight, "choice"), sum(three!.weight, "choice"));
      },
      "Cannot make axis 'choice' of 3: its size in this model is 2. Name it by the option 'choice' of 'route', such as { choice: 'choice2' }, or route in a block",
    ],
    [
      (m) => m.param("by token", "token embed"),
      "Cannot store axis 'token': its length is known only at run time",
    ],
    [
      (m) =>
        rope(x(m), "embed", {
          position: m.input("p", "token", { dtype: "i32" }),
          inverseFrequencies: [5, 4, 3, 2, 1],
        }),
      "Cannot rope over 'embed': there are 5 inverse frequencies, expected at most 4, half its size",
    ],
    [
      (m) =>
        rope(slice(x(m), "embed", 0, "part"), "part", {
          position: m.input("p", "token", { dtype: "i32" }),
        }),
      "Cannot rope 'token part' over 'part': its size is 3, expected an even number",
    ],
  ];
  for (const [build, message] of cases) {
    t.equal(mistake((m) => ({ y: build(m) })), message);
  }
  t.end();
});

t.test("declarations are checked", (t) => {
  t.equal(
    messageOf(() => model({ "two words": 2 }, () => ({}))),
    "Cannot name an axis 'two words': a name is letters, digits and '_', and starts with no digit",
  );
  t.equal(
    messageOf(() => model({ token: 2.5 }, () => ({}))),
    "Cannot give axis 'token' the size 2.5: a size is a whole number from 1 to 16777216",
  );
  t.equal(
    messageOf(() => model({ token: MAX_AXIS + 1 }, () => ({}))),
    "Cannot give axis 'token' the size 16777217: a size is a whole number from 1 to 16777216",
  );
  t.equal(
    messageOf(() => upTo(0)),
    "Cannot bound an axis by 0: a bound is a whole number from 1 to 16777216",
  );
  t.equal(
    messageOf(() => upTo(4e9)),
    "Cannot bound an axis by 4000000000: a bound is a whole number from 1 to 16777216",
  );
  t.equal(
    messageOf(() =>
      trace(model({ row: MAX_AXIS, column: 2 }, (m) => ({
        y: merge(m.param("w", "row column"), "row column", "all"),
      })))
    ),
    "Cannot make axis 'all' of 33554432: an axis has at most 16777216 elements",
  );
  t.equal(
    mistake((m) => ({
      y: add(m.input("x", "embed"), sum(m.input("x", "ffn embed"), "ffn")),
    })).replace(/here:\d+/g, "here"),
    "Cannot declare input 'x' as f32[ffn embed]: it is input f32[embed] at here already",
  );
  t.equal(
    mistake(() => ({})),
    "Cannot trace the model: it returns no outputs. Return an object of tensors by name",
  );
  t.equal(
    mistake((m) => m.input("x", "embed") as never),
    "Cannot build a model: its function returned a tensor. Return an object of tensors by name",
  );
  t.equal(
    mistake((m) => ({ y: m.input("x", "embed"), z: 1 as unknown as Tensor })),
    "Cannot return 'z': it is no tensor",
  );
  t.equal(
    mistake((m) => ({
      y: route(m.input("logits", "token expert"), {
        over: "expert",
        topK: 3,
        preset: "fairscale.top2",
      }).weight,
    })),
    "Cannot route to 3 experts: preset 'fairscale.top2' chooses 2",
  );
  let stolen: Tensor<"embed", "f32"> | undefined;
  trace(model(SIZES, (m) => ({ y: stolen = m.input("x", "embed") })));
  t.equal(
    mistake((m) => ({ y: add(m.input("x", "embed"), stolen!) })),
    "Cannot add tensors of two models. Declare both operands with one 'm'",
  );
  t.equal(
    mistake((m) => ({
      y: add(m.input("x", "embed"), undefined as unknown as number),
    })),
    "Cannot add 'undefined': expected a tensor",
  );
  t.end();
});

t.test("untyped callers get error messages", (t) => {
  const none = undefined as never;
  const x = (m: M) => m.input("x", "token embed");
  const cases: [(m: M) => unknown, string][] = [
    [
      (m) => m.input("x", none),
      `Cannot declare 'undefined': the model has no axis 'undefined'. Its axes are '${
        Object.keys(SIZES).join(" ")
      }'`,
    ],
    [
      (m) => m.param("w", "embed fnn" as never),
      "Cannot declare 'embed fnn': the model has no axis 'fnn'. Write 'ffn'",
    ],
    [
      (m) => m.param("w", "embed, ffn" as never),
      "Cannot declare 'embed, ffn': the model has no axis 'embed,'. Write 'embed'",
    ],
    [
      (m) => dot(x(m), m.param("w", "ffn embed"), none),
      "Cannot dot 'token embed' with 'ffn embed' over 'undefined': expected 'embed'",
    ],
    [
      (m) => m.param("w", "ffn embed", { dtype: "bf16" as never }),
      "Cannot declare 'w' as 'bf16': a tensor is computed in 'f32' or 'f16' or 'i32' or 'u32'. Choose one; its file may store another",
    ],
    [
      (m) =>
        dot(cast(x(m), "i32") as never, m.param("w", "ffn embed"), "embed"),
      "Cannot dot 'token embed': its dtype is 'i32', expected 'f32'. Cast it",
    ],
    [
      (m) => softmax(x(m), none),
      "Cannot softmax 'token embed' over 'undefined': expected 'token' or 'embed'",
    ],
    [
      (m) => map(none, x(m)),
      "Cannot map: the first argument is not a function",
    ],
    [
      (m) =>
        rope(m.input("r", "token part"), "part", {
          position: none,
        }),
      "Cannot call 'rope': 'position' is missing. Give a tensor",
    ],
    [
      (m) =>
        rope(m.input("r", "token part"), "part", {
          position: [0, 1] as never,
        }),
      "Cannot call 'rope': 'position' is an object. Give a tensor",
    ],
    [
      (m) => combine(x(m) as never, x(m) as never),
      "Cannot combine: the second operand is not a routing",
    ],
    [
      (m) => split(x(m), "embed", none),
      "Cannot size axis 'undefined': the model does not declare it. Declare it in 'model'",
    ],
  ];
  for (const [call, message] of cases) {
    t.equal(mistake((m) => ({ y: call(m) as Tensor })), message);
  }
  t.end();
});
