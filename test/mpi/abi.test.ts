// Detection of MPI libraries and launchers from their output. Loads and starts nothing.
import { realpathSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { hostsFor, parseHosts } from "../../cli/launch/hosts_file.ts";
import {
  launcherArguments,
  launcherProgram,
  LauncherText,
  mpiFamily,
} from "../../cli/launch/mpi_launcher.ts";
import {
  begunLine,
  describeEnd,
  failedLine,
  parseRankLine,
  type RankFailure,
  type StoppedRank,
} from "../../cli/launch/rank_lines.ts";
import { ABIS, detectAbi, libraryNames } from "../../runtime/mpi/abi.ts";

t.test("detectAbi() prefers the standard interface", (t) => {
  const facts = { standardMajor: 0, hasOpenMpiWorld: false, version: "" };
  const detect = (some: Partial<typeof facts>) =>
    detectAbi({ ...facts, ...some });
  t.equal(
    detect({ standardMajor: 1, hasOpenMpiWorld: true }),
    ABIS.standard,
  );
  t.equal(detect({ hasOpenMpiWorld: true }), ABIS.openMpi);
  t.equal(detect({ version: "MPICH Version: 4.2.1" }), ABIS.mpich);
  t.equal(detect({ version: "Intel(R) MPI Library 2021" }), ABIS.mpich);
  t.equal(detect({ version: "Some MPI" }), undefined);
  t.end();
});

t.test("libraryNames() returns libraries of the launcher's family", (t) => {
  const openMpi = libraryNames("linux", { OMPI_COMM_WORLD_SIZE: "2" });
  t.ok(openMpi.includes("libmpi.so.40") && !openMpi.includes("libmpi.so.12"));
  const mpich = libraryNames("linux", { PMI_RANK: "0" });
  t.ok(mpich.includes("libmpi.so.12") && !mpich.includes("libmpi.so.40"));
  t.strictSame(libraryNames("linux", { PMI_PORT: "far:4567" }), mpich);
  t.ok(libraryNames("linux", {}).includes("libmpi.so.40"));
  t.strictSame(libraryNames("plan9", {}), []);
  t.end();
});

t.test("mpiFamily() detects both launchers", (t) => {
  t.equal(mpiFamily("mpirun (Open MPI) 5.0.7"), "openMpi");
  t.equal(mpiFamily("HYDRA build details:\n    Version: 4.2.1"), "mpich");
  t.equal(mpiFamily("mpirun: not found"), undefined);
  t.end();
});

t.test("launcherProgram() follows links to MPICH's launcher", (t) => {
  const installed = realpathSync(t.testdir({ bin: {}, links: {} }));
  const real = path.join(installed, "bin", "mpiexec.hydra");
  writeFileSync(real, "");
  const links = path.join(installed, "links");
  symlinkSync(real, path.join(links, "mpirun"));
  const searched = ["/missing", links].join(path.delimiter);
  t.equal(launcherProgram("mpich", searched), real);
  t.equal(launcherProgram("mpich", "/missing"), "mpirun");
  // Open MPI finds its installation by the name of the link.
  t.equal(launcherProgram("openMpi", searched), "mpirun");
  t.end();
});

/**
 * Reads a text in chunks of seven characters. Returns the output, reported events, whether a failure was detected, and
 * its cause.
 */
function read(family: "openMpi" | "mpich", text: string) {
  const output: string[] = [];
  const reported: string[] = [];
  let failed = false;
  const reader = new LauncherText(family, {
    say: (line) => output.push(line),
    reported: ({ kind }) => reported.push(kind),
    failed: () => {
      failed = true;
    },
  });
  for (let at = 0; at < text.length; at += 7) {
    reader.push(text.slice(at, at + 7));
  }
  reader.end();
  return { output, reported, failed, cause: reader.cause() };
}

const RULE = "-".repeat(74);

t.test("LauncherText separates a rank's line from a library's", (t) => {
  const line = "\x1estarted 2 far 7";
  t.match(
    read("openMpi", `[near][frag_send] ${line}\npeer: far writev failed\n`),
    {
      output: ["[near][frag_send] peer: far writev failed"],
      reported: ["started"],
    },
  );
  t.match(read("openMpi", `[near] ${line}\n`), { output: ["[near] "] });
  t.end();
});

t.test("LauncherText detects messages of Open MPI's launcher", (t) => {
  t.strictSame(
    read(
      "openMpi",
      `a notice\n[warn] Epoll MOD(1) on fd 22 failed. Old events were 6\n${RULE}\nprterun noticed that process rank 3 with PID 71 on node far exited on\nsignal 9 (Killed).\n${RULE}\n\0`,
    ),
    {
      output: ["a notice"],
      reported: [],
      failed: true,
      cause:
        "mpirun says 'prterun noticed that process rank 3 with PID 71 on node far exited on signal 9 (Killed).'",
    },
  );
  t.strictSame(
    read("openMpi", `${RULE}\nNo network was found.\n${RULE}\n`),
    {
      output: ["No network was found."],
      reported: [],
      failed: false,
      cause: undefined,
    },
    "other messages are passed on",
  );
  // Text of Open MPI 4.
  const text =
    `${RULE}\nPrimary job  terminated normally, but 1 process returned\na non-zero exit code. Per user-direction, the job has been aborted.\n${RULE}\n`;
  t.match(read("openMpi", text), {
    output: [],
    failed: true,
    cause: /^mpirun says 'Primary job terminated normally, but 1 process /,
  });
  t.end();
});

t.test("LauncherText extracts lines of ranks from MPICH's launcher", (t) => {
  const line = "\x1estarted 1 far 71";
  t.strictSame(
    read(
      "mpich",
      `${line}\n${
        "=".repeat(83)
      }\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n\x1eended 1 far 137 in step 'x y'\n`,
    ),
    {
      output: [],
      reported: ["started", "failed"],
      failed: true,
      cause:
        "mpirun says 'BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES'",
    },
  );
  t.end();
});

t.test("parseRankLine() reads the lines that ranks write", (t) => {
  const failure = {
    rank: 2,
    host: "far",
    code: 1,
    step: "in step 'x'",
    message: "Cannot read 'a\nb': no. Do",
  };
  t.strictSame(parseRankLine(failedLine(failure)), { kind: "failed", failure });
  t.strictSame(parseRankLine("\x1eended 1 far 139 after step 'x y'"), {
    kind: "failed",
    failure: { rank: 1, host: "far", code: 139, step: "after step 'x y'" },
  });
  t.strictSame(parseRankLine("\x1estarted 1 far 71"), {
    kind: "started",
    process: { rank: 1, host: "far", pid: 71 },
  });
  t.strictSame(parseRankLine("\x1estopped 1 far 2 in step 'x y'"), {
    kind: "stopped",
    stopped: { rank: 1, host: "far", seconds: 2, step: "in step 'x y'" },
  });
  t.strictSame(parseRankLine(begunLine()), { kind: "begun" });
  t.equal(parseRankLine("ended 1 far 139"), undefined);
  t.end();
});

t.test("describeEnd() names the rank that caused the end", (t) => {
  const of = (rank: number, some: Partial<RankFailure>): RankFailure => ({
    rank,
    host: "far",
    code: 3,
    step: "in step 'x'",
    ...some,
  });
  const started = [0, 1, 2].map((rank) => ({ rank, host: "far", pid: rank }));
  const stopped = new Map<number, StoppedRank>();
  const end = (...failures: RankFailure[]) =>
    describeEnd({ failures, started, stopped });
  const wait = {
    message: "Cannot continue with step 'x': y",
    consequence: true,
  };
  t.equal(end(), undefined);
  t.strictSame(
    end(
      of(0, wait),
      of(2, { code: 143 }),
      of(0, { code: 14 }),
      of(2, { code: 14 }),
      of(1, { code: 137 }),
    ),
    {
      text:
        "Cannot finish: rank 1 on far was killed by signal 9 in step 'x'. Start the command again",
      code: 3,
    },
    "a killed rank precedes ranks that wait for it or are terminated",
  );
  t.strictSame(
    end(
      of(2, { code: 1, message: "Cannot a" }),
      of(1, { code: 1, message: "Cannot a" }),
      of(0, wait),
    ),
    { text: "rank 1 on far in step 'x': Cannot a", code: 1 },
    "the lowest rank of equal messages",
  );
  t.strictSame(
    end(of(2, wait), of(0, wait)),
    {
      text:
        "rank 0 on far: Cannot continue with step 'x': y. Nothing was heard from rank 1 on far",
      code: 3,
    },
    "the silent rank if all others wait",
  );
  stopped.set(1, { rank: 1, host: "far", seconds: 2, step: "in step 'x'" });
  const stop = {
    text:
      "Cannot finish: a signal stopped rank 1 on far in step 'x', and nobody continued it. Start the command again",
    code: 3,
  };
  t.strictSame(end(), stop, "a stopped rank");
  t.strictSame(
    end(of(0, wait), of(1, { code: 137 })),
    stop,
    "a stopped rank that others wait for",
  );
  t.match(
    end(of(2, { code: 139 })),
    { text: /signal 11/ },
    "failure of another rank",
  );
  t.end();
});

t.test("launcherArguments() passes hosts to both launchers in one format", (t) => {
  const hosts = parseHosts(
    "# two machines\nnear slots=2\n\n far  # one rank\nspare slots=8\n",
    "f",
  );
  t.strictSame(hosts, [
    { name: "near", slots: 2 },
    { name: "far", slots: 1 },
    { name: "spare", slots: 8 },
  ]);
  const options = { ranks: 4, root: false, hosts: hostsFor(hosts, 4, "f") };
  for (const family of ["openMpi", "mpich"] as const) {
    const list = launcherArguments(family, options)
      .find((argument) => argument.startsWith("near"));
    t.equal(list, "near:2,far:1,spare:1");
  }
  t.throws(() => hostsFor(hosts.slice(0, 2), 4, "f"), {
    message:
      "Cannot start 4 ranks: the hosts of 'f' have 3 slots. Add hosts, or 'slots=N' after a name",
  });
  for (const text of ["a slots=0", "a b", "-x", "a:2"]) {
    t.throws(() => parseHosts(text, "f"), { name: "DataError" }, text);
  }
  t.throws(() => parseHosts("a\na slots=2", "f"), {
    message: /'a' appears twice/,
  });
  t.end();
});
