// Dawn's warnings are removed from standard error; other output during its calls is kept.
import { spawnSync } from "node:child_process";
import process from "node:process";
import t from "tap";
import { clonePath } from "./helpers/compiled.ts";

const PROGRAM = `
import { writeSync } from "node:fs";
const { openQuietly } = await import(process.argv[1]);
const quietly = await openQuietly();
const warning = "Warning: maxA artificially reduced from 9 to 1 to fit a limit.\\n";
const result = quietly(() => {
  writeSync(2, warning + "MESA: error: no device\\n" + warning);
  return 7;
});
try {
  quietly(() => {
    writeSync(2, warning);
    throw new Error("failed");
  });
} catch (error) {
  writeSync(2, error.message + "\\n");
}
writeSync(2, "result " + result + "\\n");
`;

t.test("only warnings of limits are removed", {
  skip: process.platform !== "linux" && "other systems show them",
}, (t) => {
  const { status, stderr } = spawnSync(process.execPath, [
    ...["--input-type=module", "-e", PROGRAM],
    clonePath(".compiled/runtime/gpu/quietly.js"),
  ], { encoding: "utf8" });
  t.equal(stderr, "MESA: error: no device\nfailed\nresult 7\n");
  t.equal(status, 0);
  t.end();
});
