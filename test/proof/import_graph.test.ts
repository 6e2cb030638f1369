// The runtime stands on the spec alone: everything that loading it can load, as a module loader sees it.
import { execFileSync } from "node:child_process";
import t from "tap";
import { repositoryFile } from "../helpers/sessions.ts";

interface ModuleGraph {
  readonly modules: readonly { readonly specifier: string }[];
}

/** Every module that a file reaches, dynamic imports included; ours by their path in the repository. */
function reachedFrom(file: string): string[] {
  const output = execFileSync(
    repositoryFile("node_modules/.bin/deno"),
    ["info", "--json", repositoryFile(file)],
    { maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "ignore"] },
  );
  const { modules } = JSON.parse(output.toString()) as ModuleGraph;
  const root = `file://${repositoryFile("")}/`;
  return modules.map(({ specifier }) => specifier.replace(root, ""));
}

t.test("runtime/mod.ts loads runtime/, spec/ and packages only", (t) => {
  const reached = reachedFrom("runtime/mod.ts");
  t.ok(reached.includes("runtime/executor.ts"), "the executor is reached");
  t.ok(reached.includes("spec/plan.ts"), "the plan is reached");
  const others = reached.filter((file) =>
    !/^(runtime|spec)\/|^(npm|node):|(^|\/)node_modules\//.test(file)
  );
  t.strictSame(others, []);
  t.strictSame(reached.filter((file) => /evaluat/.test(file)), []);
  t.end();
});

t.test("compiler/mod.ts loads nothing of the runtime", (t) => {
  const reached = reachedFrom("compiler/mod.ts");
  t.ok(reached.includes("compiler/compile.ts"), "the compiler is reached");
  t.strictSame(reached.filter((file) => /^(runtime|engine)\//.test(file)), []);
  t.end();
});
