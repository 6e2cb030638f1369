/** Each mistake has one message and position in the editor, in `check` and at run time. Needs a temporary folder. */
// rotates with: compiler/source/, compiler/dsl/, compiler/editor/, compiler/graph/messages.ts, package-lock.json, test/fixtures/types/

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { compile } from "../compiler/compile.ts";
import {
  checkModel,
  type Diagnostic,
  locatedIn,
} from "../compiler/source/check.ts";
import { diagnosticOf } from "../compiler/source/diagnostic.ts";
import { openTypes } from "../compiler/source/type_problems.ts";
import { resolveModel } from "../compiler/source/load.ts";
import { openEditor } from "./helpers/editor.ts";

const FIXTURE = fileURLToPath(
  new URL("fixtures/source/mistakes.ts", import.meta.url),
);
const TEXT = readFileSync(FIXTURE, "utf8");
const LINES = TEXT.split("\n");

/** Positions and messages of mistakes: the line after each mistake underlines it and states the message. */
const TABLE = LINES.flatMap((line, i) => {
  const match = /^(\/\/ *)(\^+) (Cannot .*)$/.exec(line);
  if (!match) return [];
  const [, before, carets, sentence] = match;
  const column = before!.length + 1;
  return [{ line: i, row: `${i}:${column}+${carets!.length} ${sentence}` }];
});

function row({ message, span, width }: Diagnostic): string {
  return `${span?.line}:${span?.column}+${width} ${message}`;
}

t.test("check shows every mistake, once", async (t) => {
  t.ok(TABLE.length >= 50, `${TABLE.length} mistakes`);
  const found = await checkModel(FIXTURE);
  t.strictSame(found.map(row), TABLE.map(({ row }) => row));
});

t.test("the editor shows the same messages, with TypeScript's as related information", async (t) => {
  const editor = openEditor({ [FIXTURE]: TEXT });
  t.teardown(() => editor.service.dispose());
  const found = await editor.diagnostics(FIXTURE);
  const shown = found.map(({ file, start, length, messageText }) => {
    const at = file!.getLineAndCharacterOfPosition(start!);
    return `${at.line + 1}:${at.character + 1}+${length} ${messageText}`;
  });
  t.strictSame(shown, TABLE.map(({ row }) => row));
  const misspelt = found[0]!;
  t.match(misspelt, {
    code: 2345,
    relatedInformation: [{
      code: 2345,
      messageText: /^Argument of type '"embed fnn"' is not assignable/,
    }],
  });
  const [original] = misspelt.relatedInformation!;
  t.equal(
    TEXT.slice(original!.start, original!.start! + original!.length!),
    '"embed fnn"',
  );
});

t.test("at run time each throws the same message at the same position", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "switchyard-mistakes-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, "mistakes.ts");
  const read = openTypes(path);
  const wrong = new Set(TABLE.map(({ line }) => line));
  for (const { line, row: expected } of TABLE) {
    const alone = LINES.map((text, i) =>
      i + 1 !== line && wrong.has(i + 1) ? "" : text
    );
    writeFileSync(path, alone.join("\n"));
    let thrown: unknown;
    try {
      await compile(await resolveModel(path, line));
    } catch (error) {
      thrown = error;
    }
    t.ok(thrown, `it is rejected: ${expected}`);
    if (!thrown) continue;
    t.equal(row(locatedIn(read(), diagnosticOf(thrown, path))), expected);
  }
});
