// Commands that stream experts and lose a file, a disk or a rank: each ends with one message.
// needs: cpu, mpi
// rotates with: runtime/weights/expert_
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, truncateSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import t from "tap";
import { whyNotNative } from "../runtime/native/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { COMMAND } from "./helpers/compiled.ts";
import {
  jobOf,
  LAUNCHERS,
  processesLeft,
  start,
  startWith,
  withoutMpi,
} from "./helpers/mpi.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { rankOf } from "./helpers/stops.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

/** Memory for a few of the 32 experts of demo-lm. */
const STREAMED = ["--adapter", "native", "--expert-memory", "400KB"];
const GENERATE = ["-p", "Once", "-n", "500", "--jsonl", ...STREAMED];

t.test("a checkpoint truncated while experts are streamed", {
  skip,
}, async (t) => {
  const folder = path.join(temporaryFolder(t), "demo");
  cpSync(checkpointFolder("demo-lm"), folder, { recursive: true });
  const { printed, ended } = start(process.execPath, [
    ...[COMMAND, "generate", folder, ...GENERATE],
  ]);
  await printed;
  truncateSync(path.join(folder, "model.safetensors"), 1000);
  const { code, err } = await ended;
  t.equal(code, 1);
  t.equal(
    err,
    "Cannot read experts: a file of weights has become shorter, or its disk failed. Get the file again\n",
  );
});

const unshared = spawnSync("unshare", ["-rm", "true"]).status === 0;

t.test("a full disk", {
  skip: skip || !unshared && "this system has no namespaces of mounts",
}, (t) => {
  const full = path.join(temporaryFolder(t), "full");
  mkdirSync(full);
  const out = path.join(full, "out");
  const { status, stderr } = spawnSync("unshare", [
    ...["-rm", "sh", "-c"],
    `mount -t tmpfs -o size=16k none ${full}; exec "$@"`,
    ...["sh", process.execPath, COMMAND, "run", checkpointFolder("demo-lm")],
    ...["--random", "--outputs", out, ...STREAMED],
  ], { encoding: "utf8" });
  t.equal(status, 3);
  t.equal(
    stderr,
    `Cannot write '${out}': the disk is full. Free some space\n`,
  );
  t.end();
});

for (const launcher of LAUNCHERS) {
  t.test(`${launcher.name}: a killed rank that streams experts`, {
    skip: skip || launcher.skip ||
      process.platform !== "linux" && "there is no /proc",
  }, async (t) => {
    const scratch = temporaryFolder(t);
    const { printed, ended } = startWith(launcher, scratch, [
      ...["launch", "-n", "2", "--", "generate", checkpointFolder("demo-lm")],
      ...[...GENERATE, "--mesh", "ep=2"],
    ]);
    await printed;
    const rank = rankOf(launcher, scratch, 1);
    t.ok(rank !== undefined && process.kill(rank, "SIGKILL"));
    const { code, err } = await ended;
    t.equal(code, 3);
    t.match(
      withoutMpi(err),
      /^Cannot finish: rank 1 on \S+ was killed by signal 9( .*)?\. Start the command again\n$/,
    );
    const job = jobOf(scratch);
    t.strictSame(await processesLeft(job), []);
    t.notOk(existsSync(job));
  });
}
