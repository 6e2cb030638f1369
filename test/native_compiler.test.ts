// The C compiler: its limits of time and memory, and compilation of untrusted plans.
// needs: cpu
// rotates with: runtime/native/compiler.ts, runtime/native/objects.ts
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import t from "tap";
import {
  compileObject,
  type Compiler,
  compilerFlags,
  findCompiler,
} from "../runtime/native/compiler.ts";
import {
  add,
  f32,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../spec/kernel/build.ts";
import type { Stmt } from "../spec/kernel/tree.ts";
import { parsePlan, stringifyPlan } from "../spec/mod.ts";
import type { LaunchStep, Plan } from "../spec/plan/plan.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  floats,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";
import type { Mutable } from "./helpers/plans.ts";

const compiler = await findCompiler();
const skip = skipUnasked("cpu") ||
  (compiler ? false : "there is no C compiler");
const PROGRAM = fileURLToPath(
  new URL("../bin/switchyard.mjs", import.meta.url),
);

t.test(
  "code too expensive to optimize is not optimized",
  { skip },
  async (t) => {
    const folder = temporaryFolder(t);
    const at = (name: string) => path.join(folder, name);
    // A compiler that exceeds its limits unless optimization is off.
    const script = (body: string): Compiler => {
      writeFileSync(
        at("cc"),
        `#!/bin/sh
echo >> '${at("calls")}'
case "$*" in *-O0*) exec ${compiler!.command} "$@";; esac
${body}
`,
      );
      chmodSync(at("cc"), 0o755);
      return { ...compiler!, command: at("cc") };
    };
    const calls = () => {
      const count = readFileSync(at("calls"), "utf8").length;
      writeFileSync(at("calls"), "");
      return count;
    };
    const limits = { cpuSeconds: 1, kibibytes: 1 << 20 };
    const text = "int f(void) { return 1; }";
    const to = at("f.so");
    await compileObject(script("while :; do :; done"), text, { to, limits });
    t.ok(existsSync(to));
    t.equal(calls(), 2, "CPU time is limited");
    const memory = `exec ${process.execPath} -e 'Buffer.alloc(2 ** 31 - 1)'`;
    await compileObject(script(memory), text, { to, limits });
    t.equal(calls(), 2, "memory is limited");
    const long = `${text}/*${" ".repeat(1 << 20)}*/`;
    await compileObject(script("exit 1"), long, { to, limits });
    t.equal(calls(), 1, "a long text is not optimized");
    await t.rejects(
      compileObject(script(`exec ${compiler!.command} "$@"`), "no C", {
        to,
        limits,
      }),
      { name: "CompileError", message: /^Cannot compile a kernel: .*error/ },
    );
    t.equal(calls(), 1, "invalid C is compiled once");
  },
);

t.test("CC overrides the optimization of each compiler", (t) => {
  const levels = (version: string) =>
    compilerFlags(["-O3", "-march=x86-64"], { version })
      .filter((flag) => /^-(O|march)/.test(flag));
  const last = ["-O3", "-march=x86-64", "-march=native"];
  t.same(levels("gcc 12.4"), ["-O1", ...last]);
  t.same(levels("gcc 11.5"), ["-O2", ...last]);
  t.same(levels("clang 14.0"), ["-O2", ...last]);
  t.same(compilerFlags(["-Ofast"]).filter((flag) => /^-O/.test(flag)), [
    ...["-O2", "-O3"],
  ]);
  t.end();
});

t.test("a compiler without headers is not used", { skip }, (t) => {
  const CC = `${compiler!.command} -nostdinc`;
  const { stdout } = spawnSync(process.execPath, [PROGRAM, "devices"], {
    encoding: "utf8",
    env: { ...process.env, CC },
  });
  const state = `'${CC}' in the environment variable CC is no C compiler`;
  t.ok(stdout.includes(`native  not on this machine: ${state}`), stdout);
  t.end();
});

t.test("kernels of a plan file", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  writeFileSync(
    at("model.ts"),
    `import { add, model } from "switchyard-moe";
export const m = model({ a: 64, b: 64 }, (m) => ({ y: add(m.input("x", "a b"), 1) }));
`,
  );
  await writeRaw(at("in"), { x: floats([64, 64], 1) });
  const { code, err } = await switchyard([
    ...["plan", at("model.ts"), "--out", at("plan.json")],
  ]);
  t.equal(code, 0, err);
  const run = (
    change: (plan: Mutable<Plan>, kernel: string) => void,
    deadline: number,
  ) => {
    const plan = parsePlan(
      readFileSync(at("plan.json"), "utf8"),
    ) as Mutable<Plan>;
    change(plan, (plan.programs[0]!.steps[0] as LaunchStep).kernel);
    writeFileSync(at("changed.json"), stringifyPlan(plan));
    const { status, stderr } = spawnSync(process.execPath, [
      ...[PROGRAM, "run", at("changed.json"), "--allow-kernels"],
      ...["--inputs", at("in"), "--outputs", at("out")],
      ...["--adapter", "native", "--deadline", `${deadline}`],
    ], {
      encoding: "utf8",
      env: { ...process.env, XDG_CACHE_HOME: at("cache") },
    });
    return { status, stderr };
  };
  t.strictSame(
    run((plan, kernel) => {
      for (let i = 1; i < 8; i++) {
        const { tree, ...rest } = plan.kernels[kernel]!;
        const name = `${kernel}_${i}`;
        const unused = let_("unused", f32(i)) as Mutable<Stmt>;
        plan.kernels[name] = {
          ...rest,
          tree: { ...tree, name, body: [unused, ...tree.body] },
        };
      }
    }, 60),
    { status: 0, stderr: "" },
  );
  const functions = readdirSync(at("cache/switchyard/native"))
    .filter((name) => name.startsWith("f_"));
  t.equal(
    functions.length,
    1,
    "kernels that are not launched are not compiled",
  );
  // One second for a compilation that takes many.
  const { status, stderr } = run((plan, kernel) => {
    const { tree } = plan.kernels[kernel]!;
    const { name } = tree.bindings[0]!;
    const out = tree.bindings.find(({ access }) => access !== "read")!;
    const last = (n: number) => local(`c${n}`, "f32");
    const chain = Array.from({ length: 3000 }, (_, n) =>
      let_(
        `c${n + 1}`,
        add(mul(last(n), load(name, u32(n))), last(n >> 1)),
      ) as Mutable<Stmt>);
    tree.body.unshift(
      let_("c0", f32(1)) as Mutable<Stmt>,
      ...chain,
      store(out.name, u32(0), last(chain.length)) as Mutable<Stmt>,
    );
  }, 1);
  t.equal(status, 3);
  t.match(
    stderr,
    /^Cannot compile the kernels of the plan: .* has not ended within 1 s\. Allow more with --deadline if they need that\n$/,
  );
});

t.test("Ctrl-C during compilation of kernels", { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  // The compiler reports its start, then sleeps longer than a test may take.
  mkdirSync(at("bin"));
  writeFileSync(
    at("bin/slow"),
    `#!/bin/sh
case "$*" in *-shared*) echo >> '${at("started")}'; exec sleep 600;; esac
exec ${compiler!.command} "$@"
`,
  );
  chmodSync(at("bin/slow"), 0o755);
  writeFileSync(at("text"), "the cat sat on the mat. ".repeat(400));
  const child = spawn(process.execPath, [
    ...[PROGRAM, "train", checkpointFolder("demo-lm"), "--data", at("text")],
    ...["--steps", "1", "--out", at("out"), "--adapter", "native"],
  ], {
    // A terminal sends the signal to all processes of the group.
    detached: true,
    env: {
      ...process.env,
      XDG_CACHE_HOME: at("cache"),
      CC: at("bin/slow"),
    },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  child.stderr!.on("data", (data) => err += String(data));
  const ended = once(child, "close");
  while (!existsSync(at("started")) && child.exitCode === null) {
    await setTimeout(20);
  }
  process.kill(-child.pid!, "SIGINT");
  const [, signal] = await ended;
  t.strictSame([signal, err], ["SIGINT", ""]);
});
