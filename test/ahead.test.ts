// Steps that start before the host has the tokens of the step before: their pages are reserved first.

import t from "tap";
import { PageTable } from "../engine/mod.ts";
import { stepAhead, stepsAhead } from "../engine/generation/ahead.ts";

/** Three sequences with a page each in both groups, of which the next token of each starts another. */
function threeSequences(windowPages: number) {
  const pages = new PageTable({
    size: 2,
    blocks: 8,
    owners: [0, 0, 0],
    groups: [
      { input: "pages", seen: {}, count: 12 },
      { input: "pages_window_3", seen: { window: 3 }, count: windowPages },
    ],
  });
  const slots = [0, 1, 2].map((index) => {
    for (const at of [0, 1]) {
      t.ok(pages.assign(index, at, 10 * index + at), "a page of the prompt");
    }
    return {
      index,
      prompt: [10 * index, 10 * index + 1],
      tokens: [],
      fed: 2,
      cached: 0,
      cancelled: false,
      options: { maxNewTokens: 4, stop: new Set<number>(), temperature: 0 },
    };
  });
  return { slots, waiting: [], pages };
}

t.test("a step ahead needs a page per sequence in each group", (t) => {
  const state = threeSequences(5);
  t.ok(
    [0, 1, 2].every((slot) => state.pages.hasRoom(slot, 6)),
    "two pages are enough for any one sequence",
  );
  t.equal(stepAhead(state, state.slots, 16), undefined);
  t.strictSame(state.slots.map(({ fed }) => fed), [2, 2, 2]);
  const enough = threeSequences(6);
  t.strictSame(stepAhead(enough, enough.slots, 16)?.fed, [0, 1, 2]);
  t.strictSame(enough.slots.map(({ fed }) => fed), [3, 3, 3]);
  t.end();
});

t.test("a series ends where pages do", (t) => {
  const bounds = { maxContext: 16, count: 3 };
  const state = threeSequences(5);
  t.strictSame(stepsAhead(state, state.slots, bounds), []);
  t.strictSame(state.slots.map(({ fed }) => fed), [2, 2, 2]);
  // Positions 2 and 3 share a page; position 4 starts another.
  const two = threeSequences(6);
  t.equal(stepsAhead(two, two.slots, bounds).length, 2);
  const three = threeSequences(9);
  t.equal(stepsAhead(three, three.slots, bounds).length, 3);
  t.end();
});
