/** Batches that are short enough for the calling thread. */

import t from "tap";
import { ShortBatches } from "../runtime/cpu/here.ts";
import { RECORD, RECORD_BYTES } from "../runtime/cpu/print.ts";
import { webAssembly } from "../runtime/cpu/web_assembly.ts";

const LENGTH = RECORD_BYTES / 4;

/** A batch of one launch with workgroups of 0.1 ms. Workers finish it after 0.2 ms. */
function batchOf(groups: number, threads: number) {
  const memory = new webAssembly.Memory({
    initial: 1,
    maximum: 1,
    shared: true,
  });
  const words = new Int32Array(memory.buffer);
  words[RECORD.words] = LENGTH;
  words[RECORD.groups] = groups;
  words[RECORD.cost] = 1e8;
  words[RECORD.end] = 2e4;
  const batches = new ShortBatches(memory, words, threads);
  return {
    areShort: () => batches.areShort(0, LENGTH),
    learn: (handover: number, times: number) => {
      for (let i = 0; i < times; i++) batches.learn(0, LENGTH, 0.2 + handover);
    },
  };
}

t.test("a batch of unknown duration runs on workers", (t) => {
  t.notOk(batchOf(1, 2).areShort());
  t.end();
});

t.test("a batch is short if workers save less than a handover costs", (t) => {
  // 0.4 ms; two workers save half of it.
  const two = batchOf(4, 2);
  two.learn(0.05, 50);
  t.notOk(two.areShort(), "handovers of 0.05 ms");
  two.learn(9, 3);
  t.notOk(two.areShort(), "a few slow handovers are ignored");
  two.learn(0.25, 50);
  t.ok(two.areShort(), "handovers of 0.25 ms");
  two.learn(9, 1);
  two.learn(0.05, 20);
  t.notOk(two.areShort(), "one slow handover is soon forgotten");

  // Sixteen workers save nearly all of it.
  const sixteen = batchOf(4, 16);
  sixteen.learn(0.25, 50);
  t.notOk(sixteen.areShort(), "with 16 workers");
  t.end();
});

t.test("with one thread, a batch is short up to a millisecond", (t) => {
  for (const [groups, short] of [[9, true], [11, false]] as const) {
    const batch = batchOf(groups, 1);
    batch.learn(0.05, 1);
    t.equal(batch.areShort(), short, `${groups} workgroups of 0.1 ms`);
  }
  t.end();
});
