/**
 * `commands.mjs FILE [MAIN]`: runs the command lines that FILE lists, one after another in this process. MAIN: the bundled
 * `cli/main.ts`, default that of this clone. Writes the exit code and the outputs of each to `FILE.ended`.
 */

import "../../bin/v8.mjs";
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";

const [file, program] = process.argv.slice(2);
const { main } = await import(
  program === undefined
    ? new URL("../../.compiled/dist/cli/main.js", import.meta.url).href
    : pathToFileURL(program).href
);

let said = { out: "", err: "" };
for (const [name, stream] of [["out", "stdout"], ["err", "stderr"]]) {
  const write = process[stream].write.bind(process[stream]);
  process[stream].write = (text, ...rest) => {
    said[name] += text;
    return write(text, ...rest);
  };
}

const ended = [];
for (const argv of JSON.parse(readFileSync(file, "utf8"))) {
  said = { out: "", err: "" };
  const code = await main(argv);
  ended.push({ code, ...said });
  writeFileSync(`${file}.ended`, JSON.stringify(ended));
}
process.exit();
