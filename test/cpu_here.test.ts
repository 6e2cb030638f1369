import t from "tap";
import { ShortBatches } from "../runtime/cpu/here.ts";
import { RECORD, RECORD_BYTES } from "../runtime/cpu/print.ts";
import { webAssembly } from "../runtime/cpu/web_assembly.ts";

const LENGTH = RECORD_BYTES / 4;

/** A batch of one launch, of workgroups that take 0.1 ms each, and that workers were done with after 0.2 ms. */
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

t.test("a batch of unknown length is for the workers", (t) => {
  t.notOk(batchOf(1, 2).areShort());
  t.end();
});

t.test("a batch is short while workers would save less of it than a handover takes", (t) => {
  // 0.4 ms, of which two workers save half.
  const two = batchOf(4, 2);
  two.learn(0.05, 50);
  t.notOk(two.areShort(), "handovers of 0.05 ms");
  two.learn(9, 3);
  t.notOk(two.areShort(), "a few that took long say little");
  two.learn(0.25, 50);
  t.ok(two.areShort(), "handovers of 0.25 ms");
  two.learn(9, 1);
  two.learn(0.05, 20);
  t.notOk(two.areShort(), "one that took long is soon forgotten");

  // Of which sixteen workers save nearly all.
  const sixteen = batchOf(4, 16);
  sixteen.learn(0.25, 50);
  t.notOk(sixteen.areShort(), "with 16 workers");
  t.end();
});

t.test("a batch that one thread must execute is short up to a millisecond", (t) => {
  for (const [groups, short] of [[9, true], [11, false]] as const) {
    const batch = batchOf(groups, 1);
    batch.learn(0.05, 1);
    t.equal(batch.areShort(), short, `${groups} workgroups of 0.1 ms`);
  }
  t.end();
});
