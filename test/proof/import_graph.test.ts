// Import graph of modules: the runtime depends only on the spec, and help only on the command line.
import { execFileSync } from "node:child_process";
import t from "tap";
import { repositoryFile } from "../helpers/sessions.ts";

interface Module {
  readonly specifier: string;
  /** Imports. Those of types have no `code`. */
  readonly dependencies?: readonly {
    readonly code?: { readonly specifier: string };
    readonly isDynamic?: boolean;
  }[];
}

const ROOT = `file://${repositoryFile("")}/`;

/** Returns all modules that a file imports, directly or not, including dynamic imports. */
function modulesOf(file: string): readonly Module[] {
  const output = execFileSync(
    repositoryFile("node_modules/.bin/deno"),
    ["info", "--json", repositoryFile(file)],
    { maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "ignore"] },
  );
  const { modules } = JSON.parse(output.toString()) as {
    readonly modules: readonly Module[];
  };
  return modules;
}

/** As `modulesOf`; files of the repository by relative path. */
function reachedFrom(file: string): string[] {
  return modulesOf(file).map(({ specifier }) => specifier.replace(ROOT, ""));
}

/**
 * Returns all modules that run before a file does, without dynamic imports; files of the repository by relative path.
 */
function loadedBefore(file: string): string[] {
  const modules = new Map(
    modulesOf(file).map((module) => [module.specifier, module]),
  );
  const loaded = new Set([ROOT + file]);
  for (const specifier of loaded) {
    for (
      const { code, isDynamic } of modules.get(specifier)?.dependencies ?? []
    ) {
      if (code && !isDynamic) loaded.add(code.specifier);
    }
  }
  return [...loaded].map((specifier) => specifier.replace(ROOT, ""));
}

t.test("runtime/mod.ts loads runtime/, spec/ and packages only", (t) => {
  const reached = reachedFrom("runtime/mod.ts");
  t.ok(reached.includes("runtime/executor.ts"), "the executor is reached");
  t.ok(reached.includes("spec/plan/plan.ts"), "the plan is reached");
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

t.test("the command line loads modules of a command on demand", (t) => {
  const loaded = loadedBefore("cli/main.ts");
  t.ok(loaded.includes("cli/program.ts"), "the program is reached");
  const parts = /^(compiler|runtime|models|engine)\/|^spec\/mod\.ts$/;
  // Every command opens files and counts cores; these modules import no others.
  t.strictSame(loaded.filter((file) => parts.test(file)), [
    "runtime/available_cores.ts",
    "runtime/cache/folders.ts",
    "engine/version.ts",
    "runtime/control_groups.ts",
    "engine/gguf/folder.ts",
  ]);
  t.ok(
    reachedFrom("cli/main.ts").includes("engine/mod.ts"),
    "commands import the engine",
  );
  t.end();
});
