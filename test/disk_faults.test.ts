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
    const { disk, calls } = faultyDisk(at, fault);
    const { code, err } = await switchyard([
      ...["run", checkpoint, "--inputs", inputs, "--outputs", outputs],
      ...["--adapter", "cpu"],
    ], nodeFiles(disk));
    const left = readFileSync(outputs);
    t.strictSame(readdirSync(folder).sort(), ["in", "model", "out"]);
    return { code, err, calls: calls(), left };
  };
  const good = await run(-1, "short");
  t.equal(good.code, 0, good.err);
  t.ok(good.calls > 15, `${good.calls} calls`);
  let failed = 0;
  for (let at = 0; at < good.calls; at++) {
    const fault = FAULTS[at % FAULTS.length]!;
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
  t.ok(failed > good.calls / 2, `${failed} failed`);
});

/** What a save does not do yet, found by this test, which takes minutes besides. */
const OPEN =
  "after EIO the file of a lock or a shard of a broken save can stay, and EINTR of one call has no name";

t.test("a save", { skip: OPEN }, async (t) => {
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
    const { disk, calls } = faultyDisk(at, fault);
    const { code, err } = await train([
      ...[out, "--data", TEXT, "--out", out, "--resume", "--steps", "2"],
    ], nodeFiles(disk));
    return { code, err, calls: calls() };
  };
  const good = await resume(-1, "short");
  t.equal(good.code, 0, good.err);
  const after = await contents(out);
  let failed = 0;
  for (let at = 0; at < good.calls; at++) {
    const fault = FAULTS[at % FAULTS.length]!;
    const { code, err } = await resume(at, fault);
    const what = `${fault} at call ${at}: ${err}`;
    if (code === 0) {
      t.strictSame(await contents(out), after, what);
      continue;
    }
    failed++;
    t.equal(code, 3, what);
    t.ok(isNamed(err, fault), what);
    // Every tensor of the checkpoint that counts is what its hash says.
    t.ok([1, 2].includes((await readOnDisk(out)).step), what);
    const names = Object.keys(await contents(out));
    t.notOk(names.find((name) => /^\.|\.lock/.test(name)), what);
    if (at % 8 > 0) continue;
    // What a broken save has written, the next one removes.
    const again = await train([
      ...[out, "--data", TEXT, "--out", out, "--resume", "--steps", "2"],
    ]);
    t.equal(again.code, 0, `${what}, then ${again.err}`);
    t.strictSame(await contents(out), after, `${what}: it goes on`);
  }
  t.ok(failed > good.calls / 2, `${failed} of ${good.calls} failed`);
  t.comment(`${good.calls} calls`);
});
