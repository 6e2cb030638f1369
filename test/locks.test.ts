// A lock has one owner, for every order of calls, with killed processes and owners in other namespaces.
// rotates with: cli/lock_
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import t from "tap";
import { nodeProcesses, type Owner } from "../cli/lock_owner.ts";
import { files } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { startedProgram } from "./helpers/compiled.ts";
import type { ContenderTask } from "./helpers/lock_contender.ts";
import { exploreLocks, type LockCase } from "./helpers/lock_model.ts";

/** Cases explored in every order of calls, and the number of killed contenders. */
const CASES: readonly (readonly [LockCase, number])[] = [
  [{ contenders: 3, before: "no lock", links: true }, 1],
  [{ contenders: 3, before: "a lock of a killed process", links: true }, 0],
  ...[true, false].map((links) =>
    [{
      contenders: 2,
      before: "a lock and a claim on it, both of killed processes",
      links,
    }, 1] as const
  ),
];

for (const [of, kills] of CASES) {
  const { contenders, before, links } = of;
  const name = `${contenders} contenders and ${before}, ${
    kills > 0 ? "one of them killed" : "none of them killed"
  }${links ? "" : ", no hard links"}: every order of their calls`;
  t.test(name, async (t) => {
    const { states, ends, found } = await exploreLocks(of, kills);
    t.comment(`${states} states, ${ends} ends`);
    t.equal(found, undefined);
    t.ok(states > 1000);
  });
}

/** An owner whose process has ended. */
async function killedOwner(): Promise<Owner> {
  const child = spawn(process.execPath, ["-e", ""]);
  await once(child, "close");
  return { ...await nodeProcesses.owner(), pid: child.pid! };
}

/** Starts a process that takes locks, perhaps through another program. */
function startContender(...via: readonly string[]): ChildProcess {
  const line = [
    ...via,
    process.execPath,
    ...startedProgram("test/helpers/lock_contender.ts"),
  ];
  return spawn(line[0]!, line.slice(1), {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
}

async function tell(child: ChildProcess, task: ContenderTask): Promise<number> {
  const answer = once(child, "message") as Promise<[number]>;
  child.send(task);
  return (await answer)[0];
}

t.test("one of 24 contenders in 6 processes acquires each of 60 locks", async (t) => {
  const folder = temporaryFolder(t);
  const children = Array.from({ length: 6 }, () => startContender());
  t.teardown(() => children.forEach((child) => child.kill()));
  const owner = await killedOwner();
  for (let round = 0; round < 60; round++) {
    const lock = path.join(folder, "lock");
    const id = crypto.randomUUID();
    writeFileSync(lock, JSON.stringify({ ...owner, id }));
    const taken = await Promise.all(
      children.map((child) => tell(child, { lock, times: 4 })),
    );
    t.equal(taken.reduce((a, b) => a + b), 1, `lock ${round}`);
    await Promise.all(children.map((child) => tell(child, "release")));
    t.strictSame(readdirSync(folder), [], "no file is left");
  }
});

t.test("a lock remains while its owner runs or its state is unknown", async (t) => {
  const lock = path.join(temporaryFolder(t), "lock");
  const here = await nodeProcesses.owner();
  const ended = await killedOwner();
  const owners: {
    readonly [name: string]: [Owner, "runs" | "unknown" | "ended"];
  } = {
    "this process": [here, "runs"],
    "one that has ended": [ended, "ended"],
    "one of another host": [{ ...ended, host: "elsewhere" }, "unknown"],
    "one of another machine": [{ ...ended, machine: "other" }, "unknown"],
    "one of another PID namespace": [
      { ...ended, namespace: "pid:[1]" },
      "unknown",
    ],
    "one of another boot, outside of containers": [
      { ...here, boot: "before" },
      here.machine !== undefined && here.namespace === "pid:[4026531836]"
        ? "ended"
        : "unknown",
    ],
    "an earlier one with the same pid": [
      { ...here, start: "1" },
      existsSync("/proc/self/stat") ? "ended" : "runs",
    ],
  };
  for (const [name, [owner, state]] of Object.entries(owners)) {
    writeFileSync(lock, JSON.stringify(owner));
    const taken = await files.lock(lock);
    if (state === "ended") {
      t.ok("release" in taken, name);
      if ("release" in taken) await taken.release();
    } else {
      t.strictSame(taken, {
        owner: `process ${owner.pid} on ${owner.host}, since ${owner.since}`,
        gone: state === "unknown",
      }, name);
    }
  }
});

/** Shell loop of a child that ends when its parent has become another program. */
const ENDS_AFTER_EXEC =
  "while [ $(cat /proc/$$/comm) = sh ]; do sleep 0.01; done";

t.test("a zombie process counts as ended", {
  skip: !existsSync("/proc/self/stat") && "there is no /proc",
}, async (t) => {
  const lock = path.join(temporaryFolder(t), "lock");
  // The shell starts a process and becomes `sleep`, which never waits for it, unlike a shell. Then the process ends.
  const parent = spawn("sh", [
    "-c",
    `${ENDS_AFTER_EXEC} & echo $!; exec sleep 1000`,
  ]);
  t.teardown(() => parent.kill("SIGKILL"));
  const [pid] = await once(parent.stdout, "data");
  const owner = { ...await nodeProcesses.owner(), pid: Number(pid) };
  const { start: _, ...unstarted } = owner;
  const { stateOf } = nodeProcesses;
  while (await stateOf({ ...owner, start: undefined }) === "runs");
  t.ok(process.kill(owner.pid, 0), "the process exists");
  writeFileSync(lock, JSON.stringify(unstarted));
  t.ok("release" in await files.lock(lock));
});

const UNSHARE = ["unshare", "--user", "--pid", "--fork", "--mount-proc"];

t.test("a process in another PID namespace keeps its lock", {
  skip: spawnSync(UNSHARE[0]!, [...UNSHARE.slice(1), "true"]).status !== 0 &&
    "there are no PID namespaces for this user",
}, async (t) => {
  const lock = path.join(temporaryFolder(t), "lock");
  const child = startContender(...UNSHARE, "--kill-child");
  t.teardown(() => child.kill("SIGKILL"));
  t.equal(await tell(child, { lock, times: 1 }), 1);
  t.match(await files.lock(lock), { owner: /^process \d+ on /, gone: true });
  await tell(child, "release");
  t.strictSame(existsSync(lock), false);
});
