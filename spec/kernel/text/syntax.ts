/**
 * The syntax tree of kernel text, before holes are filled and names have types. There is one per source position,
 * however often the text is used.
 */

import type { Operator } from "../operators.ts";
import type { Token } from "./text.ts";

/** An expression. `start`: its first token; `at`: the token for error positions. */
export type ExprSyntax =
  & { readonly start: Token; readonly at: Token }
  & (
    | {
      readonly kind: "number";
      readonly value: number;
      readonly suffix: string;
    }
    /** A name; or a hole with a number, text or a tree. */
    | { readonly kind: "word" }
    /** `x[i]`, `sum[r][c]` */
    | { readonly kind: "element"; readonly indices: readonly ExprSyntax[] }
    /** `f(x)`, `bitcast<u32>(x)`, `unpack2x16float(x).y` */
    | {
      readonly kind: "call";
      readonly args: readonly ExprSyntax[];
      readonly type: Token | undefined;
      readonly part: Token | undefined;
    }
    /** `group.x` */
    | { readonly kind: "group"; readonly axis: Token }
    | { readonly kind: "minus" | "not"; readonly a: ExprSyntax }
    | {
      readonly kind: "binary";
      readonly operator: Operator;
      readonly a: ExprSyntax;
      readonly b: ExprSyntax;
    }
  );

/** The target of a declaration or an assignment: a name and its indices. */
export interface TargetSyntax {
  readonly at: Token;
  readonly indices: readonly ExprSyntax[];
}

/** `r < 4`, `c < 8 by 2` */
export interface RangeSyntax {
  readonly name: TargetSyntax;
  readonly end: ExprSyntax;
  readonly step: ExprSyntax | undefined;
}

/** A statement. */
export type StmtSyntax =
  | {
    readonly kind: "let" | "var";
    readonly name: TargetSyntax;
    readonly type: Token | undefined;
    readonly value: ExprSyntax;
  }
  | {
    readonly kind: "array";
    readonly name: TargetSyntax;
    readonly type: Token;
    readonly length: ExprSyntax;
  }
  | {
    readonly kind: "vector";
    readonly names: readonly TargetSyntax[];
    readonly binding: Token;
    readonly index: ExprSyntax;
  }
  | {
    readonly kind: "for";
    readonly name: TargetSyntax;
    /** The name in the comparison and in the increment. */
    readonly again: readonly Token[];
    readonly from: ExprSyntax;
    readonly to: ExprSyntax;
    /** Undefined: `i++`. */
    readonly step: ExprSyntax | undefined;
    readonly body: readonly StmtSyntax[];
  }
  | {
    readonly kind: "if";
    readonly condition: ExprSyntax;
    readonly then: readonly StmtSyntax[];
    readonly else: readonly StmtSyntax[] | undefined;
  }
  | { readonly kind: "barrier"; readonly at: Token }
  | {
    readonly kind: "assign";
    readonly target: TargetSyntax;
    readonly operator: Token;
    /** Undefined: `x++`. */
    readonly value: ExprSyntax | undefined;
  }
  /** A hole with statements. */
  | { readonly kind: "hole"; readonly at: Token; readonly hole: number }
  | {
    readonly kind: "unroll";
    readonly ranges: readonly RangeSyntax[];
    /** The hole with the ranges. */
    readonly given: Token | undefined;
    readonly body: readonly StmtSyntax[];
  };
