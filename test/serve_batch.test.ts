// Requests at random times: each answer equals the one without other requests, on every mesh, also if clients leave,
// with and without speculation and prefix sharing, and after a restart. SERVE_REQUESTS=1000 sets the number of
// requests. needs: cpu rotates with: engine/server/, engine/generation/batch.ts

import process from "node:process";
import t from "tap";
import { temporaryFolder } from "./helpers/cli.ts";
import { inTurn, repeatWith, SEED } from "./helpers/seed.ts";
import { chatCheckpoint, startServer } from "./helpers/serve.ts";
import {
  answersAlone,
  answersTogether,
  metricOf,
  randomRequests,
} from "./helpers/serve_requests.ts";

/** Number of requests. In a long run, every configuration serves all of them. */
const COUNT = Number(process.env["SERVE_REQUESTS"] ?? 40);

const folder = await chatCheckpoint(temporaryFolder(t));
const REQUESTS = randomRequests(COUNT, { seed: SEED });
/** So few pages that sequences are preempted and cached pages evicted. */
const PAGES = ["--max-context", "128", "--pages", "48x4"];
/** Pages larger than any prompt, so that no prefix is shared. */
const UNSHARED = ["--max-context", "128", "--pages", "6x128"];
const SMALL = [
  ...["--max-sequences", "6", "--max-batch-tokens", "24"],
  ...["--max-queue", `${256 + 4 * COUNT}`],
];

const quiet = await startServer(folder, ...UNSHARED);
const alone = await answersAlone(quiet, REQUESTS);
await quiet.stop();

const SPECULATE = ["--speculate", "3"];

for (
  const [mesh, ...args] of [
    ...inTurn(
      [
        ["ep=1", ...PAGES, ...SPECULATE],
        ["ep=4", ...PAGES, "--stream-interval", "0"],
        ["tp=2,ep=2", ...PAGES, ...SPECULATE],
      ] as const,
      COUNT >= 1000 ? 1 : 3,
    ),
    ...COUNT >= 1000
      ? [
        ["ep=1", ...UNSHARED],
        ["ep=4", ...UNSHARED, ...SPECULATE],
        ["tp=2,ep=2", ...PAGES],
      ] as const
      : [],
  ] as const
) {
  t.test(`on ${mesh} ${args.join(" ")}`, async (t) => {
    const seed = SEED + mesh.length;
    let [equal, left] = [0, 0];
    // Some servers restart in the middle.
    const part = mesh === "ep=1" ? Math.ceil(COUNT / 2) : COUNT;
    for (let first = 0; first < COUNT; first += part) {
      const server = await startServer(
        folder,
        "--mesh",
        mesh,
        ...args,
        ...SMALL,
      );
      t.teardown(() => server.stop());
      const requests = REQUESTS.slice(first, first + part);
      const answers = await answersTogether(server, requests, { seed });
      for (const [i, answer] of answers.entries()) {
        const expected = alone[first + i];
        if (answer === "left") left++;
        else if (answer === expected) equal++;
        else {
          const body = JSON.stringify(requests[i]!.body);
          t.equal(answer, expected, `${body}. ${repeatWith()}`);
        }
      }
      const idle = ["sequences_running", "sequences_waiting", "pages_used"];
      for (const name of idle) {
        t.equal(await metricOf(server, `switchyard_${name}`), 0, name);
      }
      await server.stop();
    }
    t.equal(equal + left, REQUESTS.length);
    if (COUNT > 60) t.comment(`${equal} equal, ${left} left`);
  });
}
