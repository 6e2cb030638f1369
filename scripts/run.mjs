/** `node scripts/run.mjs FILE.ts [arguments]`: compiles and runs a TypeScript file of this clone. */

import { relative, resolve } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import {
  bundle,
  bundleStarted,
  bundleTap,
  compile,
  compiledFile,
  LIBRARY,
  PROGRAMS,
} from "./compile.mjs";
import { ROOT } from "./setup.mjs";

const [file] = process.argv.splice(2, 1);
if (file === undefined) {
  console.error("Usage: node scripts/run.mjs FILE.ts [arguments]");
  process.exit(2);
}
const source = relative(ROOT, resolve(file));
const mistakes = new Map([
  ...await compile([...LIBRARY, ...PROGRAMS, source]),
  ...await bundle(),
]);
for (const text of mistakes.values()) console.error(text);
// Some programs start other programs.
await bundleStarted();
await bundleTap();
process.argv[1] = compiledFile(source);
process.setSourceMapsEnabled(true);
await import(pathToFileURL(process.argv[1]).href);
