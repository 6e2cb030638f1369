// A folder has one training at a time. The lock's owner is named, and a killed owner loses the lock.
// needs: cpu
// rotates with: cli/lock_
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { readOnDisk, TEXT, tinyModel } from "./helpers/tiny_training.ts";

function training(model: string, out: string, more: string[]): string[] {
  return [
    ...["train", model, "--data", TEXT, "--out", out, "--json"],
    ...["--adapter", "cpu", ...more],
  ];
}

const BEGIN = ["--batch", "2", "--length", "8"];

t.test("a folder has one training at a time", async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  const child = spawn(process.execPath, [
    fileURLToPath(new URL("../bin/switchyard.mjs", import.meta.url)),
    ...training(model, out, [
      ...BEGIN,
      "--steps",
      "1000000",
      "--save-every",
      "1",
    ]),
  ], { stdio: ["ignore", "pipe", "inherit"] });
  t.teardown(() => child.kill("SIGKILL"));
  await once(child.stdout, "data");
  child.stdout.resume();
  // Stops the training, so that its files do not change.
  child.kill("SIGSTOP");
  const lock = path.join(out, "training.lock");
  const { since } = JSON.parse(readFileSync(lock, "utf8"));
  const { step, shards: [shard] } = await readOnDisk(out);
  // As if the other training removes a file that its next step replaces.
  const [file, aside] = [path.join(out, shard!), path.join(out, "aside")];
  renameSync(file, aside);
  t.strictSame(
    await switchyard(training(out, out, ["--resume", "--steps", "9"])),
    {
      code: 1,
      out: "",
      err:
        `Cannot train into '${out}': another training does, process ${child.pid} on ${hostname()}, since ${since}. Wait until it ends, or give another folder\n`,
    },
  );
  renameSync(aside, file);
  t.equal((await readOnDisk(out)).step, step, "nothing is written");
  child.kill("SIGKILL");
  await once(child, "close");
  t.ok(existsSync(lock), "the killed training left its lock");
  const { step: last } = await readOnDisk(out);
  const unfinished = path.join(out, `.${shard}.${crypto.randomUUID()}`);
  const other = path.join(out, `.notes.${crypto.randomUUID()}`);
  for (const name of [unfinished, other]) writeFileSync(name, "");
  // Nothing is saved: all steps are done.
  const done = await switchyard(
    training(out, out, ["--resume", "--steps", `${last}`]),
  );
  t.equal(done.code, 0, done.err);
  t.notOk(existsSync(unfinished), "a file of an interrupted save is removed");
  t.ok(existsSync(other), "another file is retained");
  const resumed = await switchyard(
    training(out, out, ["--resume", "--steps", `${last + 1}`]),
  );
  t.equal(resumed.code, 0, resumed.err);
  t.equal((await readOnDisk(out)).step, last + 1);
  t.notOk(existsSync(lock), "the lock is released");
});

t.test("a lock of another host or an unknown owner is respected", async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  const lock = path.join(out, "training.lock");
  mkdirSync(out);
  const since = "2026-01-02T03:04:05.678Z";
  const owners: readonly (readonly [string, string])[] = [
    [
      JSON.stringify({
        id: crypto.randomUUID(),
        pid: 7,
        host: "elsewhere",
        since,
      }),
      `process 7 on elsewhere, since ${since}`,
    ],
    ["?", "an unknown process"],
    ["", "an unknown process"],
  ];
  for (const [text, owner] of owners) {
    writeFileSync(lock, text);
    t.strictSame(
      await switchyard(training(model, out, [...BEGIN, "--steps", "1"])),
      {
        code: 1,
        out: "",
        err:
          `Cannot train into '${out}': another training does, ${owner}. Wait until it ends, or remove '${lock}' if it has\n`,
      },
    );
    const written = readdirSync(out).filter((name) =>
      !name.startsWith("tokens-")
    );
    t.strictSame(
      written,
      ["training.lock"],
      "only tokens of the text are written",
    );
    t.equal(readFileSync(lock, "utf8"), text);
  }
});
