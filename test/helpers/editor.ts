/** TypeScript's language service with the plugin of `switchyard-moe/editor`, over files in memory. */

import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { type EditorOptions, init } from "../../compiler/editor/mod.ts";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** An editor with files open. */
export interface Editor {
  readonly service: ts.LanguageService;
  /** Type something: a file has another text from now on. */
  write(path: string, text: string): void;
  /** What is shown in a file, once it has been traced as it is now. */
  diagnostics(path: string): Promise<readonly ts.Diagnostic[]>;
}

/** Files as they are parsed, which editors share: they are of one text for each version. */
const parsed = ts.createDocumentRegistry();
let version = 0;

/** Open files, by path. `service` is the plugin's; `plugin` says what its options are. */
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
      // The types of pages take longer than those of a model.
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
      // Nothing else keeps this process: the one that traces is let go.
      const waiting = setInterval(() => {}, 60_000);
      await traced;
      clearInterval(waiting);
      return service.getSemanticDiagnostics(path);
    },
  };
}
