// `devices --all` and `plan --target`: a measurement, a prediction from it, and rejected input.
// needs: cpu, mpi
// rotates with: engine/planner/machine/
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import t from "tap";
import {
  type Machine,
  machineRanks,
  parseMachine,
  type PlanSummary,
} from "../spec/mod.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { LAUNCHERS, skipWithoutMpi, startWith } from "./helpers/mpi.ts";
import { isInTurn } from "./helpers/seed.ts";

const DEMO = checkpointFolder("demo-lm");

/** Accuracy does not matter here, so one repetition suffices. */
const ONCE = ["--repetitions", "1"];

/** Checks that measured numbers are plausible. */
function checkMeasured(t: Asserts, machine: Machine, ranks: number): void {
  t.equal(machineRanks(machine), ranks);
  for (const device of Object.values(machine.devices)) {
    t.ok(device.multiplyAdds > 1e6, `${device.multiplyAdds} multiply-adds`);
    t.ok(device.operations > 1e6, `${device.operations} operations`);
    t.ok(device.bandwidth > 1e6, `${device.bandwidth} B/s`);
    t.ok(device.launch >= 0 && device.launch < 1, `${device.launch} s`);
    t.equal(device.computer, "cpu");
  }
  const { latency, bandwidth } = machine.measured!;
  for (let a = 0; a < ranks; a++) {
    for (let b = 0; b < ranks; b++) {
      if (a === b) t.strictSame([latency[a]![b], bandwidth[a]![b]], [0, 0]);
      else t.ok(latency[a]![b]! > 0 && bandwidth[a]![b]! > 0, `${a} to ${b}`);
    }
  }
}

/** Assertions of a test. */
interface Asserts {
  ok(value: unknown, message: string): unknown;
  equal(found: unknown, wanted: unknown): unknown;
  strictSame(found: unknown, wanted: unknown): unknown;
}

t.test("two ranks of the CPU device are measured, and a step is predicted", async (t) => {
  const file = path.join(temporaryFolder(t), "machine.json");
  const measured = await switchyard([
    ...["devices", "--all", "--devices", "separate", "--adapter", "cpu"],
    ...["--ranks", "2", "--json", "--out", file, ...ONCE],
  ]);
  t.strictSame([measured.code, measured.err], [0, ""]);
  t.equal(measured.out, readFileSync(file, "utf8"), "the file is the output");
  const machine = parseMachine(measured.out);
  checkMeasured(t, machine, 2);
  t.equal(machine.measured!.communicator, "host");
  t.strictSame(Object.keys(machine.links), ["sameHost"]);
  t.equal(machine.hosts[0]!.atOnce, 1, "both ranks compute on the same cores");
  for (const device of Object.values(machine.devices)) {
    t.ok(device.sync! >= 0, "the host's part of an exchange");
  }

  const planned = await switchyard([
    ...["plan", DEMO, "--target", file, "--mesh", "ep=2", "--json"],
  ]);
  t.strictSame([planned.code, planned.err], [0, ""]);
  const { predicted, layers } = JSON.parse(planned.out) as PlanSummary;
  const { seconds, parts } = predicted!.decode!;
  const sum = Object.values(parts).reduce((n, part) => n + part, 0);
  t.ok(Math.abs(sum / seconds - 1) < 1e-9, "the parts sum to the step");
  t.ok(parts.exchange > 0 && parts.launch > 0);
  t.ok(layers.some(({ seconds }) => seconds!.decode!.exchange > 0));
});

if (isInTurn(0, 2)) {
  t.test("exchanges by kernels of ranks that share a device are measured", async (t) => {
    // The table and the file are from one measurement.
    const file = path.join(temporaryFolder(t), "machine.json");
    const adapter = await whyNotNative() === undefined ? "native" : "cpu";
    const { code, out, err } = await switchyard([
      ...["devices", "--all", "--adapter", adapter, "--ranks", "2"],
      ...["--out", file, ...ONCE],
    ]);
    t.strictSame([code, err], [0, ""]);
    t.match(out, /^rank {2}host .*\n0 .*\n1 /);
    t.match(out, "to (local), GB/s");
    const { links, devices } = parseMachine(readFileSync(file, "utf8"));
    t.strictSame(links, {}, "no links are measured");
    const [device] = Object.values(devices);
    t.equal(device!.computer, adapter);
    t.ok(device!.exchange!.operations > 1e6);
    t.equal(device!.sync, undefined, "no exchange uses the host");
    t.ok(device!.reading! > 1e6, `${device!.reading} B/s`);
  });
}

if (isInTurn(1, 2)) {
  // Measurements do not depend on the MPI. test/mpi tests the exchanges of both.
  t.test("two ranks of an MPI are measured", {
    skip: skipWithoutMpi,
  }, async (t) => {
    const scratch = temporaryFolder(t);
    const file = path.join(scratch, "machine.json");
    const { ended } = startWith(
      LAUNCHERS.find(({ skip }) => !skip)!,
      scratch,
      [
        ...["launch", "-n", "2", "--json", "--", "devices", "--all"],
        ...["--adapter", "cpu", "--out", file, ...ONCE],
      ],
    );
    const { code, out, err } = await ended;
    t.equal(code, 0, err);
    t.equal(out, readFileSync(file, "utf8"), "printed once");
    const machine = parseMachine(out);
    checkMeasured(t, machine, 2);
    t.equal(machine.measured!.communicator, "mpi");
  });
}

t.test("incompatible flags, and files that are not machines", async (t) => {
  const scratch = temporaryFolder(t);
  const file = path.join(scratch, "m.json");
  await writeFile(file, '{ "version": 1 }');
  const cases: [argv: string[], code: number, message: RegExp][] = [
    [["plan", DEMO, "--target", file], 1, /'.*m\.json': '\/' has no field/],
    [["plan", DEMO, "--target", "no.json"], 1, /machine 'no\.json'/],
    [["devices", "--out", file], 2, /--out without --all/],
    [["devices", "--ranks", "2"], 2, /--ranks without --all/],
    [["devices", ...ONCE], 2, /--repetitions without --all/],
    [["devices", "-t", "2"], 2, /--threads without --all/],
    [
      ["devices", "--all", "--devices", "mpi", "--ranks", "2"],
      2,
      /--ranks with --devices mpi/,
    ],
  ];
  for (const [argv, code, message] of cases) {
    const { err, ...result } = await switchyard(argv);
    t.match([result.code, err], [code, message], argv.join(" "));
  }
  t.equal(
    readFileSync(file, "utf8"),
    '{ "version": 1 }',
    "the file is unchanged",
  );
});
