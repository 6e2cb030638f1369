/** Models that cannot be lowered: messages of compile errors, with positions. */

import {
  add,
  attention,
  cachedAttention,
  combine,
  type CompileOptions,
  dispatch,
  type Model,
  model,
  mul,
  route,
  sum,
  topK,
  upTo,
} from "../compiler/mod.ts";
import { compileRefused } from "./helpers/compile_refused.ts";

const token = upTo(8);

compileRefused(
  "a sum over one of two placed axes",
  model(
    { token, other: 8 },
    (m) => ({ y: sum(m.input("x", "token other"), "token") }),
  ),
  { mesh: { dp: 2, ep: 2 }, place: { token: "dp", other: "ep" } },
  "Cannot move 'token/dp other/ep' between ranks: it has more than one axis whose length is known only at run time. Change the placement of its axes",
);
compileRefused(
  "a dispatched value with a dynamic width",
  model({ token, wide: upTo(3), expert: 4 }, (m) => {
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    return {
      y: combine(dispatch(m.input("x", "token wide"), routing), routing),
    };
  }),
  {},
  "Cannot dispatch 'token wide': the length of 'wide' on a rank is known only at run time. Give the axis a fixed size, and do not place it",
);
compileRefused(
  "topK of a dispatched value",
  model({ token, embed: 4, expert: 4 }, (m) => {
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const { values } = topK(dispatch(m.input("x", "token embed"), routing), {
      over: "embed",
      k: 2,
      axis: "best",
    });
    return { y: combine(values, routing) };
  }),
  {},
  "Cannot topK 'expert slot embed': it is a dispatched value. Choose before the dispatch, or after the combine",
);

/** Builds attention with the given defect. */
function attending(
  defect:
    | "twice"
    | "old"
    | "chain"
    | "computed"
    | "two"
    | "dynamic"
    | "earlier",
): Model {
  return model({
    token,
    head: 1,
    dim: 4,
    sequence: 2,
    context: defect === "dynamic" ? upTo(8) : defect === "earlier" ? 64 : 8,
  }, (m) => {
    const q = m.input("q", "token head dim");
    const declared = m.input("sequence", "token", { dtype: "i32" });
    const sequence = defect === "computed" ? mul(declared, 1) : declared;
    const position = m.input("position", "token", { dtype: "i32" });
    const keys = m.state("keys", "sequence context head dim");
    const values = m.state("values", "sequence context head dim");
    const one = attention(q, {
      key: q,
      value: q,
      keys,
      values,
      sequence,
      position,
    });
    if (defect === "twice") {
      return {
        ...one,
        z: attention(q, {
          key: add(q, 1),
          value: q,
          keys,
          values,
          sequence,
          position,
        }).y,
      };
    }
    if (defect === "earlier") {
      const before = cachedAttention(q, {
        keys: one.keys,
        values: one.values,
        sequence,
        position: m.input("earlier", "token", { dtype: "i32" }),
      });
      return { ...one, before };
    }
    if (defect === "old") return { ...one, before: sum(keys, "context") };
    if (defect === "chain") {
      const two = attention(one.y, {
        key: q,
        value: q,
        keys: one.keys,
        values: one.values,
        sequence,
        position,
      });
      return { ...two, one: one.y };
    }
    if (defect === "two") {
      const other = m.input("other", "token", { dtype: "i32" });
      const two = attention(q, {
        key: q,
        value: q,
        keys: m.state("k2", "sequence context head dim"),
        values: m.state("v2", "sequence context head dim"),
        sequence: other,
        position,
      });
      return { ...one, z: two.y, k2: two.keys, v2: two.values };
    }
    return one;
  });
}
const DP2: CompileOptions = { mesh: { dp: 2 }, place: { token: "dp" } };
compileRefused(
  "a state written twice",
  attending("twice"),
  {},
  "Cannot write state 'keys' twice: it is updated in place. Use separate states for each attention",
);
compileRefused(
  "a state read before it is written",
  attending("old"),
  {},
  "Cannot read state 'keys' before it is written: it is updated in place. Read the next value from attention",
);
compileRefused(
  "a state written by two attentions",
  attending("chain"),
  {},
  "Cannot write state 'keys' twice: it is updated in place. Use separate states for each attention",
);
compileRefused(
  "a state of dynamic length",
  attending("dynamic"),
  {},
  "Cannot keep state 'keys': the length of 'context' is known only at run time. Give the axis a fixed size",
);
compileRefused(
  "placed tokens with computed sequences",
  attending("computed"),
  DP2,
  "Cannot place axis 'token' over 'dp': attention needs tokens of one sequence on one rank, and which those are is computed. Give it as an input, or leave the axis unplaced",
);
compileRefused(
  "sharded positions with different inputs for reads and writes",
  attending("earlier"),
  { mesh: { cp: 2 }, place: { context: "cp" } },
  "Cannot shard axis 'context': attention has other sequences or positions than the writes of its cache. Use the same inputs for both",
);
compileRefused(
  "placed tokens with two inputs of sequences",
  attending("two"),
  DP2,
  "Cannot place axis 'token' over 'dp': attention needs tokens with one 'other' on one rank, and they are assigned by 'sequence'. Use one input for both, or leave the axis unplaced",
);
for (
  const mesh of ["ep=2", 2, new Map([["ep", 2]]), [{ name: "ep", size: 2 }]]
) {
  compileRefused(
    `a mesh that is not an object of sizes: ${JSON.stringify(mesh)}`,
    model({ token }, (m) => ({ y: m.input("x", "token") })),
    { mesh } as unknown as CompileOptions,
    "Cannot read the mesh: it is not an object of sizes. Give one, such as { ep: 4 }",
  );
}
