/**
 * `commands.mjs FILE`: runs the command lines that FILE lists, one after another in this process. Writes the exit code
 * and the standard error of each to `FILE.ended`.
 */

import "../../bin/v8.mjs";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";

const { main } = await import(
  new URL("../../.compiled/dist/cli/main.js", import.meta.url).href
);

let err = "";
const write = process.stderr.write.bind(process.stderr);
process.stderr.write = (text, ...rest) => {
  err += text;
  return write(text, ...rest);
};

const [file] = process.argv.slice(2);
const ended = [];
for (const argv of JSON.parse(readFileSync(file, "utf8"))) {
  err = "";
  const code = await main(argv);
  ended.push({ code, err });
  writeFileSync(`${file}.ended`, JSON.stringify(ended));
}
process.exit();
