// MPI libraries and launchers by what they say of themselves; nothing is loaded or started.
import t from "tap";
import { LauncherText, mpiFamily, rankLine } from "../../cli/mpi_launcher.ts";
import { ABIS, detectAbi, libraryNames } from "../../runtime/mpi/abi.ts";

t.test("detectAbi() asks for the standard interface first", (t) => {
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

t.test("libraryNames() keeps to the launcher's family", (t) => {
  const openMpi = libraryNames("linux", { OMPI_COMM_WORLD_SIZE: "2" });
  t.ok(openMpi.includes("libmpi.so.40") && !openMpi.includes("libmpi.so.12"));
  const mpich = libraryNames("linux", { PMI_RANK: "0" });
  t.ok(mpich.includes("libmpi.so.12") && !mpich.includes("libmpi.so.40"));
  t.ok(libraryNames("linux", {}).includes("libmpi.so.40"));
  t.strictSame(libraryNames("plan9", {}), []);
  t.end();
});

t.test("mpiFamily() knows both launchers", (t) => {
  t.equal(mpiFamily("mpirun (Open MPI) 5.0.7"), "openMpi");
  t.equal(mpiFamily("HYDRA build details:\n    Version: 4.2.1"), "mpich");
  t.equal(mpiFamily("mpirun: not found"), undefined);
  t.end();
});

/** Feed a text in pieces of seven characters; what ranks said, whether a failure was seen, and its cause. */
function read(family: "openMpi" | "mpich", text: string) {
  const said: string[] = [];
  let failed = false;
  const reader = new LauncherText(family, (line) => said.push(line), () => {
    failed = true;
  });
  for (let at = 0; at < text.length; at += 7) {
    reader.push(text.slice(at, at + 7));
  }
  reader.end();
  return { said, failed, cause: reader.cause(), spoke: reader.ranksSpoke };
}

const RULE = "-".repeat(74);

t.test("LauncherText tells ranks from Open MPI's launcher", (t) => {
  t.strictSame(
    read(
      "openMpi",
      `a notice\n${RULE}\nprterun noticed that process rank 3 with PID 71 on node far exited on\nsignal 9 (Killed).\n${RULE}\n\0`,
    ),
    {
      said: ["a notice"],
      failed: true,
      cause: "rank 3 on far was killed by signal 9",
      spoke: false,
    },
  );
  t.strictSame(
    read("openMpi", `${RULE}\nNo network was found.\n${RULE}\n`),
    {
      said: ["No network was found."],
      failed: false,
      cause: undefined,
      spoke: false,
    },
    "a remark is passed on",
  );
  t.match(read("openMpi", "rank 1 on far: Cannot read 'x': no. Do\n"), {
    spoke: true,
  });
  t.end();
});

t.test("LauncherText names the rank whose process MPICH's launcher names", (t) => {
  const ranks = [0, 1].map((rank) =>
    rankLine({ rank, host: "far", pid: 70 + rank })
  ).join("\n");
  t.strictSame(
    read(
      "mpich",
      `${ranks}\n${
        "=".repeat(83)
      }\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 71 RUNNING AT far\n=   EXIT CODE: 9\nYOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n`,
    ),
    {
      said: [],
      failed: true,
      cause: "rank 1 on far was killed by signal 9",
      spoke: false,
    },
  );
  t.end();
});
