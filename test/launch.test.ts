// How `launch` sees a job end, with a program in the place of mpirun.
import { chmodSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { Readable, Writable } from "node:stream";
import t from "tap";
import { adapterPlaces } from "../cli/adapter_places.ts";
import type { CliIo } from "../cli/io.ts";
import { jobFolder, runJob } from "../cli/mpi_job.ts";
import { files } from "./helpers/checkpoints.ts";
import { CACHE, temporaryFolder } from "./helpers/cli.ts";

/** Run a job whose launcher is a shell script; `$1` is the folder of the job. */
async function run(
  t: { teardown(fn: () => void): unknown },
  script: string,
  freeingMs?: number,
) {
  const folder = temporaryFolder(t);
  const launcher = path.join(folder, "mpirun");
  writeFileSync(launcher, `#!/bin/sh\n${script}\n`);
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
    errorStream: new Writable(),
    files,
    cache: CACHE,
    input: Readable.from([]),
    threads: 1,
    graphics: false,
    places: adapterPlaces,
    now: () => performance.now(),
    browse: () => {},
    onInterrupt: () => () => {},
  };
  try {
    const job = jobFolder();
    const ended = await runJob(io, {
      argv: [job],
      family: "openMpi",
      folder: job,
    }, freeingMs === undefined ? {} : { freeingMs });
    const { code, finished, late } = ended;
    return { code, finished, late, failure: ended.failure, out, err };
  } finally {
    process.env["PATH"] = before;
  }
}

const DONE = `printf 'result\\n\\036%s\\n' "$1"`;

t.test("ranks that are done may take long to free their memory", {
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
  const { code: _, ...ended } = await run(t, `${DONE}; sleep 60`, 300);
  t.strictSame(ended, {
    finished: true,
    late: true,
    failure: undefined,
    out: "result\n",
    err: "",
  }, "but not for ever");
});

t.test("a job that is not done is not taken for one", {
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
