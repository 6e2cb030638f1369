// `devices --all` and `plan --machine`: from a measurement to a prediction, and what is refused on the way.
// needs: cpu, mpi
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { type Machine, machineRanks, parseMachine } from "../spec/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { LAUNCHERS, startWith } from "./helpers/mpi.ts";

const DEMO = checkpointFolder("demo-lm");
const LAYER = fileURLToPath(new URL("../examples/layer.ts", import.meta.url));

/** What is measured need only be there: the median of one time is as good as of nine. */
const ONCE = ["--repetitions", "1"];

/** Whether every number that was measured can be one. */
function isSound(t: Asserts, machine: Machine, ranks: number): void {
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

/** What is used of a test. */
interface Asserts {
  ok(value: unknown, message: string): unknown;
  equal(found: unknown, wanted: unknown): unknown;
  strictSame(found: unknown, wanted: unknown): unknown;
}

t.test("two ranks of the CPU device are measured, and a plan is predicted from it", async (t) => {
  const file = path.join(temporaryFolder(t), "machine.json");
  const measured = await switchyard([
    ...["devices", "--all", "--devices", "separate", "--adapter", "cpu"],
    ...["--ranks", "2", "--json", "--out", file, ...ONCE],
  ]);
  t.strictSame([measured.code, measured.err], [0, ""]);
  t.equal(measured.out, readFileSync(file, "utf8"), "the file is the output");
  const machine = parseMachine(measured.out);
  isSound(t, machine, 2);
  t.equal(machine.measured!.communicator, "host");
  t.strictSame(Object.keys(machine.links), ["sameHost"]);
  t.equal(machine.hosts[0]!.atOnce, 1, "both ranks compute on the same cores");
  for (const device of Object.values(machine.devices)) {
    t.ok(device.turn! >= 0, "the host's part of an exchange");
  }

  const predicted = await switchyard([
    ...["plan", DEMO, "--machine", file, "--tokens", "8", "--json"],
  ]);
  t.strictSame([predicted.code, predicted.err], [0, ""]);
  const { meshes, scene } = JSON.parse(predicted.out) as {
    scene: object;
    meshes: {
      mesh: string;
      seconds: number;
      parts: { [part: string]: number };
      layers: { name: string; exchange: number }[];
      why: string;
    }[];
  };
  t.same(scene, { tokens: 8, sequences: 1, past: 0 });
  t.strictSame(meshes.map(({ mesh }) => mesh), ["ep=1", "ep=2"]);
  for (const { mesh, seconds, parts, layers, why } of meshes) {
    const sum = Object.values(parts).reduce((n, part) => n + part, 0);
    t.ok(Math.abs(sum / seconds - 1) < 1e-9, "parts add up to the step");
    t.match(layers.map(({ name }) => name).join(), "begin,layer 0,layer 1");
    t.equal(layers.some(({ exchange }) => exchange > 0), mesh === "ep=2");
    t.match(why, new RegExp(`^${mesh}`));
  }
});

t.test("of ranks that share a device, what exchanges by kernels take is measured", async (t) => {
  // The table and the file are of one measurement.
  const file = path.join(temporaryFolder(t), "machine.json");
  const { code, out, err } = await switchyard([
    ...["devices", "--all", "--adapter", "cpu", "--ranks", "2"],
    ...["--out", file, ...ONCE],
  ]);
  t.strictSame([code, err], [0, ""]);
  t.match(out, /^rank {2}host .*\n0 .*\n1 /);
  t.match(out, "to (local), GB/s");
  const { links, devices } = parseMachine(readFileSync(file, "utf8"));
  t.strictSame(links, {}, "no other way is needed");
  const [device] = Object.values(devices);
  t.ok(device!.exchange!.operations > 1e6);
  t.equal(device!.turn, undefined, "no exchange goes through the host");
  t.ok(device!.reading! > 1e6, `${device!.reading} B/s`);
});

for (const launcher of LAUNCHERS) {
  const { name, skip } = launcher;
  t.test(`two ranks of ${name} are measured`, { skip }, async (t) => {
    const scratch = temporaryFolder(t);
    const file = path.join(scratch, "machine.json");
    const { ended } = startWith(launcher, scratch, [
      ...["launch", "-n", "2", "--json", "--", "devices", "--all"],
      ...["--adapter", "cpu", "--out", file, ...ONCE],
    ]);
    const { code, out, err } = await ended;
    t.equal(code, 0, err);
    t.equal(out, readFileSync(file, "utf8"), "printed once");
    const machine = parseMachine(out);
    isSound(t, machine, 2);
    t.equal(machine.measured!.communicator, "mpi");
  });
}

t.test("predictions of a described machine, as a table", async (t) => {
  const node = fileURLToPath(
    new URL("../examples/cluster/machines/node_8_nvlink.json", import.meta.url),
  );
  const { code, out, err } = await switchyard([
    ...["plan", LAYER, "--machine", node, "--tokens", "1024"],
    ...["--mesh", "ep=4", "--mesh", "ep=2,dp=2", "--skew", "1"],
    ...["--place", "expert=ep,token=dp+ep"],
  ]);
  t.equal(code, 1, "dp is no axis of the first mesh");
  t.equal(out, "");
  t.match(err, /over 'dp': the mesh has no such axis/);
  const two = await switchyard([
    ...["plan", LAYER, "--machine", node, "--tokens", "1024"],
    ...["--mesh", "ep=4", "--mesh", "ep=2,dp=2", "--skew", "1"],
  ]);
  t.strictSame([two.code, two.err], [0, ""]);
  const lines = two.out.split("\n");
  t.match(
    lines[0],
    /^a step of 1024 tokens of 1 sequence after 0 each, experts chosen at random with skew 1, on 'a node of 8 H100/,
  );
  t.match(lines[2], /^mesh +devices +step +speed +launches +arithmetic/);
  t.match(lines[3], /^ep=4 +4 .* 1\.00x .* yes$/);
  t.match(lines[4], /^ep=2,dp=2 +4 .*x .* yes$/);
  t.match(two.out, /^ep=2,dp=2 is .* times as .* as ep=4: .*$/m);
  t.match(two.out, /^ep=4, by layer +compute +exchange +waiting$/m);
});

t.test("with the choices that a run recorded, predicted bytes are those it sent", async (t) => {
  const scratch = temporaryFolder(t);
  const [inputs, outputs] = ["in", "out"].map((name) =>
    path.join(scratch, name)
  ) as [string, string];
  await writeRaw(inputs, {
    input_ids: integers([2, 4], [5, 6, 7, 8, 9, 5, 5, 5]),
  });
  const run = await switchyard([
    ...["run", DEMO, "--mesh", "ep=2", "--adapter", "cpu", "--json"],
    ...["--inputs", inputs, "--outputs", outputs],
  ]);
  t.strictSame([run.code, run.err], [0, ""]);
  const { ranks } = JSON.parse(run.out) as {
    ranks: { sentBytes: { [kind: string]: { actual: number } } }[];
  };
  const sent = ranks.flatMap(({ sentBytes }) => Object.values(sentBytes))
    .reduce((n, { actual }) => n + actual, 0);
  const node = fileURLToPath(
    new URL("../examples/cluster/machines/node_8_nvlink.json", import.meta.url),
  );
  const predicted = async (...choices: string[]) => {
    const { code, out, err } = await switchyard([
      ...["plan", DEMO, "--machine", node, "--mesh", "ep=2", "--json"],
      ...["--tokens", "8", "--sequences", "2", ...choices],
    ]);
    t.strictSame([code, err], [0, ""]);
    return JSON.parse(out) as {
      scene: { choices?: string };
      meshes: [{ sentBytes: number }];
    };
  };
  const recorded = await predicted("--choices", outputs);
  t.equal(recorded.meshes[0].sentBytes, sent);
  t.equal(recorded.scene.choices, outputs);
  t.not((await predicted()).meshes[0].sentBytes, sent, "chosen evenly");
});

t.test("flags that do not go together, and files that are no machines", async (t) => {
  const scratch = temporaryFolder(t);
  const file = path.join(scratch, "m.json");
  await writeFile(file, '{ "version": 1 }');
  const cases: [argv: string[], code: number, message: RegExp][] = [
    [["plan", DEMO, "--tokens", "4"], 2, /--tokens without --machine/],
    [["plan", DEMO, "--skew", "-1"], 2, /--skew '-1'/],
    [
      ["plan", DEMO, "--mesh", "ep=1", "--mesh", "ep=2"],
      2,
      /--mesh several times without --machine/,
    ],
    [
      ["plan", DEMO, "--machine", file, "--sequences", "2"],
      2,
      /--sequences 2 with --tokens 1/,
    ],
    [
      ["plan", DEMO, "--machine", file, "--skew", "1", "--choices", "x"],
      2,
      /--skew with --choices/,
    ],
    [["plan", DEMO, "--machine", file], 1, /'.*m\.json': '\/' has no field/],
    [["plan", DEMO, "--machine", "no.json"], 1, /Cannot read 'no\.json'/],
    [["devices", "--out", file], 2, /--out without --all/],
    [["devices", "--ranks", "2"], 2, /--ranks without --all/],
    [["devices", ...ONCE], 2, /--repetitions without --all/],
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
  t.equal(readFileSync(file, "utf8"), '{ "version": 1 }', "left as it was");
});
