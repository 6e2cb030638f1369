/** Sums of squares of the left operands of parameters: values, and meshes. */
// needs: cpu

import t from "tap";
import { recordSquares } from "../compiler/graph/gradients/record_squares.ts";
import { trace } from "../compiler/graph/trace.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { routedLayer } from "./helpers/routed_layer.ts";
import {
  closeDevices,
  EXPERT_MESHES,
  matches,
  reference,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const [TOKENS, EMBED, EXPERTS, TOP_K] = [23, 12, 8, 2];

const x = waves(TOKENS * EMBED);

const CASE = {
  model: recordSquares(
    trace(routedLayer("mixtral", TOP_K, { extra: [], tokens: TOKENS })),
  ),
  calls: [{ x }],
};

t.test("sums cover all tokens, or those of an expert", async (t) => {
  const [outputs] = await reference(CASE);
  const wanted = Array.from({ length: EMBED }, (_, column) => {
    let sum = 0;
    for (let row = 0; row < TOKENS; row++) sum += x[row * EMBED + column]! ** 2;
    return sum;
  });
  const near = (found: number, to: number) => Math.abs(found - to) < 1e-4 * to;
  const router = outputs!["squares.router"]!.data;
  const up = outputs!["squares.up.{expert}"]!.data;
  t.equal(up.length, EXPERTS * EMBED);
  t.equal(outputs!["squares.down.{expert}"]!.data.length, EXPERTS * 10);
  wanted.forEach((sum, column) => {
    t.ok(near(router[column]!, sum), `router, ${column}`);
    // Each token goes to two experts.
    let all = 0;
    for (let e = 0; e < EXPERTS; e++) all += up[e * EMBED + column]!;
    t.ok(near(all, TOP_K * sum), `experts, ${column}`);
  });
});

t.test("plans compute the sums", { skip: skipUnasked("cpu") }, async (t) => {
  await matches(t, CASE, "cpu", [{}, ...EXPERT_MESHES]);
});
