/** The kernels that spec/kernels.md quotes are those that the compiler makes. */

import { readFileSync } from "node:fs";
import t from "tap";
import { printWgsl } from "../spec/kernel/wgsl.ts";
import { SHOWN } from "./helpers/shown_kernels.ts";

const PAGE = readFileSync(
  new URL("../spec/kernels.md", import.meta.url),
  "utf8",
);

/** Lines without their indentation. */
function lines(text: string): string {
  return text.split("\n").map((line) => line.trim()).join("\n");
}

t.test("every quote is printed so", (t) => {
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
