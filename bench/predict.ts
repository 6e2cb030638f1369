/**
 * What the simulator says of steps and exchanges that were measured once, at ep=1, 2 and 4: `results/predict.json` has the
 * machines that were measured right before, and the times. Nothing is measured again. `--file NAME` is another recording
 * of that folder.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import { isWithin, replay, type Replayed, score } from "./predict/recorded.ts";

const flags = parseArgs({
  options: { file: { type: "string", default: "predict.json" } },
}).values;

const replayed = await replay(flags.file);
for (const { what, name, then, now } of replayed) {
  console.log(
    `${name}: ${what}, predicted over measured ${now.toFixed(2)}${
      isWithin(now) ? "" : ", off"
    } (the predictor of then: ${then.toFixed(2)})`,
  );
}
for (const what of ["step", "exchange"] satisfies Replayed["what"][]) {
  const { all, now, then } = score(replayed, what);
  console.log(
    `${what}s within 25 %: ${now} of ${all}; by the predictor of then ${then}`,
  );
}
process.exit(0);
