/**
 * `commands.mjs FILE [MAIN]`: runs the command lines that FILE lists, in order, in this process.
 * MAIN: path of a bundled `cli/main.ts`. Default: that of this clone.
 * Writes exit codes and outputs to `FILE.ended`.
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

let output = { out: "", err: "" };
for (const [name, stream] of [["out", "stdout"], ["err", "stderr"]]) {
  const write = process[stream].write.bind(process[stream]);
  process[stream].write = (text, ...rest) => {
    output[name] += text;
    return write(text, ...rest);
  };
}

const results = [];
for (const argv of JSON.parse(readFileSync(file, "utf8"))) {
  output = { out: "", err: "" };
  const code = await main(argv);
  results.push({ code, ...output });
  writeFileSync(`${file}.ended`, JSON.stringify(results));
}
process.exit();
