/** `switchyard-moe/editor`: the plugin in TypeScript's language service. mistakes.test.ts tests the messages. */
// rotates with: compiler/editor/

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import t from "tap";
import type ts from "typescript";
import { checkModel } from "../compiler/source/check.ts";
import { openEditor } from "./helpers/editor.ts";

const FOLDER = fileURLToPath(new URL("fixtures/source/", import.meta.url));
const PATH = `${FOLDER}typed_in_an_editor.ts`;

/** A model file, with `⌶` at the cursor. */
const LAYER =
  `import { combine, dispatch, dot, model, route, transpose, upTo } from "switchyard-moe";

export const layer = model({ token: upTo(64), embed: 8, expert: 4, ffn: 16 }, (m) => {
  const x = m.input("x", "token embed");
  const logits = dot(x, m.param("router", "expert embed"), "embed");
  const routing = route(logits, { over: "expert", topK: 2, preset: "mixtral" });
  const sent = dispatch(x, routing);
  const up = dot(sent, m.param("experts.{expert}.up", "expert ffn embed"), "embed");
  const down = dot(up, m.param("experts.{expert}.down", "expert embed ffn"), "ffn");
  return { y: combine(down, routing) };
});
`;

function sentences(found: readonly ts.Diagnostic[]): unknown[] {
  return found.map(({ messageText }) => messageText);
}

t.test("a file with six different mistakes shows all six and no consequences", async (t) => {
  const path = `${FOLDER}bad_six.ts`;
  const editor = openEditor({ [path]: readFileSync(path, "utf8") });
  t.teardown(() => editor.service.dispose());
  const found = sentences(await editor.diagnostics(path));
  t.equal(found.length, 6);
  const checked = await checkModel(path);
  t.strictSame(found, checked.map(({ message }) => message));
});

t.test("diagnostics follow the editor's text, not the file on disk", async (t) => {
  const helper = `${FOLDER}typed_helper.ts`;
  const editor = openEditor({
    [PATH]: LAYER.replace("topK: 2", "topK: experts").replace(
      "\n\n",
      '\nimport { experts } from "./typed_helper.ts";\n',
    ),
    [helper]: "export const experts: number = 5;\n",
  });
  t.teardown(() => editor.service.dispose());
  t.strictSame(sentences(await editor.diagnostics(PATH)), [
    "Cannot choose 5 of axis 'expert': expected a whole number from 1 to 4",
  ]);
  editor.write(helper, "export const experts: number = 3;\n");
  t.strictSame(sentences(await editor.diagnostics(PATH)), []);
  editor.write(PATH, LAYER.replace("combine(down, routing)", "x"));
  t.strictSame(sentences(await editor.diagnostics(PATH)), [
    "Cannot dispatch 'token embed': the result never reaches combine. Combine it by the routing at typed_in_an_editor.ts:6:19",
  ]);
});

t.test("type errors remain if a model ends its process; the next text is traced", async (t) => {
  const editor = openEditor({
    [PATH]: LAYER.replace(
      "  const x =",
      "  (globalThis as any).process.exit();\n  const size: string = 8;\n  void size;\n  const x =",
    ),
  });
  t.teardown(() => editor.service.dispose());
  t.strictSame(sentences(await editor.diagnostics(PATH)), [
    "Type 'number' is not assignable to type 'string'.",
  ]);
  editor.write(PATH, LAYER.replace("topK: 2", "topK: 9"));
  t.strictSame(sentences(await editor.diagnostics(PATH)), [
    "Cannot choose 9 of axis 'expert': expected a whole number from 1 to 4",
  ]);
});

t.test("a name shows its value: axes, sizes, bytes, and sharding", async (t) => {
  const editor = openEditor({ [PATH]: LAYER }, { mesh: { ep: 2 } });
  t.teardown(() => editor.service.dispose());
  await editor.diagnostics(PATH);
  const shown = (text: string): string | undefined =>
    editor.service.getQuickInfoAtPosition(PATH, LAYER.indexOf(text) + 1)
      ?.documentation?.[0]?.text.trim();
  t.equal(
    shown("logits,"),
    "token expert: f32, 64 × 4, at most 1.0 KiB\nep=2: token/ep expert, at most 1.0 KiB a rank",
  );
  t.match(shown("input("), /^token embed: f32, 64 × 8, at most 2\.0 KiB\n/);
  t.match(shown("up, m."), /^expert slot ffn: f32.*\nep=2: expert\/ep slot/);
  t.notOk(shown("Rank"), "other words show no value");
});

t.test("axes are completed in axis strings and parameter names", (t) => {
  const editor = openEditor({ [PATH]: LAYER }, { trace: false });
  t.teardown(() => editor.service.dispose());
  const complete = (text: string): readonly ts.CompletionEntry[] => {
    const at = text.indexOf("⌶");
    editor.write(PATH, text.replace("⌶", ""));
    const found = editor.service.getCompletionsAtPosition(PATH, at, {});
    return found?.entries ?? [];
  };
  const names = (text: string): string[] =>
    complete(text).map(({ name }) => name);
  const all = ["embed", "expert", "ffn", "token"];
  const without = (...axes: string[]): string[] =>
    all.filter((axis) => !axes.includes(axis));
  const [entry] = complete(LAYER.replace('"token embed"', '"token em⌶"'));
  t.match(entry, { name: "embed", replacementSpan: { length: 2 } });
  t.strictSame(
    names(LAYER.replace('"token embed"', '"token ⌶"')),
    without("token"),
  );
  t.strictSame(names(LAYER.replace('"expert embed"', '"⌶"')), all);
  t.strictSame(
    names(LAYER.replace('"expert ffn embed"', '"expert ⌶ embed"')),
    without("expert", "embed"),
  );
  t.strictSame(
    names(LAYER.replace("experts.{expert}.up", "experts.{⌶}.up")),
    all.map((axis) => `${axis}}`),
  );
  t.strictSame(
    names(LAYER.replace("dispatch(x,", 'dispatch(transpose(x, "embed ⌶"),')),
    without("embed"),
  );
  t.strictSame(
    names(LAYER.replace('"embed");\n  const r', '"⌶");\n  const r')),
    ["embed"],
    "only the axes that TypeScript allows",
  );
  t.ok(
    names(LAYER.replace('"mixtral"', '"⌶"')).includes("mixtral"),
    "other completions are TypeScript's",
  );
  t.end();
});
