/**
 * The mistakes of one file, as `check` and the editor show them: those of TypeScript and of tracing, once per position.
 * A mistake in an argument of an op is reported at the argument, with the sentence of run time if tracing reached it;
 * TypeScript's explanation is folded into it. It does not load TypeScript but receives it.
 */

import type { Span } from "../../spec/errors.ts";
import { argumentAt } from "./argument_at.ts";
import { callAt, nameOf } from "./call_at.ts";
import { withoutConsequences } from "./causes.ts";
import type { Diagnostic } from "./diagnostic.ts";
import { pathOf } from "./frame.ts";
import type { TracedMistake } from "./traced.ts";
import type { ts, TypeScript } from "./typescript.ts";

/** A file of a program, and other facts about it. */
export interface CheckedFile {
  readonly ts: TypeScript;
  readonly program: ts.Program;
  readonly file: ts.SourceFile;
  /** Whether a file belongs to this package. */
  isOurs(path: string): boolean;
  /** TypeScript's diagnostics, if already computed. */
  readonly said?: readonly ts.Diagnostic[];
}

/** TypeScript's diagnostics of a file: syntax errors, or type errors without those that follow from another. */
export function typeMistakes(checked: CheckedFile): Diagnostic[] {
  const { ts, program, file } = checked;
  const syntax = program.getSyntacticDiagnostics(file);
  if (syntax.length > 0) {
    return syntax.map((each) => original(each, checked));
  }
  const said = checked.said ?? program.getSemanticDiagnostics(file);
  const errors = said.filter(({ category }) =>
    category === ts.DiagnosticCategory.Error
  );
  return withoutConsequences(ts, file, errors, program.getTypeChecker())
    .map((each) => typeMistake(each, checked));
}

/**
 * Type errors of a file and mistakes found by tracing, in file order. `typed`: there are type errors in other files.
 */
export function allMistakes(
  types: readonly Diagnostic[],
  traced: readonly TracedMistake[],
  { ts, file, typed = types.length > 0 }: Pick<CheckedFile, "ts" | "file"> & {
    readonly typed?: boolean;
  },
): Diagnostic[] {
  const said = new Set<Diagnostic>();
  const found: Diagnostic[] = [];
  for (const { doubtful, ...mistake } of traced) {
    const { span } = mistake;
    const same = types.filter((type) =>
      type.folded && sameSpan(type.call ?? type.span, span)
    );
    if (same.length > 0) {
      same.forEach((type) => said.add(type));
      const [{ code }] = same as [Diagnostic];
      const folded = same.flatMap((type) => type.folded ?? [type]);
      const located = atArgument(mistake, { types, ts, file });
      found.push({ ...located, ...code ? { code } : {}, folded });
    } else if (!doubtful || !typed) {
      found.push(atArgument(mistake, { types, ts, file }));
    }
  }
  const others = types.filter((type) => !said.has(type));
  const reported = found.filter(({ span, call = span, folded }) =>
    folded || !call || !others.some((type) => isInCall(ts, file, type, call))
  );
  return inOrder(withoutRepeats([...others, ...reported]));
}

/**
 * A mistake of a call at the argument that it is about: the one that TypeScript finds wrong, or the one that its
 * sentence repeats. At the op where neither says which.
 */
export function atArgument<T extends Diagnostic>(
  mistake: T,
  { types, ts, file }: Pick<CheckedFile, "ts" | "file"> & {
    readonly types: readonly Diagnostic[];
  },
): T {
  const { span: call } = mistake;
  if (!call) return mistake;
  const typed = types.find((type) => type.call && sameSpan(type.call, call));
  if (typed) {
    const { span, width } = typed;
    return { ...mistake, call, ...span && width ? { span, width } : {} };
  }
  const argument = argumentAt(ts, file, mistake);
  return argument
    ? {
      ...mistake,
      call,
      span: spanOf(file, argument.getStart(file)),
      width: argument.getWidth(file),
    }
    : mistake;
}

/** Mistakes in file order. */
function inOrder(mistakes: readonly Diagnostic[]): Diagnostic[] {
  return mistakes.toSorted(({ span: a }, { span: b }) =>
    (a?.line ?? 0) - (b?.line ?? 0) || (a?.column ?? 0) - (b?.column ?? 0)
  );
}

function withoutRepeats(mistakes: readonly Diagnostic[]): Diagnostic[] {
  const seen = new Map(
    mistakes.map(({ message, span, call: _, ...rest }) => [
      JSON.stringify([message, span && [span.line, span.column]]),
      { message, ...span ? { span } : {}, ...rest },
    ]),
  );
  return [...seen.values()];
}

function sameSpan(a: Span | undefined, b: Span | undefined): boolean {
  return a !== undefined && b !== undefined && a.line === b.line &&
    a.column === b.column && pathOf(a.file) === pathOf(b.file);
}

/** Whether a mistake is in the lines of the call at a position. */
function isInCall(
  ts: TypeScript,
  file: ts.SourceFile,
  { span }: Diagnostic,
  position: Span,
): boolean {
  const call = callAt(ts, file, position);
  const end = call && file.getLineAndCharacterOfPosition(call.end).line + 1;
  return span !== undefined && span.line >= position.line &&
    span.line <= (end ?? position.line);
}

function typeMistake(
  diagnostic: ts.Diagnostic,
  checked: CheckedFile,
): Diagnostic {
  const said = original(diagnostic, checked);
  const message = sentenceOf(said.message);
  const call = callAround(diagnostic, checked);
  if (!call) {
    return message === said.message
      ? said
      : { ...said, message, folded: [said] };
  }
  const { ts, file } = checked;
  const name = nameOf(ts, call);
  const called = spanOf(file, name.getStart(file));
  const { start = 0 } = diagnostic;
  const given = call.arguments.some((argument) =>
    start >= argument.getStart(file) && start < argument.end
  );
  return {
    ...said,
    message,
    folded: [said],
    call: called,
    ...given ? {} : { span: called, width: name.getWidth(file) },
  };
}

function original(
  { start = 0, length = 1, messageText, code }: ts.Diagnostic,
  { ts, file }: CheckedFile,
): Diagnostic {
  const message = ts.flattenDiagnosticMessageText(messageText, "\n");
  return { message, span: spanOf(file, start), width: length, code };
}

function spanOf(file: ts.SourceFile, position: number): Span {
  const at = file.getLineAndCharacterOfPosition(position);
  return {
    file: file.fileName,
    line: at.line + 1,
    column: at.character + 1,
  };
}

/**
 * TypeScript explains errors from the outside in. If it reports that something is not assignable to a literal that is
 * one of our sentences (`"Cannot …"`), the sentence is the message.
 */
function sentenceOf(text: string): string {
  return /"(Cannot [^"]*)"/.exec(text)?.[1] ?? text;
}

/** The innermost call of an op whose arguments contain the error. Contents of nested functions are not arguments. */
function callAround(
  { start = 0, length = 1 }: ts.Diagnostic,
  { ts, program, file, isOurs }: CheckedFile,
): ts.CallExpression | undefined {
  const end = start + length;
  const checker = program.getTypeChecker();
  const holds = (node: ts.Node): boolean =>
    node.getStart(file) <= start && end <= node.end;
  const isAll = (node: ts.Node): boolean =>
    node.getStart(file) === start && node.end === end;
  let found: ts.CallExpression | undefined;
  /** A returned value is an argument of the caller. */
  function isReturned(node: ts.Node): boolean {
    return ts.isArrowFunction(node) && isAll(node.body) ||
      ts.forEachChild(node, function isIn(part): boolean | undefined {
          if (ts.isFunctionLike(part)) return undefined;
          return ts.isReturnStatement(part) && part.expression &&
              isAll(part.expression) || ts.forEachChild(part, isIn);
        }) === true;
  }
  function visit(node: ts.Node): void {
    if (!holds(node)) return;
    if (ts.isFunctionLike(node) && !isAll(node) && !isReturned(node)) {
      found = undefined;
    }
    if (
      ts.isCallExpression(node) &&
      [nameOf(ts, node), ...node.arguments].some(holds)
    ) found = isOp(node) ? node : undefined;
    ts.forEachChild(node, visit);
  }
  function isOp(call: ts.CallExpression): boolean {
    let symbol = checker.getSymbolAtLocation(nameOf(ts, call));
    if (symbol && symbol.flags & ts.SymbolFlags.Alias) {
      symbol = checker.getAliasedSymbol(symbol);
    }
    return symbol?.declarations?.some((declaration) =>
      isOurs(declaration.getSourceFile().fileName)
    ) ?? false;
  }
  visit(file);
  return found;
}
