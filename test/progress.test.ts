// Progress of loading on standard error.

import { Writable } from "node:stream";
import t from "tap";
import { createBar, createProgressBar } from "../cli/progress.ts";
import { withOutput } from "./helpers/cli.ts";

/** Standard error after progress of 1 to `total` kernels, one every four seconds. */
async function shown(
  total: number,
  { lines, terminal }: { readonly lines: boolean; readonly terminal: boolean },
): Promise<string> {
  let clock = 0;
  let written = "";
  const errorStream = new Writable({
    write: (text, _, done) => {
      written += text;
      done();
    },
  });
  const { err } = await withOutput((io) => {
    const bar = createProgressBar(io);
    for (let done = 0; done <= total; done++) {
      bar.update({ stage: "kernels", done, total });
      clock += 4000;
    }
    bar.update({ stage: "weights", done: 20, total: 70 });
    bar.stop();
    return Promise.resolve(0);
  }, {
    now: () => clock,
    terminal,
    progressLines: lines,
    errorStream: Object.assign(errorStream, { isTTY: terminal, columns: 80 }),
  });
  return written + err;
}

t.test("a terminal shows a bar; other output has a line every ten seconds", async (t) => {
  const bar = await shown(5, { lines: false, terminal: true });
  t.match(bar, /Compiling kernels .*0 of 5.*Loading weights /s);
  t.equal(
    await shown(5, { lines: true, terminal: false }),
    "Compiling kernels: 3 of 5\nLoading weights: 28 %\n",
  );
  t.equal(await shown(5, { lines: false, terminal: false }), "");
});

t.test("steps of commands print lines without a terminal", async (t) => {
  let clock = 0;
  const { err } = await withOutput((io) => {
    const bar = createBar(io, "Quantizing to q8_0 {bar} {percentage} %", 8);
    for (let done = 1; done <= 8; done++) {
      clock += 4000;
      bar.update(done);
    }
    bar.stop();
    return Promise.resolve(0);
  }, { now: () => clock, terminal: false, progressLines: true });
  t.equal(err, "Quantizing to q8_0: 37 %\nQuantizing to q8_0: 75 %\n");
});
