/** TypeScript's language service with the plugin of `switchyard-moe/editor`, over in-memory files. */

import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { type EditorOptions, init } from "../../compiler/editor/mod.ts";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** Editor with open files. */
export interface Editor {
  readonly service: ts.LanguageService;
  /** Replaces the text of a file. */
  write(path: string, text: string): void;
  /** Returns the diagnostics of a file after its current text is traced. */
  diagnostics(path: string): Promise<readonly ts.Diagnostic[]>;
}

/** Cache of parsed files, shared by editors. Versions are unique across files. */
const parsed = ts.createDocumentRegistry();
let version = 0;

/** Opens files, by path. `plugin`: options of the plugin. */
export function openEditor(
  files: { readonly [path: string]: string },
  plugin: EditorOptions = {},
): Editor {
  const texts = new Map(Object.entries(files));
  const versions = new Map([...texts.keys()].map((path) => [path, ++version]));
  let changed: () => void = () => {};
  const host: ts.LanguageServiceHost = {
    getScriptFileNames: () => [...texts.keys()],
    getScriptVersion: (path) => String(versions.get(path) ?? 0),
    getScriptSnapshot(path) {
      const text = texts.get(path) ?? ts.sys.readFile(path);
      return text === undefined
        ? undefined
        : ts.ScriptSnapshot.fromString(text);
    },
    getCompilationSettings: () => ({
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      types: [],
      target: ts.ScriptTarget.ES2022,
      // Types of the DOM take longer to check than those of a model.
      lib: ["lib.es2022.d.ts"],
      module: ts.ModuleKind.ESNext,
      moduleResolution: ts.ModuleResolutionKind.Bundler,
      allowImportingTsExtensions: true,
      paths: { "switchyard-moe": [`${ROOT}/compiler/mod.ts`] },
    }),
    getCurrentDirectory: () => ROOT,
    getDefaultLibFileName: ts.getDefaultLibFilePath,
    fileExists: (path) => texts.has(path) || ts.sys.fileExists(path),
    readFile: (path) => texts.get(path) ?? ts.sys.readFile(path),
    directoryExists: ts.sys.directoryExists,
  };
  const service = init({ typescript: ts as never }).create({
    languageService: ts.createLanguageService(host, parsed),
    config: { seconds: 3600, ...plugin },
    languageServiceHost: host,
    project: {
      refreshDiagnostics: () => changed(),
      projectService: {
        logger: {
          info(text: string) {
            throw new Error(text);
          },
        },
      },
    },
  } as never) as unknown as ts.LanguageService;
  return {
    service,
    write(path, text) {
      texts.set(path, text);
      versions.set(path, ++version);
    },
    async diagnostics(path) {
      const traced = new Promise<void>((resolve) => {
        changed = resolve;
      });
      service.getSemanticDiagnostics(path);
      // Keeps the process alive: the tracing process is unreferenced.
      const waiting = setInterval(() => {}, 60_000);
      await traced;
      clearInterval(waiting);
      return service.getSemanticDiagnostics(path);
    },
  };
}
