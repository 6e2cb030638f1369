// A mapped weight file that is truncated while in use: a message instead of a crash.
// needs: cpu
import { truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import type { FileSystem } from "../engine/mod.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { files } from "./helpers/checkpoints.ts";
import {
  floats,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

t.test("a weight file is truncated after loading", {
  skip,
}, async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  writeFileSync(
    at("m.ts"),
    `import { dot, model } from "switchyard-moe";
export const m = model({ a: 4, b: 1024, c: 1024 }, (m) =>
  ({ y: dot(m.input("x", "a b"), m.param("w", "c b"), "b") }));
`,
  );
  await writeRaw(at("in"), { x: floats([4, 1024], 1) });
  const run = async (changed: FileSystem = files) =>
    await switchyard([
      ...["run", at("m.ts"), "--weights", at("w"), "--inputs", at("in")],
      ...["--outputs", at("out"), "--adapter", "native"],
    ], changed);
  await writeRaw(at("w"), { w: floats([1024, 1024], 1) });
  t.equal((await run()).code, 0);
  // A file is closed once it is mapped.
  const shortens: FileSystem = {
    ...files,
    open: async (file) => {
      const opened = await files.open(file);
      if (file !== at("w")) return opened;
      return {
        ...opened,
        close: async () => {
          await opened.close();
          truncateSync(file, 8192);
        },
      };
    },
  };
  t.strictSame(await run(shortens), {
    code: 1,
    out: "",
    err: `Cannot resume '${
      at("w")
    }': it became shorter during the run, or cannot be read. Copy it again\n`,
  });
  // The error does not affect later runs.
  await writeRaw(at("w"), { w: floats([1024, 1024], 1) });
  const { code, err } = await run();
  t.strictSame([code, err], [0, ""]);
});
