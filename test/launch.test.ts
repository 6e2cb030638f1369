// Ends of a job as `launch` sees them, with a script in place of mpirun.
// needs: mpi
import { chmodSync, readdirSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import process from "node:process";
import { Readable, Writable } from "node:stream";
import t, { type Test } from "tap";
import { adapterSystemInfo } from "../cli/adapter_system_info.ts";
import { hubSettings } from "../cli/hub_settings.ts";
import type { CliIo } from "../cli/io.ts";
import { jobFolder, runJob } from "../cli/launch/mpi_job.ts";
import { packageFile } from "../cli/package_file.ts";
import { files } from "./helpers/checkpoints.ts";
import { CACHE, temporaryFolder } from "./helpers/cli.ts";
import { processesWith } from "./helpers/mpi.ts";

/** Runs a job whose launcher is a shell script. `$1` is the job folder; `rank R PROGRAM…` runs a rank. */
async function run(
  t: Test,
  script: string,
  { freeingMs, deadline = 600 }: {
    readonly freeingMs?: number;
    readonly deadline?: number;
  } = {},
) {
  const folder = temporaryFolder(t);
  const launcher = path.join(folder, "mpirun");
  const rank = `rank() {
  OMPI_COMM_WORLD_RANK=$1; export OMPI_COMM_WORLD_RANK; shift
  exec sh "${packageFile("bin/rank.sh")}" "$job" "$@" "$job"
}`;
  writeFileSync(launcher, `#!/bin/sh\njob=$1\n${rank}\n${script}\n`);
  chmodSync(launcher, 0o755);
  const before = process.env["PATH"];
  process.env["PATH"] = `${folder}:${before}`;
  let out = "", err = "";
  const io: CliIo = {
    out: (text) => {
      out += text;
      return Promise.resolve();
    },
    err: (line) => {
      err += line;
    },
    terminal: false,
    progressLines: false,
    errorStream: new Writable(),
    files,
    cache: CACHE,
    input: Readable.from([]),
    hub: hubSettings({}),
    environment: {},
    threads: 1,
    graphics: false,
    systemInfo: adapterSystemInfo,
    now: () => performance.now(),
    bytesRead: () => 0,
    browse: () => {},
    onInterrupt: () => () => {},
  };
  try {
    const job = jobFolder();
    const ended = await runJob(io, {
      argv: [job],
      family: "openMpi",
      folder: job,
      deadline,
    }, freeingMs === undefined ? {} : { freeingMs });
    if (process.platform === "linux") {
      t.strictSame(processesWith(job), [], "no process is left");
    }
    const left = readdirSync(path.dirname(job)).filter((name) =>
      name.startsWith(path.basename(job))
    );
    t.strictSame(left, [], "no file is left");
    const { code, finished, late } = ended;
    return { code, finished, late, failure: ended.failure, out, err };
  } finally {
    process.env["PATH"] = before;
  }
}

const DONE = `printf 'result\\n\\036%s\\n' "$1"`;

t.test("Open MPI uses a folder per job", {
  skip: process.platform === "win32" && "Windows has no shell scripts",
}, async (t) => {
  const folder = '"$PRTE_MCA_prte_local_tmpdir_base"';
  const ended = await run(t, `mkdir ${folder} && ${DONE} && > ${folder}/file`);
  t.match(ended, { code: 0, finished: true, err: "" });
});

t.test("finished ranks may take long to free their memory", {
  skip: process.platform === "win32" && "Windows has no shell scripts",
}, async (t) => {
  t.strictSame(await run(t, `${DONE}; sleep 4`), {
    code: 0,
    finished: true,
    late: false,
    failure: undefined,
    out: "result\n",
    err: "",
  });
  const { code: _, ...ended } = await run(t, `${DONE}; sleep 60`, {
    freeingMs: 300,
  });
  t.strictSame(ended, {
    finished: true,
    late: true,
    failure: undefined,
    out: "result\n",
    err: "",
  }, "but not indefinitely");
});

t.test("an unfinished job is not reported as finished", {
  skip: process.platform === "win32" && "Windows has no shell scripts",
}, async (t) => {
  t.strictSame(await run(t, `printf 'half'; exit 0`), {
    code: 0,
    finished: false,
    late: false,
    failure: undefined,
    out: "half",
    err: "",
  });
});

t.test("a rank whose shell was killed is terminated", {
  skip: process.platform !== "linux" && "there is no /proc",
}, async (t) => {
  const script = `(rank 0 sh -c 'while :; do sleep 1; done') &
sleep 0.5; kill -9 $!; exit 1`;
  t.match(await run(t, script), { code: 1, finished: false, out: "" });
});

/** Reason for skipping tests that stop ranks, or false. */
const skip = process.platform === "win32" && "Windows has no signals";

t.test("a rank stopped by a signal is reported with its step", {
  skip,
}, async (t) => {
  const stop = `sh -c 'echo "in step x" >&0; kill -STOP $$'`;
  const { failure } = await run(
    t,
    `(rank 0 sleep 1000) & (rank 1 ${stop}) & wait`,
    { deadline: 1 },
  );
  t.strictSame(failure, {
    text:
      `Cannot finish: a signal stopped rank 1 on ${hostname()} in step x, and nobody continued it. Start the command again`,
    code: 3,
  });
});

t.test("a rank may be stopped for a while", { skip }, async (t) => {
  const pause = `sh -c '(sleep 3; kill -CONT $$) & kill -STOP $$; wait'`;
  t.match(await run(t, `(rank 0 ${pause}) && ${DONE}`), {
    code: 0,
    finished: true,
    failure: undefined,
  });
});

t.test("a rank stopped after the result is terminated", {
  skip,
}, async (t) => {
  const script = `${DONE}; rank 0 sh -c 'kill -STOP $$'`;
  t.match(await run(t, script, { deadline: 1 }), {
    finished: true,
    late: true,
    out: "result\n",
  });
});

t.test("ranks left by the launcher are terminated", {
  skip,
}, async (t) => {
  const ranks = [0, 1, 2].map((rank) =>
    `(rank ${rank} sh -c 'sleep 1000; :' </dev/null >/dev/null 2>&1) &`
  );
  await run(t, `${ranks.join("\n")}\nexit 1`);
});
