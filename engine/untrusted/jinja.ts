/**
 * Chat templates in Jinja. `@huggingface/jinja` deviates from Python in ways that change prompts: `strip` ignores its
 * argument, `continue` and `break` drop the text of their iteration, and booleans and lists print as JSON. It has
 * neither `format` of strings nor `append` of lists. This file changes its classes.
 */

import { Environment, Interpreter, Template } from "@huggingface/jinja";

/** A value of a template. */
interface Value {
  readonly type: string;
  readonly value: unknown;
}

/** A function of a template; a `KeywordArgumentsValue` is last. */
type Method = (args: readonly Value[]) => Value;

interface Node {
  readonly type: string;
}

/** The methods of `Interpreter` that are changed. */
interface Evaluator {
  evaluate(node: Node | undefined, environment: Environment): Value;
  evaluateBlock(nodes: readonly Node[], environment: Environment): Value;
  evaluateFor(node: Loop, environment: Environment): Value;
  applyFilter(operand: Value, filter: Filter, environment: Environment): Value;
}

interface Loop extends Node {
  readonly body: readonly Node[];
}

/** The body of a loop. */
interface Body extends Loop {
  /** The `break` that ended an iteration. */
  ended?: Node;
}

interface Filter extends Node {
  /** Name of a filter without arguments. */
  readonly value?: string;
}

type Class = (new (value: unknown) => Value) & { readonly prototype: object };

/** Compiles a template. Throws its syntax error. */
export function compileTemplate(source: string): Template {
  return new Template(source);
}

const classes = new Environment();

/** The class of a template's value. */
function classOf(name: string, value: unknown): Class {
  return classes.set(name, value).constructor as unknown as Class;
}

const Text = classOf("text", "");
const List = classOf("list", []);
const Mapping = classOf("mapping", {});
const Truth = classOf("truth", true);
const Callable = classOf("callable", () => null);
const Null = classOf("null", null);

/** `continue` or `break`, with the text of the iteration before it. */
class Exit extends Error {
  readonly node: Node;
  text = "";

  constructor(node: Node) {
    super(`'${node.type.toLowerCase()}' outside a loop`);
    this.node = node;
  }
}

/** Filters that convert their operand to a string first. */
const TEXT_FILTERS = new Set([
  "capitalize",
  "lower",
  "string",
  "title",
  "trim",
  "upper",
]);

const original = methodsOf(Interpreter.prototype);

function methodsOf(prototype: Interpreter): Evaluator {
  const { evaluate, evaluateBlock, evaluateFor, applyFilter } =
    prototype as unknown as Evaluator;
  return { evaluate, evaluateBlock, evaluateFor, applyFilter };
}

const changed: Evaluator & ThisType<Evaluator> = {
  evaluate(node, environment) {
    if (node?.type === "Break" || node?.type === "Continue") {
      throw new Exit(node);
    }
    if (node?.type !== "Body") {
      return original.evaluate.call(this, node, environment);
    }
    const body = node as Body;
    // Ends the loop after the iteration with the `break` has returned its text.
    if (body.ended) {
      return original.evaluate.call(this, body.ended, environment);
    }
    try {
      return this.evaluateBlock(body.body, environment);
    } catch (error) {
      if (!(error instanceof Exit)) throw error;
      if (error.node.type === "Break") body.ended = error.node;
      return new Text(error.text);
    }
  },
  evaluateBlock(nodes, environment) {
    let text = "";
    for (const node of nodes) {
      try {
        const value = this.evaluate(node, environment);
        if (!/^(Null|Undefined)Value$/.test(value.type)) text += String(value);
      } catch (error) {
        if (error instanceof Exit) error.text = text + error.text;
        throw error;
      }
    }
    return new Text(text);
  },
  evaluateFor(node, environment) {
    const body: Body = { type: "Body", body: node.body };
    return original.evaluateFor.call(
      this,
      { ...node, body: [body] },
      environment,
    );
  },
  applyFilter(operand, filter, environment) {
    const { type, value: name = "" } = filter;
    if (type !== "Identifier" || !TEXT_FILTERS.has(name)) {
      return original.applyFilter.call(this, operand, filter, environment);
    }
    const text = new Text(pythonText(operand));
    return name === "string"
      ? text
      : original.applyFilter.call(this, text, filter, environment);
  },
};
Object.assign(Interpreter.prototype, changed);

for (const { prototype } of [Truth, List, Mapping]) {
  Object.defineProperty(prototype, "toString", {
    value(this: Value) {
      return pythonText(this);
    },
  });
}

addMethods(Text, {
  strip: (text, [set]) =>
    stripped(text as string, set, { start: true, end: true }),
  lstrip: (text, [set]) => stripped(text as string, set, { start: true }),
  rstrip: (text, [set]) => stripped(text as string, set, { end: true }),
  format: (text, args) => new Text(formatted(text as string, args)),
});
addMethods(List, {
  append(items, [item]) {
    (items as Value[]).push(item!);
    return new Null(null);
  },
});

/** Adds methods to the values of a class. */
function addMethods(
  { prototype }: Class,
  methods: {
    readonly [name: string]: (value: unknown, args: readonly Value[]) => Value;
  },
): void {
  const { get } = Object.getOwnPropertyDescriptor(prototype, "builtins")!;
  Object.defineProperty(prototype, "builtins", {
    get(this: Value) {
      const all = new Map<string, Value>(get!.call(this));
      for (const [name, method] of Object.entries(methods)) {
        const bound: Method = (args) => method(this.value, args);
        all.set(name, new Callable(bound));
      }
      return all;
    },
  });
}

/** Removes the characters of a set, or white space, from the ends of a text. */
function stripped(
  text: string,
  set: Value | undefined,
  { start = false, end = false }: {
    readonly start?: boolean;
    readonly end?: boolean;
  },
): Value {
  const removed = set?.type === "StringValue"
    ? (character: string) => (set.value as string).includes(character)
    : (character: string) => character.trim() === "";
  const characters = [...text];
  let [from, to] = [0, characters.length];
  while (start && from < to && removed(characters[from]!)) from++;
  while (end && to > from && removed(characters[to - 1]!)) to--;
  return new Text(characters.slice(from, to).join(""));
}

/** Python's `str.format` with fields `{}`, `{0}` and `{name}`. Throws Error for others. */
function formatted(text: string, args: readonly Value[]): string {
  const last = args.at(-1);
  const named = last?.type === "KeywordArgumentsValue"
    ? last.value as ReadonlyMap<string, Value>
    : new Map<string, Value>();
  let next = 0;
  return text.replace(/{{|}}|{([^{}]*)}/g, (all, field?: string) => {
    if (field === undefined) return all[0]!;
    const value = field === ""
      ? args[next++]
      : /^\d+$/.test(field)
      ? args[Number(field)]
      : named.get(field);
    if (value !== undefined) return pythonText(value);
    throw new Error(`Cannot format '${all.slice(0, 100)}': no such argument`);
  });
}

/** Python's `str` of a value. */
function pythonText(value: Value): string {
  return value.type === "StringValue" ? value.value as string : repr(value);
}

/** Python's `repr` of a value. */
function repr(value: Value): string {
  switch (value.type) {
    case "BooleanValue":
      return value.value ? "True" : "False";
    case "NullValue":
      return "None";
    case "UndefinedValue":
      return "";
    case "StringValue":
      return quoted(value.value as string);
    case "ArrayValue":
      return `[${(value.value as Value[]).map(repr).join(", ")}]`;
    case "TupleValue":
      return `(${(value.value as Value[]).map(repr).join(", ")})`;
    case "ObjectValue":
      return `{${
        [...value.value as ReadonlyMap<string, Value>]
          .map(([key, one]) => `${quoted(key)}: ${repr(one)}`).join(", ")
      }}`;
    default:
      return String(value);
  }
}

function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(
    /[\\\n\r\t]/g,
    (one) => JSON.stringify(one).slice(1, -1),
  )
    .replaceAll(quote, `\\${quote}`);
  return `${quote}${escaped}${quote}`;
}
