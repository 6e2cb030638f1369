// A disk that fails at any call of a load, of a run's outputs, or of a save: there is a sentence, what was there is whole,
// and nothing is left behind.
// needs: cpu
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { type Fault, faultyDisk } from "./helpers/faulty_disk.ts";
import {
  contents,
  readOnDisk,
  TEXT,
  tinyModel,
} from "./helpers/tiny_training.ts";

const FAULTS: readonly Fault[] = ["EIO", "ENOSPC", "EINTR", "short"];

const STATES = {
  EIO: "the disk reports an error. Check the disk",
  ENOSPC: "the disk is full. Free some space",
  EINTR: "it was interrupted. Start again",
  short: "nothing",
} as const;

/** Whether a command said what the disk did, and nothing else. */
function isNamed(err: string, fault: Fault): boolean {
  return /^Cannot (read|write) '[^']+': /.test(err) &&
    err.endsWith(`': ${STATES[fault]}\n`);
}

/** The first and the last call of each kind: those between are of the same lines, for other tensors. */
function callsOf(kinds: readonly string[]) {
  return kinds.flatMap((kind, at) =>
    kinds.indexOf(kind) === at || kinds.lastIndexOf(kind) === at
      ? [{ kind, at }]
      : []
  );
}

t.test("a run", async (t) => {
  const folder = temporaryFolder(t);
  const checkpoint = path.join(folder, "model");
  mkdirSync(checkpoint);
  for (const name of ["config.json", "model.safetensors"]) {
    cpSync(
      path.join(checkpointFolder("mixtral-6e"), name),
      path.join(checkpoint, name),
    );
  }
  const inputs = path.join(folder, "in");
  await writeRaw(inputs, { input_ids: integers([1, 3], [5, 6, 7]) });
  const outputs = path.join(folder, "out");
  const run = async (at: number, fault: Fault) => {
    writeFileSync(outputs, "what was there");
    const { disk, kinds } = faultyDisk(at, fault);
    const { code, err } = await switchyard([
      ...["run", checkpoint, "--inputs", inputs, "--outputs", outputs],
      ...["--adapter", "cpu"],
    ], nodeFiles(disk));
    const left = readFileSync(outputs);
    t.strictSame(readdirSync(folder).sort(), ["in", "model", "out"]);
    return { code, err, kinds, left };
  };
  const good = await run(-1, "short");
  t.equal(good.code, 0, good.err);
  const calls = callsOf(good.kinds);
  t.ok(calls.length > 15, `${calls.length} calls`);
  let failed = 0;
  for (const [n, { at }] of calls.entries()) {
    const fault = FAULTS[n % FAULTS.length]!;
    const { code, err, left } = await run(at, fault);
    const what = `${fault} at call ${at}: ${err}`;
    if (code === 0) {
      t.strictSame(left, good.left, what);
      continue;
    }
    failed++;
    t.equal(code, 3, what);
    t.ok(isNamed(err, fault), what);
    const before = left.toString() === "what was there";
    t.ok(before || left.equals(good.left), `${what}: old or new, and whole`);
  }
  t.ok(failed > calls.length / 2, `${failed} failed`);
});

/** What a save does besides loading, which a run does too: locks, what is written and put in its place, what is removed. */
const SAVES =
  /training\.lock|rename|^rm |mkdir|readdir|(handle \w+|open) \.(model|optimizer|config|generation|tokenizer|special)/;

t.test("a save", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const out = path.join(folder, "out"), first = path.join(folder, "first");
  const train = async (argv: string[], files = nodeFiles()) =>
    await switchyard(["train", ...argv, "--adapter", "cpu", "--json"], files);
  const begun = await train([
    ...[model, "--data", TEXT, "--out", first, "--steps", "1"],
    ...["--batch", "2", "--length", "8"],
  ]);
  t.equal(begun.code, 0, begun.err);
  const resume = async (at: number, fault: Fault) => {
    rmSync(out, { recursive: true, force: true });
    cpSync(first, out, { recursive: true });
    const { disk, kinds } = faultyDisk(at, fault);
    const { code, err } = await train([
      ...[out, "--data", TEXT, "--out", out, "--resume", "--steps", "2"],
    ], nodeFiles(disk));
    return { code, err, kinds };
  };
  const good = await resume(-1, "short");
  t.equal(good.code, 0, good.err);
  const after = await contents(out);
  // The last of each kind is of what is saved; a lock has the others.
  const chosen = callsOf(good.kinds).filter(({ kind, at }) =>
    SAVES.test(kind) && good.kinds.lastIndexOf(kind) === at
  );
  t.ok(chosen.length > 20, `${chosen.length} calls`);
  let failed = 0;
  for (const [n, { kind, at }] of chosen.entries()) {
    const fault = FAULTS[n % 3]!;
    const { code, err } = await resume(at, fault);
    const what = `${fault} at '${kind}' (call ${at}): ${err}`;
    if (code === 0) {
      t.ok(isDeepStrictEqual(await contents(out), after), what);
      continue;
    }
    failed++;
    t.equal(code, 3, what);
    t.ok(isNamed(err, fault), what);
    // Every tensor of the checkpoint that counts is what its hash says.
    t.ok([1, 2].includes((await readOnDisk(out)).step), what);
    const names = Object.keys(await contents(out));
    t.notOk(names.find((name) => /^\.|\.lock/.test(name)), what);
    if (n % 12 > 0) continue;
    // What a broken save has written, the next one removes.
    const again = await train([
      ...[out, "--data", TEXT, "--out", out, "--resume", "--steps", "2"],
    ]);
    t.equal(again.code, 0, `${what}, then ${again.err}`);
    t.ok(
      isDeepStrictEqual(await contents(out), after),
      `${what}: it goes on`,
    );
  }
  t.ok(failed > chosen.length / 2, `${failed} of ${chosen.length} failed`);
});
