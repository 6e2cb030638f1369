// Plans of one traced graph share the graph of a rank if their options for it are equal.
import t from "tap";
import {
  combine,
  compileGraph,
  type CompileOptions,
  dispatch,
  dot,
  model,
  mul,
  route,
  trace,
  upTo,
} from "../compiler/mod.ts";
import { localGraphOf } from "../compiler/local_graph.ts";

const layer = model(
  { token: upTo(64), embed: 32, ffn: 32, expert: 8 },
  (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const up = dot(
      dispatch(x, routing),
      m.param("{expert}.up", "expert ffn embed"),
      "embed",
    );
    const down = m.param("{expert}.down", "expert embed ffn");
    return { y: combine(dot(mul(up, up), down, "ffn"), routing) };
  },
);

/** Options that change the graph of a rank. */
const OPTIONS: readonly CompileOptions[] = [
  { mesh: { ep: 4 } },
  { mesh: { ep: 2, tp: 2 } },
  { mesh: { tp: 2, ep: 2 } },
  { mesh: { ep: 4 }, place: { expert: "ep" } },
  { mesh: { ep: 4 }, dispatcher: "gatherWeights" },
  { mesh: { ep: 4 }, wire: "bf16" },
  { mesh: { ep: 4 }, numerics: "fast" },
  { mesh: { ep: 4 }, numerics: "fast", dispatcher: "allGather" },
  { mesh: { ep: 2, tp: 2 }, numerics: "fast", sliceExperts: true },
];

t.test("plans of one traced graph equal those of separate ones", async (t) => {
  const options = OPTIONS.flatMap((each) => [
    each,
    // Other dispatchers have no chunks.
    ...each.dispatcher ? [] : [{ ...each, chunks: 2, deduplicate: true }],
  ]);
  const alone = await Promise.all(
    options.map((each) => compileGraph(trace(layer), each)),
  );
  for (const first of options) {
    const traced = trace(layer);
    await compileGraph(traced, first);
    for (const [i, second] of options.entries()) {
      const plan = await compileGraph(traced, second);
      const same = JSON.stringify(plan) === JSON.stringify(alone[i]);
      t.ok(same, `${JSON.stringify(first)}, then ${JSON.stringify(second)}`);
    }
  }
});

t.test("plans that differ in chunks share the graph of a rank", (t) => {
  const traced = trace(layer);
  const options: CompileOptions = { mesh: { ep: 4 } };
  const chunks: CompileOptions = { ...options, chunks: 2 };
  const graph = localGraphOf(traced, options);
  t.equal(localGraphOf(traced, chunks), graph);
  t.not(localGraphOf(traced, { mesh: { ep: 2 } }), graph);
  t.not(localGraphOf(trace(layer), options), graph);
  t.end();
});
