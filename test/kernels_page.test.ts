/** Kernels quoted in spec/kernels.md match the compiler's output. */

import { readFileSync } from "node:fs";
import t from "tap";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import { SHOWN } from "./helpers/shown_kernels.ts";

const PAGE = readFileSync(
  new URL("../spec/kernels.md", import.meta.url),
  "utf8",
);

/** Text without indentation. */
function lines(text: string): string {
  return text.split("\n").map((line) => line.trim()).join("\n");
}

t.test("every quote matches the printed kernel", (t) => {
  const quotes = [...PAGE.matchAll(/```wgsl ([a-z ]+)\n(.*?)```/gs)];
  for (const [, name, text] of quotes) {
    const printed = lines(printWgsl(SHOWN[name!]!));
    t.ok(printed.includes(lines(text!)), `${name}: ${text!.split("\n")[0]}`);
  }
  t.strictSame(
    new Set(quotes.map(([, name]) => name!)),
    new Set(Object.keys(SHOWN)),
    "each kernel is quoted",
  );
  t.end();
});
