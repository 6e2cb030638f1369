// A server whose ranks are processes: it sends the answers of one process, ends gracefully, and ends if a rank is
// killed.
// needs: cpu, mpi
// rotates with: runtime/mpi/, engine/server/

import { readFileSync } from "node:fs";
import process from "node:process";
import t, { type Test } from "tap";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { temporaryFolder } from "../helpers/cli.ts";
import {
  jobOf,
  LAUNCHERS,
  processesLeft,
  processesWith,
  skipWithoutMpi,
  startWith,
  withoutMpi,
} from "../helpers/mpi.ts";
import { SEED } from "../helpers/seed.ts";
import { addressIn, serverAt, startServer } from "../helpers/serve.ts";
import {
  answersAlone,
  answersTogether,
  randomRequests,
} from "../helpers/serve_requests.ts";

const DEMO = checkpointFolder("demo-lm");

/** Starts a server of two ranks in two processes. */
async function launch(t: Test, scratch: string, mesh: string) {
  const launcher = LAUNCHERS.find(({ skip }) => !skip)!;
  const { child, ended } = startWith(launcher, scratch, [
    ...["launch", "-n", "2", "--", "serve", DEMO, "--port", "0"],
    ...["--adapter", "cpu", "--mesh", mesh],
  ]);
  // Ranks end with it.
  t.teardown(() => child.kill("SIGTERM"));
  const address = await new Promise<string>((resolve, reject) => {
    let out = "";
    child.stdout!.on("data", (text) => {
      out += text;
      const found = addressIn(out);
      if (found) resolve(found);
    });
    void ended.then(({ err }) => reject(new Error(err)));
  });
  const setting = `${launcher.rankVariable}=1`;
  const second = () =>
    processesWith(jobOf(scratch), setting)
      // Excludes the shell that watches the rank. Node.js 24 names its main thread.
      .find((pid) =>
        /^(node|MainThread)$/.test(
          readFileSync(`/proc/${pid}/comm`, "utf8").trim(),
        )
      );
  return { child, ended, server: serverAt(address), second };
}

t.test("a server of two processes answers as one process and ends gracefully", {
  skip: skipWithoutMpi,
}, async (t) => {
  const requests = randomRequests(12, { seed: SEED, chat: false });
  const one = await startServer(DEMO);
  const alone = await answersAlone(one, requests);
  await one.stop();
  const scratch = temporaryFolder(t);
  // Pipeline stages have several batches in flight.
  const { child, ended, server } = await launch(t, scratch, "pp=2");
  const answers = await answersTogether(server, requests, { seed: SEED });
  for (const [i, answer] of answers.entries()) {
    if (answer !== "left") t.equal(answer, alone[i]);
  }
  const last = server.client.completions.create({
    model: "demo-lm",
    prompt: "Once",
    max_tokens: 60,
    stream: true,
  });
  const stream = await last;
  child.kill("SIGTERM");
  let tokens = 0;
  for await (const _ of stream) tokens++;
  t.ok(tokens > 40, "completes the started request");
  const { code, err } = await ended;
  t.strictSame([code, withoutMpi(err)], [
    0,
    "Ending after the requests in progress; interrupt again to end immediately\n",
  ]);
  t.strictSame(await processesLeft(jobOf(scratch)), []);
});

t.test(
  "a killed rank ends requests with 503, and the server with an error that names it",
  {
    skip: skipWithoutMpi,
  },
  async (t) => {
    const scratch = temporaryFolder(t);
    const { ended, server, second } = await launch(t, scratch, "ep=2");
    const request = {
      prompt: "Once",
      max_tokens: 500,
      n: 64,
      ignore_eos: true,
    };
    const stream = await server.client.completions.create({
      ...request,
      model: "demo-lm",
      stream: true,
    });
    const pending = server.post("/v1/completions", request);
    for await (const _ of stream) break;
    process.kill(second()!, "SIGKILL");
    const response = await pending;
    t.equal(response.status, 503);
    t.match(await response.json(), {
      error: { message: /another rank of the job has ended/ },
    });
    const { code, err } = await ended;
    t.equal(code, 3);
    t.match(
      withoutMpi(err),
      /^Cannot finish: rank 1 on \S+ was killed by signal 9.*\. Start the command again\n$/,
    );
    t.strictSame(await processesLeft(jobOf(scratch)), []);
  },
);
