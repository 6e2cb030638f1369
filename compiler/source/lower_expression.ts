/** Expressions of a scalar function. */

import { LowerError } from "../../spec/errors.ts";
import * as k from "../../spec/kernel/build.ts";
import type { BinaryOp, Expr } from "../../spec/kernel/tree.ts";
import {
  and,
  arithmetic,
  choose,
  compare,
  constantNumber,
  MATH_FUNCTIONS,
  mathArity,
  mathCall,
  mathConstant,
  negate,
  not,
  or,
} from "./arithmetic.ts";
import { errorAt, nameOfKind } from "./errors.ts";
import {
  bind,
  conditionOf,
  type Environment,
  type FunctionNode,
  inline,
  isFunctionNode,
  type Lowering,
  parameterType,
} from "./lower_function.ts";
import { ts } from "./project.ts";

const LARGEST_F32 = 3.4028234663852886e38;

/** The value of an expression. Constants are folded; one that f32 cannot represent is an error. */
export function lowerExpression(
  node: ts.Expression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const value = visit(node, env, lowering);
  const number = constantNumber(value);
  if (number !== undefined && !(Math.abs(number) <= LARGEST_F32)) {
    throw errorAt(
      node,
      `Cannot lower '${node.getText()}': its value is ${number}, which is no finite f32. Use a finite number`,
    );
  }
  return value;
}

function visit(
  node: ts.Expression,
  env: Environment,
  lowering: Lowering,
): Expr {
  if (
    ts.isParenthesizedExpression(node) || ts.isAsExpression(node) ||
    ts.isNonNullExpression(node) || ts.isSatisfiesExpression(node) ||
    ts.isTypeAssertionExpression(node)
  ) return lowerExpression(node.expression, env, lowering);
  if (ts.isNumericLiteral(node)) return k.f32(Number(node.text));
  if (node.kind === ts.SyntaxKind.TrueKeyword) return k.bool(true);
  if (node.kind === ts.SyntaxKind.FalseKeyword) return k.bool(false);
  if (ts.isIdentifier(node)) return nameValue(node, env, lowering);
  if (ts.isPropertyAccessExpression(node)) return property(node, env, lowering);
  if (ts.isPrefixUnaryExpression(node)) return prefix(node, env, lowering);
  if (ts.isBinaryExpression(node)) return operation(node, env, lowering);
  if (ts.isConditionalExpression(node)) {
    const condition = conditionOf(node.condition, env, lowering);
    const a = lowerExpression(node.whenTrue, env, lowering);
    const b = lowerExpression(node.whenFalse, env, lowering);
    if (a.type !== b.type) {
      throw errorAt(
        node,
        "Cannot choose between a number and a boolean: a kernel value has one type. Make both numbers",
      );
    }
    return choose(condition, a, b);
  }
  if (ts.isCallExpression(node)) return invoke(node, env, lowering);
  throw errorAt(
    node,
    `Cannot lower ${
      nameOfKind(node)
    }: a scalar function works on numbers and booleans. Write it with operators, 'Math' and plain functions`,
  );
}

function prefix(
  node: ts.PrefixUnaryExpression,
  env: Environment,
  lowering: Lowering,
): Expr {
  if (node.operator === ts.SyntaxKind.ExclamationToken) {
    return not(conditionOf(node.operand, env, lowering));
  }
  if (node.operator === ts.SyntaxKind.MinusToken) {
    return negate(numberOf(node.operand, env, lowering));
  }
  if (node.operator === ts.SyntaxKind.PlusToken) {
    return numberOf(node.operand, env, lowering);
  }
  throw errorAt(
    node,
    `Cannot lower the operator '${
      ts.tokenToString(node.operator)
    }' here: kernel arithmetic is + - * / % ** and comparisons. Write it with those`,
  );
}

/** An expression that must be a number. */
function numberOf(
  node: ts.Expression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const value = lowerExpression(node, env, lowering);
  if (value.type === "f32") return value;
  throw errorAt(
    node,
    `Cannot use '${node.getText()}' as a number: it is a boolean. Write '${node.getText()} ? 1 : 0'`,
  );
}

const COMPARISONS: ReadonlyMap<string, BinaryOp> = new Map([
  ["<", "lt"],
  ["<=", "le"],
  [">", "gt"],
  [">=", "ge"],
  ["===", "eq"],
  ["!==", "ne"],
  ["==", "eq"],
  ["!=", "ne"],
]);

function operation(
  node: ts.BinaryExpression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const { left, right, operatorToken } = node;
  const op = operatorToken.getText();
  switch (op) {
    case "&&":
      return and(
        conditionOf(left, env, lowering),
        conditionOf(right, env, lowering),
      );
    case "||":
      return or(
        conditionOf(left, env, lowering),
        conditionOf(right, env, lowering),
      );
    case "+":
    case "-":
    case "*":
    case "/":
    case "%":
    case "**":
      return arithmetic(
        op,
        numberOf(left, env, lowering),
        numberOf(right, env, lowering),
        (e) => bind(e, lowering),
      );
  }
  const comparison = COMPARISONS.get(op);
  if (!comparison) {
    throw errorAt(
      operatorToken,
      `Cannot lower the operator '${op}' here: kernel arithmetic is + - * / % ** and comparisons. Write it with those`,
    );
  }
  const a = lowerExpression(left, env, lowering);
  const b = lowerExpression(right, env, lowering);
  const same = comparison === "eq" || comparison === "ne";
  if (a.type !== b.type || (a.type === "bool" && !same)) {
    throw errorAt(
      node,
      `Cannot compare '${left.getText()}' with '${right.getText()}': they are not both numbers. Compare numbers`,
    );
  }
  return compare(comparison, a, b);
}

/** Whether a name refers to the global of that name: nothing in the program declares it. */
function isGlobal(node: ts.Node, name: string, { checker }: Lowering): boolean {
  return ts.isIdentifier(node) && node.text === name &&
    !symbolOf(node, checker);
}

/** The symbol of a name, through imports. */
function symbolOf(
  node: ts.Node,
  checker: ts.TypeChecker,
): ts.Symbol | undefined {
  const symbol = checker.getSymbolAtLocation(node);
  return symbol && symbol.flags & ts.SymbolFlags.Alias
    ? checker.getAliasedSymbol(symbol)
    : symbol;
}

function nameValue(
  node: ts.Identifier,
  env: Environment,
  lowering: Lowering,
): Expr {
  const symbol = symbolOf(node, lowering.checker);
  const value = symbol && env.values.get(symbol);
  if (value) return value;
  if (symbol && env.locals.has(symbol)) {
    throw errorAt(
      node,
      `Cannot read '${node.text}': it has no value on every path to here. Give it one where it is declared`,
    );
  }
  if (
    ["Infinity", "NaN", "undefined"].includes(node.text) &&
    isGlobal(node, node.text, lowering)
  ) {
    throw errorAt(
      node,
      `Cannot lower '${node.text}': a kernel works on finite numbers. Use a finite number`,
    );
  }
  return captured(node, symbol?.valueDeclaration, lowering);
}

function property(
  node: ts.PropertyAccessExpression,
  env: Environment,
  lowering: Lowering,
): Expr {
  if (isGlobal(node.expression, "Math", lowering)) {
    const value = mathConstant(node.name.text);
    if (value) return value;
  }
  const base = ts.isIdentifier(node.expression) &&
    symbolOf(node.expression, lowering.checker);
  if (base && env.locals.has(base)) {
    throw errorAt(
      node,
      `Cannot read '${node.getText()}': a kernel has only numbers and booleans. Pass the number itself`,
    );
  }
  return captured(node, undefined, lowering);
}

/** A constant from outside the function. */
function captured(
  node: ts.Identifier | ts.PropertyAccessExpression,
  declaration: ts.Declaration | undefined,
  lowering: Lowering,
): Expr {
  const name = node.getText();
  if (lowering.onlyText) {
    throw errorAt(
      node,
      `Cannot capture '${name}': ${lowering.onlyText}. Pass it as a parameter`,
    );
  }
  if (
    declaration && ts.isVariableDeclaration(declaration) &&
    !isConst(declaration)
  ) {
    const word = declaration.parent.flags & ts.NodeFlags.Let ? "let" : "var";
    throw errorAt(
      node,
      `Cannot capture '${name}': it is declared with '${word}', and a kernel can only bake in a const literal. Pass it as a parameter`,
    );
  }
  const value = constantOf(node, lowering);
  if (value) return value;
  throw errorAt(
    node,
    `Cannot capture '${name}': its value is not known at compile time. Pass it as a parameter`,
  );
}

/** The value of a name or of a property of a const object literal, if the source determines it. */
function constantOf(node: ts.Expression, lowering: Lowering): Expr | undefined {
  const source = definitionOf(node, lowering.checker);
  if (!source || lowering.depth > LONGEST_CHAIN) return undefined;
  const inner = { ...lowering, lets: [], depth: lowering.depth + 1 };
  try {
    const value = lowerExpression(
      source,
      { values: new Map(), locals: new Set() },
      inner,
    );
    return value.op === "const" ? value : undefined;
  } catch (error) {
    if (error instanceof LowerError) return undefined;
    throw error;
  }
}

/** Maximum length of a chain of consts defined by consts; longer chains are cyclic. */
const LONGEST_CHAIN = 50;

/** The initializer of a const name or of a property of a const object literal. */
function definitionOf(
  node: ts.Expression,
  checker: ts.TypeChecker,
): ts.Expression | undefined {
  if (ts.isPropertyAccessExpression(node)) {
    const object = objectOf(node.expression, checker);
    const found = object?.properties.find((p) =>
      p.name && !ts.isComputedPropertyName(p.name) &&
      p.name.text === node.name.text
    );
    if (found && ts.isPropertyAssignment(found)) return found.initializer;
    if (found && ts.isShorthandPropertyAssignment(found)) {
      return initializerOf(
        checker.getShorthandAssignmentValueSymbol(found),
        checker,
      );
    }
    return object
      ? undefined
      : initializerOf(symbolOf(node.name, checker), checker);
  }
  return ts.isIdentifier(node)
    ? initializerOf(symbolOf(node, checker), checker)
    : undefined;
}

function initializerOf(
  symbol: ts.Symbol | undefined,
  checker: ts.TypeChecker,
): ts.Expression | undefined {
  const target = symbol && symbol.flags & ts.SymbolFlags.Alias
    ? checker.getAliasedSymbol(symbol)
    : symbol;
  const declaration = target?.valueDeclaration;
  return declaration && ts.isVariableDeclaration(declaration) &&
      isConst(declaration)
    ? declaration.initializer
    : undefined;
}

/** The object literal of an expression. */
function objectOf(
  node: ts.Expression,
  checker: ts.TypeChecker,
  depth: number = 0,
): ts.ObjectLiteralExpression | undefined {
  const plain = unwrap(node);
  if (ts.isObjectLiteralExpression(plain)) return plain;
  const source = depth < LONGEST_CHAIN
    ? definitionOf(plain, checker)
    : undefined;
  return source && objectOf(source, checker, depth + 1);
}

function unwrap(node: ts.Expression): ts.Expression {
  if (
    ts.isParenthesizedExpression(node) || ts.isAsExpression(node) ||
    ts.isSatisfiesExpression(node) || ts.isNonNullExpression(node)
  ) return unwrap(node.expression);
  if (
    ts.isCallExpression(node) &&
    node.expression.getText() === "Object.freeze" && node.arguments[0]
  ) {
    return unwrap(node.arguments[0]);
  }
  return node;
}

function isConst(declaration: ts.VariableDeclaration): boolean {
  return ts.isVariableDeclarationList(declaration.parent) &&
    (declaration.parent.flags & ts.NodeFlags.BlockScoped) ===
      ts.NodeFlags.Const;
}

function invoke(
  node: ts.CallExpression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const callee = unwrap(node.expression);
  if (
    ts.isPropertyAccessExpression(callee) &&
    isGlobal(callee.expression, "Math", lowering)
  ) {
    return invokeMath(node, callee, env, lowering);
  }
  const name = callee.getText();
  const fn = functionOf(callee, lowering.checker);
  if (!fn) {
    const why = lowering.onlyText ?? "its source is not a plain function";
    throw errorAt(
      callee,
      `Cannot call '${name}' from a scalar function: ${why}. Call 'Math' or a function declared in the model's own files`,
    );
  }
  if (lowering.calls.includes(fn)) {
    throw errorAt(
      callee,
      `Cannot call '${name}' from itself: a kernel function cannot recurse. Write it without recursion`,
    );
  }
  if (node.arguments.length !== fn.parameters.length) {
    throw errorAt(
      node,
      `Cannot call '${name}' with ${node.arguments.length} arguments: it takes ${fn.parameters.length}. Give each parameter a value`,
    );
  }
  const types = fn.parameters.map(parameterType);
  const args = node.arguments.map((argument, i) =>
    types[i] === "bool"
      ? conditionOf(argument, env, lowering)
      : numberOf(argument, env, lowering)
  );
  return inline(fn, args, env, lowering);
}

function invokeMath(
  node: ts.CallExpression,
  callee: ts.PropertyAccessExpression,
  env: Environment,
  lowering: Lowering,
): Expr {
  const name = callee.name.text;
  const arity = mathArity(name);
  if (arity === undefined) {
    throw errorAt(
      callee,
      `Cannot lower 'Math.${name}': kernels have no such function. Use one of ${
        MATH_FUNCTIONS.join(", ")
      }`,
    );
  }
  const count = node.arguments.length;
  if (arity === "any" ? count === 0 : count !== arity) {
    const needed = arity === "any" ? "at least 1" : arity;
    throw errorAt(
      node,
      `Cannot call 'Math.${name}' with ${count} arguments: it takes ${needed}. Give each a value`,
    );
  }
  const args = node.arguments.map((argument) =>
    numberOf(argument, env, lowering)
  );
  return mathCall(name, args, (e) => bind(e, lowering));
}

/** The function of an expression, through imports and consts. */
export function functionOf(
  node: ts.Expression,
  checker: ts.TypeChecker,
  depth: number = 0,
): FunctionNode | undefined {
  const plain = unwrap(node);
  if (isFunctionNode(plain)) return plain;
  const name = ts.isPropertyAccessExpression(plain) ? plain.name : plain;
  const declaration = ts.isIdentifier(name)
    ? symbolOf(name, checker)?.valueDeclaration
    : undefined;
  if (isFunctionNode(declaration)) return declaration;
  const source = depth < LONGEST_CHAIN
    ? definitionOf(plain, checker)
    : undefined;
  return source && functionOf(source, checker, depth + 1);
}
