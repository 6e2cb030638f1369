// Requests at random times: each answer has the bytes that it has alone, on every mesh, whoever else is there or leaves.
// needs: cpu

import t from "tap";
import { temporaryFolder } from "./helpers/cli.ts";
import { repeatWith, SEED } from "./helpers/seed.ts";
import { chatCheckpoint, startServer } from "./helpers/serve.ts";
import {
  answersAlone,
  answersTogether,
  metricOf,
  randomRequests,
} from "./helpers/serve_requests.ts";

const folder = await chatCheckpoint(temporaryFolder(t));
const REQUESTS = randomRequests(60, { seed: SEED });
/** So few pages that sequences are preempted. */
const SMALL = [
  ...["--max-sequences", "6", "--max-context", "128", "--pages", "48x4"],
  ...["--max-batch-tokens", "24"],
];

const quiet = await startServer(folder);
const alone = await answersAlone(quiet, REQUESTS);
await quiet.stop();

for (const mesh of ["ep=1", "ep=4", "tp=2,ep=2"]) {
  t.test(`on ${mesh}`, async (t) => {
    const server = await startServer(folder, "--mesh", mesh, ...SMALL);
    t.teardown(() => server.stop());
    const seed = SEED + mesh.length;
    const answers = await answersTogether(server, REQUESTS, { seed });
    let [equal, left] = [0, 0];
    for (const [i, answer] of answers.entries()) {
      if (answer === "left") left++;
      else if (answer === alone[i]) equal++;
      else {
        const body = JSON.stringify(REQUESTS[i]!.body);
        t.equal(answer, alone[i], `${body}. ${repeatWith()}`);
      }
    }
    t.equal(equal + left, REQUESTS.length);
    const idle = ["sequences_running", "sequences_waiting", "pages_used"];
    for (const name of idle) {
      t.equal(await metricOf(server, `switchyard_${name}`), 0, name);
    }
  });
}
