/**
 * TypeScript as bundled by ts-morph, in half the bytes of TypeScript's own package. It is loaded by `require`, because
 * an `import` of a CommonJS package reads it again for its export names and takes 1.5 times as long.
 */

import { createRequire } from "node:module";
import type * as morph from "@ts-morph/common";

const loaded = createRequire(import.meta.url)(
  "@ts-morph/common",
) as typeof morph;

/** TypeScript's parser and checker. */
export const ts: typeof morph.ts = loaded.ts;

/** The declarations of JavaScript's built-ins, by file name. */
export function libraryFiles(): ReadonlyMap<string, string> {
  return new Map(
    loaded.getLibFiles().map(({ fileName, text }) => [fileName, text]),
  );
}

/** TypeScript as a value, for code that works with any instance, such as that of an editor. */
export type TypeScript = typeof morph.ts;

/** Types of TypeScript's nodes and programs. */
export declare namespace ts {
  export type ArrowFunction = morph.ts.ArrowFunction;
  export type BinaryExpression = morph.ts.BinaryExpression;
  export type BindingName = morph.ts.BindingName;
  export type CallExpression = morph.ts.CallExpression;
  export type CompletionEntry = morph.ts.CompletionEntry;
  export type CompilerHost = morph.ts.CompilerHost;
  export type CompilerOptions = morph.ts.CompilerOptions;
  export type Declaration = morph.ts.Declaration;
  export type Diagnostic = morph.ts.Diagnostic;
  export type DiagnosticMessageChain = morph.ts.DiagnosticMessageChain;
  export type Expression = morph.ts.Expression;
  export type FunctionDeclaration = morph.ts.FunctionDeclaration;
  export type FunctionExpression = morph.ts.FunctionExpression;
  export type Identifier = morph.ts.Identifier;
  export type IfStatement = morph.ts.IfStatement;
  export type LanguageService = morph.ts.LanguageService;
  export type ModuleResolutionHost = morph.ts.ModuleResolutionHost;
  export type Node = morph.ts.Node;
  export type ObjectLiteralExpression = morph.ts.ObjectLiteralExpression;
  export type ParameterDeclaration = morph.ts.ParameterDeclaration;
  export type PrefixUnaryExpression = morph.ts.PrefixUnaryExpression;
  export type Program = morph.ts.Program;
  export type PropertyAccessExpression = morph.ts.PropertyAccessExpression;
  export type SourceFile = morph.ts.SourceFile;
  export type Statement = morph.ts.Statement;
  export type ResolvedModuleFull = morph.ts.ResolvedModuleFull;
  export type StringLiteral = morph.ts.StringLiteral;
  export type StringLiteralLike = morph.ts.StringLiteralLike;
  export type StringLiteralType = morph.ts.StringLiteralType;
  export type Symbol = morph.ts.Symbol;
  export type SyntaxKind = morph.ts.SyntaxKind;
  export type Type = morph.ts.Type;
  export type TypeReference = morph.ts.TypeReference;
  export type TypeChecker = morph.ts.TypeChecker;
  export type VariableDeclaration = morph.ts.VariableDeclaration;
  /** Parts of TypeScript's server API that plugins use. */
  export namespace server {
    export type PluginCreateInfo = morph.ts.server.PluginCreateInfo;
  }
}
