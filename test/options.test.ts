// Unknown options of the library's functions, from callers without types.
// needs: cpu

import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { openModel } from "../engine/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";

const files = nodeFiles();
const folder = checkpointFolder("demo-lm");

/** The error for an unknown option. */
const unknown = (task: string, name: string, remedy: string) => ({
  name: "DataError",
  message: new RegExp(
    `^Cannot ${task} with option '${name}': it is unknown\\. ${remedy}$`,
  ),
});

t.test("openModel", async (t) => {
  const opening = openModel(folder, files, { thread: 2 } as object);
  await t.rejects(
    opening,
    unknown("open a model", "thread", "Write 'threads'"),
  );
  await t.rejects(
    openModel(folder, files, { bananas: 2 } as object),
    unknown(
      "open a model",
      "bananas",
      "Options are family, mesh, .*, threads, .*",
    ),
  );
});

t.test("run and generate of a model", async (t) => {
  const model = await openModel(folder, files, {
    family: undefined,
    adapter: "cpu",
    mesh: { ep: 2 },
  });
  await t.rejects(
    model.generate("Once", { max_new_tokens: 5 } as object),
    unknown("generate text", "max_new_tokens", "Write 'maxNewTokens'"),
  );
  await t.rejects(
    model.run({}, { replays: {} } as object),
    unknown("run a model", "replays", "Write 'replay'"),
  );
  t.type(await model.generate("Once", { maxNewTokens: 2 }), "string");
  await model.close();
});
