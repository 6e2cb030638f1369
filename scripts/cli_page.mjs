/**
 * Generates docs/cli.md from the program: every command with its arguments and options. `npm run docs` writes it;
 * `test/docs.test.ts` compares it.
 */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { compile, compiledFile, LIBRARY } from "./compile.mjs";
import { ROOT } from "./setup.mjs";

const INTRODUCTION =
  `In a clone, run \`npm run -s switchyard -- ARGS\`; with the package installed,
\`npx switchyard ARGS\`. This page is made from the program by \`npm run docs\`.

Exit codes: 0 success; 1 an error in the model, plan or data; 2 an error in the
command line; 3 the machine cannot run it; 128 + N interrupted by signal N. If
an option is given several times and is not repeatable, its last value counts.

With \`--json\`, results are JSON on standard output. An error is text on standard
error, with its exit code, and standard output is empty. \`check\`, \`verify\` and
\`plan --target\` also print their JSON if the exit code is 1 or 3: mistakes are
their result.`;

/** Formats a table cell: on one line, with escaped separators. */
function cell(text) {
  return text.replaceAll("|", "\\|").replaceAll("<", "&lt;");
}

function table(head, rows) {
  if (rows.length === 0) return [];
  return [[
    `| ${head.join(" | ")} |`,
    `| ${head.map(() => "---").join(" | ")} |`,
    ...rows.map((row) => `| ${row.join(" | ")} |`),
  ].join("\n")];
}

/** Returns the section of one command. */
function section(command) {
  const help = command.createHelp();
  const options = help.visibleOptions(command)
    .filter(({ long }) => long !== "--help");
  return [
    `## switchyard ${command.name()}`,
    `${command.description()}.`,
    `\`switchyard ${command.name()} ${command.usage()}\``,
    ...table(
      ["argument", "meaning"],
      help.visibleArguments(command)
        .map((a) => [`\`${a.name()}\``, cell(a.description)]),
    ),
    ...table(
      ["option", "meaning"],
      options.map((o) => [`\`${o.flags}\``, cell(o.description)]),
    ),
  ].join("\n\n");
}

/** Returns the text of docs/cli.md for the program from `createProgram`. */
export function cliPage(program) {
  return [
    "# Command line",
    INTRODUCTION,
    ...program.commands.map(section),
  ].join("\n\n") + "\n";
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await compile(LIBRARY);
  const { createProgram } = await import(
    pathToFileURL(compiledFile("cli/program.ts")).href
  );
  const nothing = { finish: () => {}, print: () => {} };
  writeFileSync(
    join(ROOT, "docs/cli.md"),
    cliPage(createProgram({}, nothing)),
  );
  console.log("docs/cli.md");
}
