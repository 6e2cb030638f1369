/**
 * `switchyard-moe/editor`: a plugin of TypeScript's language service. It shows the errors of `check` while a model is
 * edited, the values under a mesh, and completions of axis names. It never throws: on failure, the editor shows its
 * usual results.
 */

import { fileURLToPath } from "node:url";
import type { Diagnostic } from "../source/diagnostic.ts";
import { pathOf } from "../source/frame.ts";
import {
  allMistakes,
  type CheckedFile,
  typeMistakes,
} from "../source/mistakes.ts";
import type { TracedMistake } from "../source/traced.ts";
import type { ts, TypeScript } from "../source/typescript.ts";
import { type Found, TraceClient } from "./client.ts";
import { axisCompletions, chosenNames } from "./completions.ts";
import { importedTexts, isModelFile, packageFolder } from "./model_files.ts";
import { valueAt } from "./value_at.ts";
import type { ShownMesh } from "./values.ts";

/** Options of the plugin in tsconfig.json. */
export interface EditorOptions extends ShownMesh {
  /** Whether model files are executed, in a separate process, to find mistakes beyond types. Default: true. */
  readonly trace?: boolean;
  /** Seconds until an executed file counts as hanging. Default: 10. */
  readonly seconds?: number;
}

/** Error number of mistakes without a TypeScript number. */
const CODE = 9900;

const TRACER = fileURLToPath(new URL("tracer.js", import.meta.url));

/** Entry point for TypeScript's server. `tracer`: the compiled program of `tracer.ts`. */
export function init(
  { typescript }: { readonly typescript: TypeScript },
  tracer: string = TRACER,
): { create(info: ts.server.PluginCreateInfo): ts.LanguageService } {
  return { create: (info) => decorate(typescript, info, tracer) };
}

function decorate(
  ts: TypeScript,
  info: ts.server.PluginCreateInfo,
  tracer: string,
): ts.LanguageService {
  const service = info.languageService;
  const options = info.config as EditorOptions;
  const client = new TraceClient({
    program: tracer,
    seconds: options.seconds ?? 10,
    onFound: () => info.project.refreshDiagnostics(),
  });

  /** A model file, and its TypeScript program. */
  function open(name: string): CheckedFile | undefined {
    const program = service.getProgram();
    const file = program?.getSourceFile(name);
    if (!program || !file || !isModelFile(ts, file)) return undefined;
    const folder = packageFolder(ts, program, {
      from: name,
      host: info.languageServiceHost,
    });
    return { ts, program, file, isOurs: (path) => path.startsWith(folder) };
  }

  function ask(checked: CheckedFile): void {
    if (options.trace === false) return;
    const { mesh, place } = options;
    client.ask({
      ...mesh ? { mesh } : {},
      ...place ? { place } : {},
      path: checked.file.fileName,
      texts: importedTexts(ts, checked.program, checked.file),
    });
  }

  const ours: Partial<ts.LanguageService> = {
    getSemanticDiagnostics(name) {
      const said = service.getSemanticDiagnostics(name);
      return guarded(ts, info, said, () => {
        const checked = open(name);
        if (!checked) return said;
        const { program, file } = checked;
        if (program.getSyntacticDiagnostics(file).length > 0) return said;
        ask(checked);
        const types = typeMistakes({ ...checked, said });
        const traced = [...client.found].flatMap((found) =>
          mistakesIn(file, found)
        );
        const mistakes = allMistakes(types, traced, checked);
        const others = said.filter(({ category }) =>
          category !== ts.DiagnosticCategory.Error
        );
        return [
          ...others,
          ...mistakes.map((each) => shown(ts, file, each)),
        ];
      });
    },
    getQuickInfoAtPosition(name, position, ...rest) {
      const said = service.getQuickInfoAtPosition(name, position, ...rest);
      return guarded(ts, info, said, () => {
        const checked = open(name);
        if (!checked || !said) return said;
        ask(checked);
        const text = valueAt(checked, position, client.found);
        if (text === undefined) return said;
        const documentation = said.documentation ?? [];
        const gap = documentation.length > 0 ? "\n\n" : "";
        return {
          ...said,
          documentation: [
            { kind: "text", text: `${text}${gap}` },
            ...documentation,
          ],
        };
      });
    },
    getCompletionsAtPosition(name, position, ...rest) {
      const said = service.getCompletionsAtPosition(name, position, ...rest);
      return guarded(ts, info, said, () => {
        const checked = open(name);
        const found = checked && axisCompletions(checked, position);
        if (!found) return said;
        const names = chosenNames(found, said?.entries ?? []);
        if (!names) return said;
        const { start, length } = found;
        return {
          isGlobalCompletion: false,
          isMemberCompletion: false,
          isNewIdentifierLocation: true,
          entries: names.map((name) => ({
            name,
            kindModifiers: "",
            sortText: "0",
            kind: ts.ScriptElementKind.string,
            replacementSpan: { start, length },
          })),
        };
      });
    },
    dispose() {
      client.close();
      service.dispose();
    },
  };
  return Object.assign({ ...service }, ours);
}

/** The result of `make`, or `said` on failure. */
function guarded<T>(
  ts: TypeScript,
  info: ts.server.PluginCreateInfo,
  said: T,
  make: () => T,
): T {
  try {
    return make();
  } catch (error) {
    if (error instanceof ts.OperationCanceledException) throw error;
    info.project.projectService.logger.info(`switchyard-moe/editor: ${error}`);
    return said;
  }
}

/** The results for a file, in lines that have not changed since. */
function mistakesIn(
  file: ts.SourceFile,
  { mistakes, texts }: Found,
): TracedMistake[] {
  const before = texts.get(file.fileName);
  if (before === undefined) return [];
  const [old, now] = [before, file.text].map((text) => text.split("\n"));
  return mistakes.filter(({ span }) =>
    span && pathOf(span.file) === file.fileName &&
    old![span.line - 1] === now![span.line - 1]
  );
}

function shown(
  ts: TypeScript,
  file: ts.SourceFile,
  { message, span, width = 1, code = CODE, folded = [] }: Diagnostic,
): ts.Diagnostic {
  const { line, column } = span ?? { line: 1, column: 1 };
  const last = file.getLineStarts().length - 1;
  const start = file.getPositionOfLineAndCharacter(
    Math.min(line - 1, last),
    0,
  ) + column - 1;
  const category = ts.DiagnosticCategory.Error;
  return {
    file,
    start,
    length: width,
    code,
    category,
    messageText: message,
    source: "switchyard",
    ...folded.length > 0
      ? {
        relatedInformation: folded.map((each) => ({
          ...shown(ts, file, each),
          category: ts.DiagnosticCategory.Message,
        })),
      }
      : {},
  };
}
