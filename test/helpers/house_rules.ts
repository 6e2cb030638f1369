/** House rules as checks of parsed files, without a type checker. */

import {
  type ExportableNode,
  Node,
  type SourceFile,
  SyntaxKind,
} from "ts-morph";

/** Imports allowed between layers. A name with a file allows only that file. */
const MAY_IMPORT: { readonly [layer: string]: readonly string[] } = {
  spec: [],
  compiler: ["spec"],
  runtime: ["spec"],
  models: ["compiler/mod.ts"],
  engine: ["models", "compiler", "runtime", "spec"],
  view: ["spec"],
  browser: ["engine", "compiler", "runtime", "spec"],
  cli: [
    "engine",
    "view",
    "spec",
    "runtime/available_cores.ts",
    "runtime/cache/folders.ts",
  ],
  examples: [],
};

/** Imports allowed between folders of the compiler. Files outside the folders may import all of them. */
const COMPILER_MAY_IMPORT: { readonly [part: string]: readonly string[] } = {
  graph: [],
  dsl: ["graph"],
  kernels: ["graph", "tuning"],
  passes: ["graph", "kernels", "sharding", "tuning"],
  sharding: ["graph"],
  tuning: [],
  source: ["graph", "dsl"],
};

/** Files that may import each package. Only tests and benchmarks may import other packages. */
const PACKAGES: { readonly [name: string]: RegExp } = {
  "@ts-morph/common": /^compiler\/source\/typescript\.ts$/,
  "webgpu": /^runtime\/gpu\/adapters\.ts$/,
  "koffi": /^runtime\/((mpi|native)\/|koffi\.ts$)/,
  "ajv": /^(spec|engine\/server)\//,
  "binaryen": /^runtime\/cpu\//,
  "@huggingface/jinja": /^engine\//,
  "@huggingface/tokenizers": /^(browser|engine\/untrusted)\//,
  "@mlc-ai/web-xgrammar": /^engine\/untrusted\//,
  "@huggingface/gguf": /^engine\/gguf\//,
  "@huggingface/hub": /^cli\/hub\//,
  "hono": /^engine\/server\//,
  "prom-client": /^engine\/server\//,
  "@hono/node-server": /^cli\/http\/listen\.ts$/,
  "commander": /^cli\//,
  "cli-progress": /^cli\//,
  "preact": /^view\/page\//,
  "@dagrejs/dagre": /^view\/pictures\/flow\.ts$/,
  "switchyard-moe": /^(examples|models)\//,
};

/** Files that may access the file system and the process. */
const AT_THE_EDGE =
  /^(cli\/|compiler\/(source|editor)\/|runtime\/(available_cores|control_groups|gpu\/(adapters|quietly))\.ts$|runtime\/(cache|cpu|mpi|native)\/|engine\/untrusted\/|examples\/|test\/|bench\/)/;

/** Words to replace in code, comments, messages and docs, with the standard term. */
const WORDS: readonly (readonly [gives: RegExp, way: string])[] = [
  [/\b(deals?|dealt|dealing)\b/i, "assign, shard"],
  [/\bverbs?\b/i, "op"],
  [/\bsend_?once\b/i, "deduplicate"],
  [/\bremember(s|ed)?\b/i, "optimizer state, cached"],
  [/\b(pump|meeting)\b/i, "progress engine, rendezvous"],
  [/\bresidences?\b/i, "rank of a sequence"],
  [/\btold\b/i, "reported, known, asked"],
  [/\bstrangers?\b/i, "untrusted"],
  [/\balike\b/i, "equal"],
  [/\bunder way\b|\bflies off\b/i, "in flight"],
  [/\bcarr(y|ies|ied|ying) ((it|them|a \w+( or a \w+)?) )?out\b/i, "execute"],
  [/\btravel(s|led)?\b/i, "send"],
  [/\brun-time ax[ie]s\b/i, "dynamic axis"],
  [/\b(comes?|came|goes|brought) (back|home)\b|\bgoesBack\b/i, "return"],
  [/\blongest gradient\b/i, "norm of the gradient"],
  [/\bcarryOut\b|\bfliesOff\b/, "execute, is asynchronous"],
  [/\b[a-z]+Again\b/, "recompute, repeat"],
  [/\bat home\b|\bhomes(Of)?\b/, "rank of a token"],
  [
    /\b(own|all) items of\b|\ball of own\b|\ball of a sum\b/,
    "reduce-scatter, all-gather, all-reduce",
  ],
  [/\btakeTurns\b|\binTurn\b|\bturnsOf\b/, "interleave, in order, iterations"],
  [
    /\blies[A-Z]\w*|\blies? (in|on|at|along|where)\b|\bax[ie]s lies?\b/,
    "is stored",
  ],
  [
    /\bwhole\b( \*)? on (each|every) rank|\b(made|makes?) whole\b/i,
    "replicated",
  ],
  [/\bturned\b/, "rotated, reordered, transposed"],
  [/\b(whole|own) embed\b/i, "replicated, local"],
  [
    /\bpositions?Over\b|\b(group|exchange) positions?\b|\bposition (in|of) (the|its|a) group\b/i,
    "group rank, group size",
  ],
  [
    /\bcolumns of (the )?counts\b|\b(reachAll|exchange reach)\b/,
    "experts, destination counts",
  ],
  [
    /\bcut\w* over (the )?(ranks|mesh)|\bspread over (the )?(ranks|mesh)/i,
    "shard",
  ],
  [/\bgatherWhole\b|\bisSpread\b|\bProphet\b|\bCutter\b/, "shard, gather"],
  [/\bmoved (forward|back)\b|\bstep\.moved\b/, "received counts"],
  [/\b(params|assign)\.own\b/, "local"],
  [
    /\bturns of (a |the )?(loops?|variables?)\b|\bloops? that (is|are) written out\b/i,
    "iterations, unrolled",
  ],
  [/\bTurnMeter\b|\bdevice!?\.turn\b/, "sync"],
  [/\bmend(s|ed|ing)?\b|[a-z]Mend\b/, "fix"],
  [/\bscenes?\b|\bScene\w*|\bsceneSvg\b/, "figure, workload"],
  [/\b(MOST|LEAST)(_[A-Z]+)*\b|\b(most|least)[A-Z]\w*/, "max, min"],
  [
    /\bplace(Of|sOf|At|In|Text)\b|\b(Step|Launch|Rank|Token|Batch)Places?\b/,
    "index, slot, location",
  ],
  [/\bexchange places\b/, "token indices"],
  [/\bKept[A-Z]\w*/, "cached, saved"],
  [/\bwhole(Of|s|Axis|Text)\b|\bnormWhole\b/, "complete, gathered"],
  [/\b[sS]tandIns?\w*|\bwithStands\b/, "representative"],
  [/^\s*(\*|\/[/*]).*\b(lies?|lain)\b/i, "is stored, is laid out"],
];

/** Phrases in which such a word has its everyday sense. */
const PLAIN_SENSE: readonly (readonly [place: RegExp, why: string])[] = [
  [/Once upon a time/, "what the bundled model wrote"],
  [/Cannot <verb>/, "the grammar of messages"],
  [/lies? about/, "of a header that is wrong"],
];

/** Returns the words of a text to replace, as `path:line 'word': say …`. */
export function staleWords(text: string, path: string): string[] {
  return text.split("\n").flatMap((line, i) => {
    if (PLAIN_SENSE.some(([place]) => place.test(line))) return [];
    return WORDS.flatMap(([gives, way]) => {
      const found = gives.exec(line)?.[0].trim();
      return found
        ? [`${path}:${i + 1} '${found.slice(-40)}': say ${way}`]
        : [];
    });
  });
}

/** Files whose functions read like the language and may have more than two arguments. */
const OPS = /^(compiler\/dsl\/|models\/|spec\/kernel\/build\.ts$)/;

/** Files whose words are checked. */
const WORDED =
  /^(spec|compiler|runtime|models|engine|view|browser|cli|bench|examples)\//;

const LIBRARY = /^(spec|compiler|runtime|models|engine|view|browser|cli)\//;

const WGSL = /@compute|@workgroup_size|var<storage|@group\(/;

const MAX_LINES = 500;

/** Constructors of trees that a kernel may import: kernels are text. */
const MAX_CONSTRUCTORS = 3;

/** Maximum arguments of a function that only its layer calls. */
const MAX_INTERNAL_ARGUMENTS = 4;

/**
 * Returns all breaches of house rules in a file, as `path:line problem`. `path`: relative to the repository.
 * `published`: names of this file that the layer's mod.ts exports.
 */
export function findings(
  file: SourceFile,
  path: string,
  { published = "all" }: { published?: Published } = {},
): string[] {
  const found: string[] = [];
  const report = (node: Node, problem: string) =>
    found.push(`${path}:${node.getStartLineNumber()} ${problem}`);
  checkFile(file, { path, report });
  checkImports(file, { path, report });
  checkText(file, { path, report });
  if (WORDED.test(path)) found.push(...staleWords(file.getFullText(), path));
  if (LIBRARY.test(path)) {
    checkExports(file, { path, report, published });
    checkErrors(file, { path, report });
  }
  return found;
}

/** Names of one file that a layer's mod.ts exports. */
export type Published = ReadonlySet<string> | "all";

/** Returns the names that mod.ts files of layers export, by the path of the declaring file. */
export function publishedNames(
  files: readonly { readonly path: string; readonly file: SourceFile }[],
): Map<string, Published> {
  const published = new Map<string, Published>();
  for (const { path, file } of files) {
    if (!/^[a-z]+\/(planner\/((search|summary)\/)?)?mod\.ts$/.test(path)) {
      continue;
    }
    for (const node of file.getExportDeclarations()) {
      const from = resolvePath(path, node.getModuleSpecifierValue() ?? "");
      const names = node.getNamedExports().map((name) => name.getName());
      const known = published.get(from);
      published.set(
        from,
        known === "all" || names.length === 0
          ? "all"
          : new Set([...(known ?? []), ...names]),
      );
    }
  }
  return published;
}

interface Check {
  readonly path: string;
  readonly report: (node: Node, problem: string) => void;
}

function checkFile(file: SourceFile, { path, report }: Check): void {
  const name = path.split("/").at(-1)!;
  if (!/^[a-z0-9_]+(\.test|\.d)?\.tsx?$/.test(name)) {
    report(file, "file name is not snake_case");
  }
  if (name === "index.ts") {
    report(file, "an entry file is mod.ts, not index.ts");
  }
  // Walking all nodes takes long: here and below, a file is walked if its text can have a finding.
  const spreads = /\.\.\.\s*\{/.test(file.getFullText())
    ? file.getDescendantsOfKind(SyntaxKind.SpreadAssignment)
    : [];
  for (const spread of spreads) {
    if (Node.isObjectLiteralExpression(spread.getExpression())) {
      report(spread, "spread of an object literal: write its fields");
    }
  }
  if (!path.startsWith("test/") && file.getEndLineNumber() > MAX_LINES) {
    report(file, `${file.getEndLineNumber()} lines; the limit is ${MAX_LINES}`);
  }
  for (const node of file.getExportAssignments()) {
    report(node, "default export");
  }
  for (const node of file.getStatements()) {
    if (
      Node.isModifierable(node) && node.hasModifier(SyntaxKind.DefaultKeyword)
    ) {
      report(node, "default export");
    }
  }
  for (const variable of file.getVariableDeclarations()) {
    if (
      !path.startsWith("test/") &&
      Node.isArrowFunction(variable.getInitializer())
    ) {
      report(
        variable,
        `top-level '${variable.getName()}' should be a 'function'`,
      );
    }
  }
}

function checkImports(file: SourceFile, { path, report }: Check): void {
  if (path.startsWith("compiler/kernels/")) checkKernel(file, { path, report });
  const layer = path.split("/")[0]!;
  const calls = /\bimport\s*\(/.test(file.getFullText())
    ? file.getDescendantsOfKind(SyntaxKind.CallExpression)
    : [];
  const dynamic = calls
    .filter((call) => Node.isImportExpression(call.getExpression()))
    .flatMap((call) => call.getArguments().filter(Node.isStringLiteral))
    .map((argument) => ({ node: argument, to: argument.getLiteralValue() }));
  const declared = [
    ...file.getImportDeclarations(),
    ...file.getExportDeclarations(),
  ].map((node) => ({ node, to: node.getModuleSpecifierValue() ?? "" }));
  for (const { node, to } of [...declared, ...dynamic]) {
    if (to === "") continue;
    if (to.startsWith(".")) {
      checkArrow(
        { layer, from: path, to: resolvePath(path, to) },
        (problem) => report(node, problem),
      );
    } else if (to.startsWith("node:")) {
      if (!AT_THE_EDGE.test(path)) {
        report(
          node,
          `'${to}' is imported below the edge; take it as an argument`,
        );
      }
    } else if (LIBRARY.test(path) || layer === "examples") {
      const name = to.split("/").slice(0, to.startsWith("@") ? 2 : 1).join("/");
      if (!PACKAGES[name]?.test(path)) {
        report(node, `'${name}' may not be imported here`);
      }
    }
  }
}

/** Checks that a kernel is text. A namespace import counts as all constructors. */
function checkKernel(file: SourceFile, { report }: Check): void {
  const names = file.getImportDeclarations()
    .filter((node) =>
      node.getModuleSpecifierValue().endsWith("kernel/build.ts") &&
      !node.isTypeOnly()
    )
    .map((node) =>
      node.getNamespaceImport() ? Infinity : node.getNamedImports().length
    )
    .reduce((a, b) => a + b, 0);
  if (names > MAX_CONSTRUCTORS) {
    report(
      file,
      `${
        names === Infinity ? "all" : names
      } constructors of trees; write the kernel as text, see spec/kernels.md`,
    );
  }
}

/** Checks that one file of the repository may import another. */
function checkArrow(
  { layer, from, to }: { layer: string; from: string; to: string },
  report: (problem: string) => void,
): void {
  if (!/\.(tsx?|css)$/.test(to)) report(`import of '${to}' has no extension`);
  const allowed = MAY_IMPORT[layer];
  const [toLayer, toPart] = to.split("/");
  if (allowed !== undefined && toLayer !== layer) {
    if (!allowed.includes(toLayer!) && !allowed.includes(to)) {
      report(`'${layer}' must not import '${to}'`);
    }
    return;
  }
  const parts = COMPILER_MAY_IMPORT[from.split("/")[1]!];
  if (layer === "compiler" && parts !== undefined) {
    if (toPart !== from.split("/")[1] && !parts.includes(toPart!)) {
      report(`'compiler/${from.split("/")[1]}' must not import '${to}'`);
    }
  }
}

/** Returns cycles between folders of a layer, direct or not, as `a -> b -> a`. Subfolders belong to their folder. */
export function folderCycles(
  files: readonly { readonly path: string; readonly file: SourceFile }[],
): string[] {
  const imports = new Map<string, Set<string>>();
  for (const { path, file } of files) {
    for (
      const node of [
        ...file.getImportDeclarations(),
        ...file.getExportDeclarations(),
      ]
    ) {
      const to = node.getModuleSpecifierValue();
      if (!to?.startsWith(".")) continue;
      const [from, into] = [path, resolvePath(path, to)].map(folderOf);
      if (!from || !into || from === into) continue;
      imports.set(from, (imports.get(from) ?? new Set()).add(into));
    }
  }
  return cyclesOf(imports);
}

/** Returns cycles between files that import values, direct or not, as `a.ts -> b.ts -> a.ts`. */
export function fileCycles(
  files: readonly { readonly path: string; readonly file: SourceFile }[],
): string[] {
  const imports = new Map<string, Set<string>>();
  for (const { path, file } of files) {
    const values = [
      ...file.getImportDeclarations().filter((one) =>
        !one.isTypeOnly() &&
        (one.getNamedImports().length === 0 ||
          one.getNamedImports().some((name) => !name.isTypeOnly()))
      ),
      ...file.getExportDeclarations().filter((one) => !one.isTypeOnly()),
    ];
    const into = values.map((one) => one.getModuleSpecifierValue())
      .filter((to) => to?.startsWith("."));
    imports.set(path, new Set(into.map((to) => resolvePath(path, to!))));
  }
  return cyclesOf(imports);
}

function cyclesOf(
  imports: ReadonlyMap<string, ReadonlySet<string>>,
): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (folder: string, path: readonly string[]): void => {
    const at = path.indexOf(folder);
    if (at >= 0) found.push([...path.slice(at), folder].join(" -> "));
    if (at >= 0 || done.has(folder)) return;
    for (const next of imports.get(folder) ?? []) {
      visit(next, [...path, folder]);
    }
    done.add(folder);
  };
  for (const folder of imports.keys()) visit(folder, []);
  return found;
}

/**
 * Returns `compiler/passes` of `compiler/passes/lower/mod.ts`. Undefined for a file outside the folders of its layer.
 */
function folderOf(path: string): string | undefined {
  const [layer, folder, file] = path.split("/");
  return file === undefined || !LIBRARY.test(path)
    ? undefined
    : `${layer}/${folder}`;
}

/** Resolves a relative specifier to a path in the repository. */
function resolvePath(from: string, specifier: string): string {
  return new URL(specifier, `file:///${from}`).pathname.slice(1);
}

function checkText(file: SourceFile, { path, report }: Check): void {
  const text = file.getFullText();
  // Lines of comments do not count.
  if (/^(?!\s*(\/?\*|\/\/)).*\bany\b/m.test(text)) {
    for (const node of file.forEachDescendantAsArray()) {
      if (node.isKind(SyntaxKind.AnyKeyword)) report(node, "'any'");
    }
  }
  for (
    const node of [...file.getInterfaces(), ...file.getTypeAliases()]
  ) {
    if (/^GPU[A-Z]/.test(node.getName())) {
      report(node, `'${node.getName()}' comes from @webgpu/types`);
    }
  }
  for (const owner of file.getClasses()) {
    for (const node of [...owner.getProperties(), ...owner.getMethods()]) {
      if (node.hasModifier(SyntaxKind.PrivateKeyword)) {
        report(node, "'private' should be '#private'");
      }
    }
  }
  if (!AT_THE_EDGE.test(path) && /\bprocess\b/.test(text)) {
    for (
      const node of file.getDescendantsOfKind(
        SyntaxKind.PropertyAccessExpression,
      )
    ) {
      if (node.getExpression().getText() === "process") {
        report(node, `'${node.getText()}' below the edge`);
      }
    }
  }
  if (
    LIBRARY.test(path) && !/^spec\/kernel\/wgsl/.test(path) && WGSL.test(text)
  ) {
    for (const node of file.forEachDescendantAsArray()) {
      if (
        (Node.isStringLiteral(node) || Node.isTemplateHead(node) ||
          Node.isNoSubstitutionTemplateLiteral(node)) &&
        WGSL.test(node.getText())
      ) report(node, "WGSL outside of its printer");
    }
  }
}

function checkExports(
  file: SourceFile,
  { path, report, published }: Check & { published: Published },
): void {
  const listed = new Set(
    file.getExportDeclarations().filter((one) => !one.hasModuleSpecifier())
      .flatMap((one) => one.getNamedExports().map((name) => name.getName())),
  );
  // `isExported` of ts-morph would bind all files and open a type checker.
  const isExported = (
    node: ExportableNode,
    ...named: readonly { getName(): string | undefined }[]
  ) =>
    node.hasExportKeyword() ||
    named.some((one) => listed.has(one.getName() ?? ""));
  for (const fn of file.getFunctions().filter((f) => isExported(f, f))) {
    const name = fn.getName() ?? "";
    const parameters = fn.getParameters().filter((p) => p.getName() !== "this");
    const third = parameters[2];
    const options = third === undefined || third.isRestParameter() ||
      /options$/i.test(third.getName()) ||
      Node.isObjectBindingPattern(third.getNameNode());
    if (published !== "all" && !published.has(name)) {
      if (parameters.length > MAX_INTERNAL_ARGUMENTS && !OPS.test(path)) {
        report(
          fn,
          `'${name}' takes more than ${MAX_INTERNAL_ARGUMENTS} arguments`,
        );
      }
    } else if (!OPS.test(path) && (parameters.length > 3 || !options)) {
      report(fn, `'${name}' takes more than two arguments and options`);
    }
    if (fn.getReturnTypeNode() === undefined) {
      report(fn, `'${name}' has no return type`);
    }
    if (!hasDoc(fn) && !fn.getOverloads().some(hasDoc)) {
      report(fn, `'${name}' has no doc comment`);
    }
  }
  for (
    const node of [
      ...file.getClasses(),
      ...file.getInterfaces(),
      ...file.getTypeAliases(),
    ]
  ) {
    if (isExported(node, node) && !hasDoc(node)) {
      report(node, `'${node.getName()}' has no doc comment`);
    }
  }
  for (const node of file.getVariableStatements()) {
    if (isExported(node, ...node.getDeclarations()) && !hasDoc(node)) {
      const names = node.getDeclarations().map((d) => d.getName()).join(", ");
      report(node, `'${names}' has no doc comment`);
    }
  }
  for (const owner of file.getClasses().filter((c) => isExported(c, c))) {
    for (const method of owner.getMethods()) {
      if (
        !method.getName().startsWith("#") &&
        method.getReturnTypeNode() === undefined
      ) report(method, `'${method.getName()}' has no return type`);
    }
  }
}

function hasDoc(node: { getJsDocs(): unknown[] }): boolean {
  return node.getJsDocs().length > 0;
}

/** Checks messages: `Cannot <verb> <what>: <state>. <Remedy>`, no full stop at the end, no contractions. */
function checkErrors(file: SourceFile, { report }: Check): void {
  if (!/\bnew\s+[\w.$#]*Error\b/.test(file.getFullText())) return;
  for (const node of file.getDescendantsOfKind(SyntaxKind.NewExpression)) {
    if (!/Error$/.test(node.getExpression().getText())) continue;
    const [message] = node.getArguments();
    const { start, end } = literalEnds(message);
    if (start && !/^(Cannot [a-z]|Cannot $|internal: )/.test(start)) {
      report(
        node,
        `message should begin with 'Cannot': "${start.slice(0, 40)}"`,
      );
    }
    if (end && /\.$/.test(end)) {
      report(node, `message ends with a full stop: "${end.slice(-40)}"`);
    }
    if (message && /\w'(t|re|ll|ve)\b/.test(message.getText())) {
      report(node, `contraction in a message: "${start}"`);
    }
  }
}

/** Returns the literal text at the start and end of a message, if any. */
function literalEnds(
  message: Node | undefined,
): { start?: string; end?: string } {
  if (
    Node.isStringLiteral(message) ||
    Node.isNoSubstitutionTemplateLiteral(message)
  ) {
    const text = message.getLiteralValue();
    return { start: text, end: text };
  }
  if (Node.isTemplateExpression(message)) {
    return {
      start: message.getHead().getLiteralText(),
      end: message.getTemplateSpans().at(-1)!.getLiteral().getLiteralText(),
    };
  }
  if (Node.isBinaryExpression(message)) {
    return {
      ...pick("start", literalEnds(message.getLeft()).start),
      ...pick("end", literalEnds(message.getRight()).end),
    };
  }
  return {};
}

function pick<K extends string>(
  key: K,
  value: string | undefined,
): { [_ in K]?: string } {
  return (value === undefined ? {} : { [key]: value }) as { [_ in K]?: string };
}
