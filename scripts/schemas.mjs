/**
 * Generates JSON Schemas of documents from their TypeScript types, so that a type is the only declaration of its
 * document. Interfaces become closed objects, and tags of doc comments become keywords (`spec/values.ts`). Types are
 * read syntactically, without a type checker: references, unions, tuples, records, mapped types over literals, fields,
 * `Exclude`, `Omit`, `Pick` and `Partial`. Types with the tag `@computed` have no schema: a module adds it.
 *
 *     node scripts/schemas.mjs
 */

import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { loadEsbuild } from "./bundle.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** The generated modules, with a type for each schema. The last word of a type with further fields is `open`. */
export const MODULES = {
  "spec/document/schemas.ts": {
    expandedSchema: ["spec/plan/plan.ts", "Plan", "Switchyard plan, expanded"],
    machineSchema: [
      ...["spec/machine.ts", "Machine", "Switchyard machine, version 1"],
    ],
    planSummarySchema: [
      ...["spec/plan_summary.ts", "PlanSummary"],
      "Summary of a Switchyard plan",
    ],
  },
  "compiler/document/schemas.ts": {
    modelSchema: ["compiler/document/document.ts", "ModelDocument", "Model"],
    modelNodesSchema: [
      ...["compiler/document/document.ts", "NodeDocuments", "Nodes of a model"],
    ],
  },
  "engine/server/request_schemas.ts": {
    completionSchema: [
      ...["engine/server/request_types.ts", "CompletionRequest"],
      ...["Body of /v1/completions", "open"],
    ],
    chatSchema: [
      ...["engine/server/request_types.ts", "ChatRequest"],
      ...["Body of /v1/chat/completions", "open"],
    ],
    responseSchema: [
      ...["engine/server/request_types.ts", "ResponseRequest"],
      ...["Body of /v1/responses", "open"],
    ],
  },
  "engine/saved_schemas.ts": {
    receiptSchema: [
      "engine/generation/receipt/receipt.ts",
      "Receipt",
      "Receipt",
    ],
    tuningSchema: ["engine/tune/saved.ts", "TuningFile", "Saved tunings"],
    trainingSchema: [
      "engine/train/saved.ts",
      "SavedTraining",
      "Saved training",
    ],
  },
};

/** Numbers that tags refer to by name. */
const LIMITS = Object.fromEntries(
  [
    ...readFileSync(join(ROOT, "spec/limits.ts"), "utf8")
      .matchAll(/^export const (\w+) = ([\d* <]+);/gm),
  ]
    .map(([, name, value]) => [name, evaluate(value, {})]),
);

function evaluate(text, scope) {
  return new Function(...Object.keys(scope), `return ${text};`)(
    ...Object.values(scope),
  );
}

const NAME = "^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$";

/** Keywords that tags may set. */
const KEYWORDS = new Set([
  ...["minimum", "maximum", "exclusiveMinimum", "pattern", "minLength"],
  ...["maxLength", "minItems", "maxItems", "maxProperties", "uniqueItems"],
]);

/** Returns the schema keywords from the tags of a declaration. */
function keywordsOf(node) {
  const found = {};
  for (const { tagName, comment } of ts.getJSDocTags(node)) {
    const name = tagName.text;
    const text = ts.getTextOfJSDocComment(comment)?.trim() ?? "";
    if (name === "integer") found.type = "integer";
    else if (name === "pattern") {
      found.pattern = text;
    } else if (name === "names") {
      found.propertyNames = { type: "string", pattern: text };
    } else if (name === "uniqueItems") found.uniqueItems = true;
    else if (KEYWORDS.has(name)) found[name] = evaluate(text, LIMITS);
  }
  return found;
}

const files = new Map();

/** Returns the declarations of a source file by name, and its imports. */
function load(path) {
  const known = files.get(path);
  if (known) return known;
  const source = ts.createSourceFile(
    path,
    readFileSync(join(ROOT, path), "utf8"),
    ts.ScriptTarget.Latest,
    true,
  );
  const file = { path, declared: new Map(), imported: new Map() };
  files.set(path, file);
  for (const s of source.statements) {
    if (ts.isInterfaceDeclaration(s) || ts.isTypeAliasDeclaration(s)) {
      file.declared.set(s.name.text, s);
    } else if (ts.isVariableStatement(s)) {
      for (const one of s.declarationList.declarations) {
        file.declared.set(one.name.getText(), one);
      }
    } else if (
      (ts.isImportDeclaration(s) || ts.isExportDeclaration(s)) &&
      s.moduleSpecifier?.text.startsWith(".")
    ) {
      const from = join(dirname(path), s.moduleSpecifier.text);
      const clause = s.importClause?.namedBindings ?? s.exportClause;
      for (const { name, propertyName } of clause?.elements ?? []) {
        file.imported.set(name.text, [from, (propertyName ?? name).text]);
      }
    }
  }
  return file;
}

function resolve(name, file) {
  const node = file.declared.get(name);
  if (node) return { node, file };
  const [from, original] = file.imported.get(name) ?? [];
  if (!from) throw new Error(`${file.path}: no declaration of '${name}'`);
  return resolve(original, load(from));
}

/** Generates the schema of one document. */
class Generator {
  definitions = {};

  /** `open`: objects may have further fields. */
  constructor(open) {
    this.open = open;
  }

  /** Returns the schema of a type in a scope: its file, and the values of type parameters. */
  of(node, scope) {
    switch (node.kind) {
      case ts.SyntaxKind.StringKeyword:
        return { type: "string" };
      case ts.SyntaxKind.NumberKeyword:
        return { type: "number" };
      case ts.SyntaxKind.BooleanKeyword:
        return { type: "boolean" };
      case ts.SyntaxKind.UnknownKeyword:
        return {};
      case ts.SyntaxKind.LiteralType:
        if (node.literal.kind === ts.SyntaxKind.NullKeyword) {
          return { type: "null" };
        }
        return { const: literal(node.literal) };
      case ts.SyntaxKind.ParenthesizedType:
      case ts.SyntaxKind.TypeOperator:
        return this.of(node.type, scope);
      case ts.SyntaxKind.NamedTupleMember:
        return this.of(node.type, scope);
      case ts.SyntaxKind.ArrayType:
        return { type: "array", items: this.of(node.elementType, scope) };
      case ts.SyntaxKind.TupleType: {
        const items = node.elements.map((item) => this.of(item, scope));
        const minItems = items.length;
        if (new Set(items.map((item) => JSON.stringify(item))).size === 1) {
          return {
            type: "array",
            items: items[0],
            minItems,
            maxItems: minItems,
          };
        }
        return { type: "array", items, minItems, additionalItems: false };
      }
      case ts.SyntaxKind.UnionType:
        return unionOf(this.variants(node, scope), (v) => this.resolved(v));
      case ts.SyntaxKind.TypeReference:
        return this.reference(node, scope);
      case ts.SyntaxKind.TypeLiteral:
      case ts.SyntaxKind.MappedType:
      case ts.SyntaxKind.IntersectionType:
        return this.object(node, scope);
      case ts.SyntaxKind.IndexedAccessType:
        return this.indexed(node, scope);
      default:
        throw new Error(`${scope.file.path}: cannot read '${node.getText()}'`);
    }
  }

  /** Returns the schema of the elements of a list, of a field, or of all fields of a mapped type. */
  indexed(node, scope) {
    const { objectType, indexType } = node;
    if (ts.isTypeQueryNode(unparenthesized(objectType))) {
      return { enum: this.literals(node, scope) };
    }
    const names = new Set(this.literals(indexType, scope));
    const variants = this.fields(objectType, scope)
      .filter(({ name }) => names.has(name)).map(({ schema }) => schema());
    return variants.length === 1
      ? variants[0]
      : unionOf(variants, (v) => this.resolved(v));
  }

  variants(node, scope) {
    return node.types
      .filter(({ kind }) => kind !== ts.SyntaxKind.FunctionType)
      .map((type) => this.of(type, scope));
  }

  resolved(schema) {
    const [, name] = /^#\/definitions\/(.*)/.exec(schema.$ref ?? "") ?? [];
    return name ? this.definitions[name] ?? {} : schema;
  }

  reference(node, scope) {
    const name = node.typeName.getText();
    const bound = scope.bound.get(name);
    if (bound) return this.of(bound.node, bound.scope);
    if (name === "Exclude") return { enum: this.literals(node, scope) };
    if (["Omit", "Pick", "Partial", "Record"].includes(name)) {
      return this.object(node, scope);
    }
    const found = resolve(name, scope.file);
    const { typeParameters = [] } = found.node;
    const inner = this.inner(found, node.typeArguments, scope);
    if (typeParameters.length === 0 && isObject(found.node)) {
      if (!(name in this.definitions)) {
        // Reserves the name for recursive references.
        this.definitions[name] = undefined;
        this.definitions[name] = this.declared(found.node, inner);
      }
      return { $ref: `#/definitions/${name}` };
    }
    return this.declared(found.node, inner);
  }

  /** Returns the scope of a declaration that is used with type arguments. */
  inner({ node, file }, args, scope) {
    const { typeParameters = [] } = node;
    return {
      file,
      bound: new Map(
        typeParameters.map(({ name }, i) => [
          name.text,
          { node: args[i], scope },
        ]),
      ),
    };
  }

  declared(node, scope) {
    if (isComputed(node)) return {};
    const schema = ts.isInterfaceDeclaration(node)
      ? this.object(node, scope)
      : this.of(node.type, scope);
    return { ...schema, ...keywordsOf(node) };
  }

  /** Returns the schema of an object, closed unless it is a record or the document is open. */
  object(node, scope) {
    const index = node.members?.find(ts.isIndexSignatureDeclaration);
    if (index && node.members.length === 1) {
      return index.type.kind === ts.SyntaxKind.UnknownKeyword
        ? { type: "object" }
        : record(this.of(index.type, scope));
    }
    const fields = this.fields(node, scope);
    return {
      type: "object",
      properties: Object.fromEntries(
        fields.map(({ name, schema }) => [name, schema()]),
      ),
      required: fields.filter(({ optional }) => !optional)
        .map(({ name }) => name),
      ...this.open ? {} : { additionalProperties: false },
    };
  }

  fields(node, scope) {
    if (ts.isMappedTypeNode(node)) {
      const optional = node.questionToken !== undefined;
      const { name: parameter, constraint } = node.typeParameter;
      return this.literals(constraint, scope).map((name) => ({
        name,
        optional,
        schema: () => this.of(node.type, bind(scope, parameter.text, name)),
      }));
    }
    if (ts.isIntersectionTypeNode(node)) {
      return node.types.flatMap((type) => this.fields(type, scope));
    }
    if (ts.isParenthesizedTypeNode(node)) return this.fields(node.type, scope);
    if (ts.isIndexedAccessTypeNode(node)) {
      const [name] = this.literals(node.indexType, scope);
      const field = this.fields(node.objectType, scope)
        .find((field) => field.name === name);
      return this.fields(field.type, field.scope);
    }
    if (
      ts.isTypeReferenceNode(node) || ts.isExpressionWithTypeArguments(node)
    ) {
      const name = (node.typeName ?? node.expression).getText();
      const [of, keys] = node.typeArguments ?? [];
      if (name === "Record") return [];
      if (name === "Partial") {
        return this.fields(of, scope).map((f) => ({ ...f, optional: true }));
      }
      if (name === "Omit" || name === "Pick") {
        const named = new Set(this.literals(keys, scope));
        return this.fields(of, scope)
          .filter((f) => named.has(f.name) === (name === "Pick"));
      }
      const found = resolve(name, scope.file);
      if (isComputed(found.node)) return [];
      const inner = this.inner(found, node.typeArguments, scope);
      return ts.isTypeAliasDeclaration(found.node)
        ? this.fields(found.node.type, inner)
        : this.fields(found.node, inner);
    }
    const inherited = (node.heritageClauses ?? []).flatMap(({ types }) =>
      types.flatMap((type) => this.fields(type, scope))
    );
    const own = node.members.filter(ts.isPropertySignature).map((member) => ({
      name: member.name.text,
      optional: member.questionToken !== undefined,
      type: member.type,
      scope,
      schema: () => ({
        ...this.of(member.type, scope),
        ...keywordsOf(member),
      }),
    }));
    const names = new Set(own.map(({ name }) => name));
    return [...inherited.filter(({ name }) => !names.has(name)), ...own];
  }

  /** Returns the literals of a type. */
  literals(node, scope) {
    if (ts.isIndexedAccessTypeNode(node)) {
      const query = unparenthesized(node.objectType);
      const found = resolve(query.exprName.getText(), scope.file);
      return elements(found.node.initializer).map(literal);
    }
    if (ts.isTypeOperatorNode(node)) {
      return this.fields(node.type, scope).map(({ name }) => name);
    }
    if (node.typeName?.getText() === "Exclude") {
      const [of, excluded] = node.typeArguments.map((n) =>
        this.literals(n, scope)
      );
      return of.filter((name) => !excluded.includes(name));
    }
    if (ts.isUnionTypeNode(node)) {
      return node.types.flatMap((type) => this.literals(type, scope));
    }
    if (ts.isTypeReferenceNode(node)) {
      const name = node.typeName.getText();
      const bound = scope.bound.get(name);
      if (bound) return this.literals(bound.node, bound.scope);
      const found = resolve(name, scope.file);
      return this.literals(found.node.type, { ...scope, file: found.file });
    }
    const schema = this.of(node, scope);
    return schema.enum ?? [schema.const];
  }
}

function unparenthesized(node) {
  return ts.isParenthesizedTypeNode(node) ? node.type : node;
}

/** Returns a scope in which a type parameter is a word. */
function bind(scope, parameter, word) {
  const node = ts.factory.createLiteralTypeNode(
    ts.factory.createStringLiteral(word),
  );
  return {
    ...scope,
    bound: new Map([...scope.bound, [parameter, { node, scope }]]),
  };
}

/** Whether the schema of a type is added by a module. */
function isComputed(node) {
  return ts.getJSDocTags(node).some(({ tagName }) =>
    tagName.text === "computed"
  );
}

function elements(node) {
  return ts.isArrayLiteralExpression(node)
    ? node.elements
    : elements(node.expression);
}

function literal(node) {
  if (node.kind === ts.SyntaxKind.TrueKeyword) return true;
  if (node.kind === ts.SyntaxKind.FalseKeyword) return false;
  return ts.isNumericLiteral(node) ? Number(node.text) : node.text;
}

/** Returns whether a declaration is an object type, or a union that contains one. */
function isObject(node) {
  if (ts.isInterfaceDeclaration(node)) return true;
  const { type } = node;
  return ts.isUnionTypeNode(type)
    ? !type.types.every((t) => ts.isLiteralTypeNode(t))
    : ts.isTypeLiteralNode(type) && type.members.length > 1;
}

function record(value) {
  return {
    type: "object",
    propertyNames: { type: "string", pattern: NAME },
    additionalProperties: value,
  };
}

/** Returns one schema for several: an enum, a list of types, a union discriminated by a field, or a general union. */
function unionOf(parts, resolved) {
  const variants = parts.flatMap((v) => {
    const { discriminator, oneOf } = resolved(v);
    return discriminator ? oneOf : [v];
  });
  const words = variants.flatMap((v) =>
    v.enum ?? ("const" in v ? [v.const] : [])
  );
  const others = variants.filter((v) => !("enum" in v || "const" in v));
  if (others.length === 0) return { enum: words };
  const literals = words.length > 1 ? { enum: words } : { const: words[0] };
  const all = words.length > 0 ? [literals, ...others] : others;
  const objects = all.map(resolved);
  const [first] = objects;
  const field = Object.keys(first.properties ?? {}).find((name) =>
    objects.every(({ properties, required }) =>
      "const" in (properties?.[name] ?? {}) && required.includes(name)
    )
  );
  if (field) {
    const discriminator = { propertyName: field };
    return { type: "object", required: [field], discriminator, oneOf: all };
  }
  const types = objects.map(({ type, items }) => items ? undefined : type);
  const distinct = new Set(types).size === types.length &&
    types.every((type) => typeof type === "string");
  return distinct
    ? Object.assign({}, ...objects, { type: types })
    : { anyOf: all };
}

/** Inlines definitions that are used once. */
function inlined(schema, definitions) {
  const uses = new Map();
  const visit = (value) => {
    if (typeof value !== "object" || value === null) return;
    if (value.$ref) uses.set(value.$ref, (uses.get(value.$ref) ?? 0) + 1);
    Object.values(value).forEach(visit);
  };
  visit(schema);
  visit(definitions);
  const nameOf = (ref) => ref.slice("#/definitions/".length);
  const once = (ref) =>
    (uses.get(ref) ?? 0) < 2 &&
    !JSON.stringify(definitions[nameOf(ref)]).includes(`"${ref}"`);
  const put = (value) => {
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map(put);
    if (value.$ref && once(value.$ref)) {
      const { $ref, ...rest } = value;
      return { ...put(definitions[nameOf($ref)]), ...rest };
    }
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [key, put(inner)]),
    );
  };
  const kept = Object.entries(definitions)
    .filter(([name]) => !once(`#/definitions/${name}`))
    .map(([name, definition]) => [name, put(definition)]);
  return {
    ...put(schema),
    ...kept.length > 0 ? { definitions: Object.fromEntries(kept) } : {},
  };
}

/** Returns the JSON Schema of a type. */
export function schemaOf(path, name, title, open) {
  const generator = new Generator(open !== undefined);
  const { node, file } = resolve(name, load(path));
  const schema = generator.declared(node, { file, bound: new Map() });
  return {
    $schema: "http://json-schema.org/draft-07/schema#",
    title,
    ...inlined(schema, generator.definitions),
  };
}

/** Returns the text of a module of schemas. */
export function moduleText(path) {
  const schemas = Object.entries(MODULES[path]).map(([name, from]) => {
    const [source, type] = from;
    return `/** Schema of \`${type}\` in ${source}. */\nexport const ${name}: Schema = ${
      wrapped(JSON.stringify(schemaOf(...from)))
    };\n`;
  });
  const up = path.split("/").slice(0, -1).map(() => "../").join("");
  return `/** JSON Schemas of documents. \`node scripts/schemas.mjs\` generates them from the named types. */
// deno-fmt-ignore-file

import type { Schema } from "${up}spec/document/schema.ts";

${schemas.join("\n")}`;
}

/** Formats JSON in lines of at most 120 characters. */
function wrapped(json) {
  const parts = json.match(/"(?:[^"\\]|\\.)*"|[^"]/g);
  const lines = [""];
  for (const part of parts) {
    if (lines.at(-1).length > 100 && lines.at(-1).endsWith(",")) {
      lines.push("  ");
    }
    lines[lines.length - 1] += part;
  }
  return lines.join("\n");
}

/** Returns the generated files by path: modules, and schemas of public documents. */
export async function schemaFiles() {
  const modules = Object.keys(MODULES).map((path) => [path, moduleText(path)]);
  const { outputFiles: [made] } = await loadEsbuild().build({
    stdin: {
      contents: `export { planSchema } from "./spec/document/plan_schema.ts";
        export * from "./spec/document/schemas.ts";`,
      resolveDir: ROOT,
    },
    bundle: true,
    write: false,
    format: "esm",
    tsconfigRaw: "{}",
  });
  const code = Buffer.from(made.contents).toString("base64");
  const loaded = await import(`data:text/javascript;base64,${code}`);
  const { planSchema, machineSchema, planSummarySchema } = loaded;
  const documents = { planSchema, machineSchema, planSummarySchema };
  return [
    ...modules,
    ...Object.entries(documents).map(([name, schema]) => [
      `spec/${
        name.replace("Schema", "").replace(
          /[A-Z]/g,
          (c) => `_${c.toLowerCase()}`,
        )
      }.schema.json`,
      `${JSON.stringify(schema, null, 2)}\n`,
    ]),
  ];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // The documents are generated from the modules.
  for (const path of Object.keys(MODULES)) {
    writeFileSync(join(ROOT, path), moduleText(path));
  }
  for (const [path, text] of await schemaFiles()) {
    writeFileSync(join(ROOT, path), text);
  }
}
