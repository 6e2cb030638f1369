/**
 * Lowers one scalar function of a model from its source to a pure kernel expression. Branches become selects,
 * reassigned variables become new names, called functions are inlined. A whitelist: any other syntax is an error with
 * its position and a remedy.
 */

import { invariant } from "../../spec/errors.ts";
import * as k from "../../spec/kernel/build.ts";
import type { Expr, ScalarType } from "../../spec/kernel/tree.ts";
import { addLocals } from "../../spec/kernel/walk.ts";
import type { ScalarFunction } from "../graph/graph.ts";
import { arithmetic, choose, or } from "./arithmetic.ts";
import { errorAt, nameOfKind } from "./errors.ts";
import { lowerExpression } from "./lower_expression.ts";
import { ts } from "./project.ts";

/** A function with a body. */
export type FunctionNode =
  | ts.ArrowFunction
  | ts.FunctionExpression
  | ts.FunctionDeclaration;

/** State of the lowering of one scalar function. */
export interface Lowering {
  readonly checker: ts.TypeChecker;
  /** Why names outside the function cannot be resolved, if so: only its text is known. */
  readonly onlyText?: string;
  readonly lets: { name: string; value: Expr }[];
  /** Functions being inlined, outermost first, for detecting recursion. */
  readonly calls: FunctionNode[];
  /** Nesting depth of consts in the current source. */
  readonly depth: number;
}

/** Values of the visible variables, and those declared by the current function. */
export interface Environment {
  readonly values: Map<ts.Symbol, Expr>;
  readonly locals: Set<ts.Symbol>;
}

/** Control flow after some statements: the condition and value of a return, and the variables otherwise. */
interface Outcome {
  readonly returned: Expr;
  readonly value?: Expr;
  readonly values: Map<ts.Symbol, Expr>;
}

/** Whether a node is a function that can be lowered. */
export function isFunctionNode(
  node: ts.Node | undefined,
): node is FunctionNode {
  return node !== undefined &&
    (ts.isArrowFunction(node) || ts.isFunctionExpression(node) ||
      ts.isFunctionDeclaration(node) && node.body !== undefined);
}

/** Lowers a function passed to `map`. */
export function lowerFunction(
  fn: FunctionNode,
  checker: ts.TypeChecker,
  onlyText?: string,
): ScalarFunction {
  const lowering: Lowering = {
    checker,
    lets: [],
    calls: [],
    depth: 0,
    ...(onlyText === undefined ? {} : { onlyText }),
  };
  const parameters = fn.parameters.map(parameterType);
  const args = parameters.map((type, i) => k.local(`p${i}`, type));
  const result = inline(
    fn,
    args,
    { values: new Map(), locals: new Set() },
    lowering,
  );
  return { parameters, lets: withoutUnused(lowering.lets, result), result };
}

/** Binds a value that may be read several times to a name. */
export function bind(value: Expr, lowering: Lowering): Expr {
  if (value.op === "const" || value.op === "local") return value;
  const name = `v${lowering.lets.length}`;
  lowering.lets.push({ name, value });
  return k.local(name, value.type);
}

/** The value of a function for the given arguments. */
export function inline(
  fn: FunctionNode,
  args: readonly Expr[],
  outside: Environment,
  lowering: Lowering,
): Expr {
  if (
    fn.asteriskToken ||
    fn.modifiers?.some(({ kind }) => kind === ts.SyntaxKind.AsyncKeyword)
  ) {
    throw errorAt(
      fn,
      "Cannot lower an async or generator function: a kernel computes one number at a time. Write a plain function",
    );
  }
  const env: Environment = {
    values: new Map(outside.values),
    locals: new Set(),
  };
  fn.parameters.forEach((parameter, i) => {
    const value = args[i];
    invariant(value, "an argument for every parameter");
    declare(parameter.name, bind(value, lowering), env, lowering);
  });
  invariant(fn.body, "a function with a body");
  if (!ts.isBlock(fn.body)) {
    lowering.calls.push(fn);
    const value = lowerExpression(fn.body, env, lowering);
    lowering.calls.pop();
    return value;
  }
  lowering.calls.push(fn);
  const end = runAll(fn.body.statements, env, lowering);
  lowering.calls.pop();
  if (
    end.value === undefined || end.returned.op !== "const" ||
    !end.returned.value
  ) {
    throw errorAt(
      headOf(fn),
      "Cannot lower a function that can end without 'return': a kernel needs a value on every path. Return one after the last statement",
    );
  }
  return end.value;
}

/** The type of a parameter of a kernel function: `boolean` if declared, else a number. */
export function parameterType(parameter: ts.ParameterDeclaration): ScalarType {
  if (
    !ts.isIdentifier(parameter.name) || parameter.dotDotDotToken ||
    parameter.initializer
  ) {
    throw errorAt(
      parameter,
      `Cannot lower the parameter '${parameter.getText()}': a kernel passes only numbers. Declare each number by name, without a default`,
    );
  }
  const type = parameter.type?.kind;
  if (type === undefined || type === ts.SyntaxKind.NumberKeyword) return "f32";
  if (type === ts.SyntaxKind.BooleanKeyword) return "bool";
  throw errorAt(
    parameter,
    `Cannot lower a parameter of type '${
      parameter.type!.getText()
    }': a scalar function works on numbers and booleans. Use 'number' or 'boolean'`,
  );
}

function headOf(fn: FunctionNode): ts.Node {
  return fn.name ?? (ts.isArrowFunction(fn) ? fn.equalsGreaterThanToken : fn);
}

function declare(
  name: ts.BindingName,
  value: Expr | undefined,
  env: Environment,
  { checker }: Lowering,
): void {
  if (!ts.isIdentifier(name)) {
    throw errorAt(
      name,
      `Cannot take '${name.getText()}' apart: a kernel has only numbers and booleans. Declare each value separately`,
    );
  }
  const symbol = checker.getSymbolAtLocation(name);
  invariant(symbol, `a symbol for '${name.text}'`);
  env.locals.add(symbol);
  if (value) env.values.set(symbol, value);
}

function runAll(
  statements: readonly ts.Statement[],
  env: Environment,
  lowering: Lowering,
): Outcome {
  let outcome: Outcome = { returned: k.bool(false), values: env.values };
  for (const statement of statements) {
    if (outcome.returned.op === "const" && outcome.returned.value) break;
    const next = run(
      statement,
      { locals: env.locals, values: outcome.values },
      lowering,
    );
    outcome = after(outcome, next, statement, lowering);
  }
  return outcome;
}

/** `first`, then `second` where `first` has not returned. */
function after(
  first: Outcome,
  second: Outcome,
  at: ts.Node,
  lowering: Lowering,
): Outcome {
  const value = first.value && second.value
    ? merge(first.returned, first.value, second.value, at)
    : first.value ?? second.value;
  const returned = bind(or(first.returned, second.returned), lowering);
  return {
    returned,
    values: second.values,
    ...(value ? { value: bind(value, lowering) } : {}),
  };
}

function run(
  statement: ts.Statement,
  env: Environment,
  lowering: Lowering,
): Outcome {
  const going = k.bool(false);
  if (ts.isReturnStatement(statement)) {
    if (!statement.expression) {
      throw errorAt(
        statement,
        "Cannot return nothing: a kernel needs a value on every path. Return a number",
      );
    }
    const value = lowerExpression(statement.expression, env, lowering);
    return {
      returned: k.bool(true),
      value: bind(value, lowering),
      values: env.values,
    };
  }
  if (ts.isBlock(statement)) return runAll(statement.statements, env, lowering);
  if (ts.isIfStatement(statement)) return runIf(statement, env, lowering);
  if (ts.isVariableStatement(statement)) {
    if (!(statement.declarationList.flags & ts.NodeFlags.BlockScoped)) {
      throw errorAt(
        statement,
        "Cannot declare with 'var': its scope is the whole function. Use 'const' or 'let'",
      );
    }
    for (
      const { name, initializer } of statement.declarationList.declarations
    ) {
      if (isFunctionNode(initializer)) continue; // inlined where it is called
      const value = initializer &&
        bind(lowerExpression(initializer, env, lowering), lowering);
      declare(name, value, env, lowering);
    }
    return { returned: going, values: env.values };
  }
  if (ts.isExpressionStatement(statement)) {
    const values = new Map(env.values);
    assign(statement.expression, { locals: env.locals, values }, lowering);
    return { returned: going, values };
  }
  if (ts.isEmptyStatement(statement) || ts.isFunctionDeclaration(statement)) {
    return { returned: going, values: env.values };
  }
  throw errorAt(
    statement,
    `Cannot lower ${
      nameOfKind(statement)
    }: a scalar function consists of 'const', 'let', 'if' and 'return'. Write it with those`,
  );
}

function runIf(
  statement: ts.IfStatement,
  env: Environment,
  lowering: Lowering,
): Outcome {
  const condition = bind(
    conditionOf(statement.expression, env, lowering),
    lowering,
  );
  const branch = (body: ts.Statement | undefined): Outcome => {
    const values = new Map(env.values);
    return body
      ? run(body, { locals: env.locals, values }, lowering)
      : { returned: k.bool(false), values };
  };
  const yes = branch(statement.thenStatement);
  const no = branch(statement.elseStatement);
  const returned = bind(choose(condition, yes.returned, no.returned), lowering);
  const value = yes.value && no.value
    ? merge(condition, yes.value, no.value, statement)
    : yes.value ?? no.value;
  return {
    returned,
    values: mergeAll(condition, yes, no, statement, lowering),
    ...(value ? { value: bind(value, lowering) } : {}),
  };
}

/** Variables after two branches; a branch that has returned does not count. */
function mergeAll(
  condition: Expr,
  yes: Outcome,
  no: Outcome,
  at: ts.Node,
  lowering: Lowering,
): Map<ts.Symbol, Expr> {
  const gone = ({ returned }: Outcome) =>
    returned.op === "const" && returned.value === true;
  if (gone(yes)) return no.values;
  if (gone(no)) return yes.values;
  const merged = new Map<ts.Symbol, Expr>();
  for (const [symbol, a] of yes.values) {
    const b = no.values.get(symbol);
    if (b) {
      merged.set(
        symbol,
        a === b ? a : bind(merge(condition, a, b, at), lowering),
      );
    }
  }
  return merged;
}

function merge(condition: Expr, a: Expr, b: Expr, at: ts.Node): Expr {
  if (a.type !== b.type) {
    throw errorAt(
      at,
      "Cannot choose between a number and a boolean: a kernel value has one type. Make both numbers",
    );
  }
  return choose(condition, a, b);
}

/** A boolean expression, as required for conditions. */
export function conditionOf(
  node: ts.Expression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const value = lowerExpression(node, env, lowering);
  if (value.type === "bool") return value;
  throw errorAt(
    node,
    `Cannot use '${node.getText()}' as a condition: it is a number. Compare it, as in '${node.getText()} !== 0'`,
  );
}

const ASSIGNMENTS: {
  readonly [token in ts.SyntaxKind]?: "+" | "-" | "*" | "/" | "%" | "**";
} = {
  [ts.SyntaxKind.PlusEqualsToken]: "+",
  [ts.SyntaxKind.MinusEqualsToken]: "-",
  [ts.SyntaxKind.AsteriskEqualsToken]: "*",
  [ts.SyntaxKind.SlashEqualsToken]: "/",
  [ts.SyntaxKind.PercentEqualsToken]: "%",
  [ts.SyntaxKind.AsteriskAsteriskEqualsToken]: "**",
  [ts.SyntaxKind.PlusPlusToken]: "+",
  [ts.SyntaxKind.MinusMinusToken]: "-",
};

/** `x = …`, `x += …`, `x++` as a statement. */
function assign(
  node: ts.Expression,
  env: Environment,
  lowering: Lowering,
): void {
  if (ts.isParenthesizedExpression(node)) {
    return assign(node.expression, env, lowering);
  }
  const step = ts.isPostfixUnaryExpression(node) ||
    ts.isPrefixUnaryExpression(node);
  const token = step
    ? node.operator
    : ts.isBinaryExpression(node)
    ? node.operatorToken.kind
    : undefined;
  const target = step
    ? node.operand
    : ts.isBinaryExpression(node)
    ? node.left
    : undefined;
  const plain = token === ts.SyntaxKind.EqualsToken;
  const op = token === undefined ? undefined : ASSIGNMENTS[token];
  if (!target || (!plain && !op)) {
    throw errorAt(
      node,
      `Cannot lower '${node.getText()}' as a statement: it has no effect on the result. Assign it to a variable or return it`,
    );
  }
  const symbol = ts.isIdentifier(target)
    ? lowering.checker.getSymbolAtLocation(target)
    : undefined;
  if (!symbol || !env.locals.has(symbol)) {
    throw errorAt(
      target,
      `Cannot assign to '${target.getText()}': it is not a variable of this function, and a kernel function cannot change outer variables. Use a local variable and return it`,
    );
  }
  const operand = step
    ? k.f32(1)
    : lowerExpression((node as ts.BinaryExpression).right, env, lowering);
  if (plain) {
    env.values.set(symbol, bind(operand, lowering));
    return;
  }
  const before = lowerExpression(target, env, lowering);
  if (before.type !== "f32" || operand.type !== "f32") {
    throw errorAt(
      node,
      `Cannot compute '${node.getText()}': it mixes numbers and booleans. Use numbers`,
    );
  }
  const value = arithmetic(op!, before, operand, (e) => bind(e, lowering));
  env.values.set(symbol, bind(value, lowering));
}

/** Removes unused names, last first. */
function withoutUnused(
  lets: readonly { name: string; value: Expr }[],
  result: Expr,
): ScalarFunction["lets"] {
  const used = new Set<string>();
  addLocals(result, used);
  const needed = [...lets].reverse().filter(({ name, value }) => {
    if (used.has(name)) addLocals(value, used);
    return used.has(name);
  });
  return needed.reverse();
}
