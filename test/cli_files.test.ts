// Files of the command line: large reads, writes that follow no links, and interrupted commands.
import {
  existsSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as fs from "node:fs/promises";
import { constants } from "node:os";
import path from "node:path";
import t from "tap";
import { type Disk, nodeFiles } from "../cli/files.ts";
import { main } from "../cli/main.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { floats, withOutput, writeRaw } from "./helpers/cli.ts";

t.test("a call reads at most 1 GiB", async (t) => {
  const sizes: number[] = [];
  const size = 3 * 2 ** 30;
  const handle = {
    fd: 0,
    stat: () => Promise.resolve({ size, isFile: () => true }),
    read: (_: Uint8Array, __: number, length: number) => {
      sizes.push(length);
      return Promise.resolve({ bytesRead: length });
    },
    close: () => Promise.resolve(),
  };
  const disk = { ...fs, open: () => Promise.resolve(handle) };
  const file = await nodeFiles(disk as unknown as Disk).open("f");
  t.equal((await file.read(0, size)).length, size);
  t.strictSame(sizes, [2 ** 30, 2 ** 30, 2 ** 30]);
});

t.test("a write does not follow a link at its temporary name", async (t) => {
  const folder = t.testdir({ victim: "whole" });
  const at = (name: string) => path.join(folder, name);
  const names: string[] = [];
  const disk: Disk = {
    ...fs,
    open: ((file: string, ...rest: [string]) => {
      names.push(file);
      if (path.basename(file).startsWith(".out.")) {
        symlinkSync("victim", file);
      }
      return fs.open(file, ...rest);
    }) as Disk["open"],
  };
  const bytes = new TextEncoder().encode("new");
  await t.rejects(nodeFiles(disk).write(at("out"), [bytes]), {
    message: /^Cannot write '.*out': there is a file of that name/,
  });
  t.equal(readFileSync(at("victim"), "utf8"), "whole");
  await t.rejects(nodeFiles(disk).write(at("out"), [bytes]));
  t.not(names[0], names[1], "names cannot be predicted");
  // A link with the name of the file is replaced.
  symlinkSync("victim", at("to"));
  await nodeFiles().write(at("to"), [bytes]);
  t.equal(readFileSync(at("victim"), "utf8"), "whole");
  t.equal(readFileSync(at("to"), "utf8"), "new");
});

t.test("folders are created with their parents", async (t) => {
  const folder = t.testdir({ file: "" });
  const files = nodeFiles();
  const deep = path.join(folder, "a", "b", "c");
  await Promise.all([files.makeFolder(deep), files.makeFolder(deep)]);
  await files.makeFolder(deep);
  t.ok(existsSync(deep));
  symlinkSync("nowhere", path.join(folder, "link"));
  const refused = (path: string, state: string) =>
    t.rejects(files.makeFolder(path), {
      message: `Cannot write '${path}': ${state}`,
    });
  await refused(
    path.join(folder, "file", "a"),
    "a part of the path is not a folder. Check the path",
  );
  await refused(
    path.join(folder, "link"),
    "there is a file of that name. Choose another name",
  );
  // Node's own recursive mkdir hangs here.
  await refused(
    "/proc/x/y",
    "there is no such file or folder. Check the path",
  );
  writeFileSync(path.join(deep, "f"), "");
  t.strictSame(readdirSync(deep), ["f"]);
});

t.test("interrupted commands remove their incomplete files", async (t) => {
  const folder = t.testdir({
    out: {},
    adapters: {
      "adapter_config.json": JSON.stringify({
        peft_type: "LORA",
        r: 1,
        lora_alpha: 1,
        target_modules: ["q_proj"],
      }),
    },
  });
  const at = (...names: string[]) => path.join(folder, ...names);
  const module = "base_model.model.model.layers.0.self_attn.q_proj";
  await writeRaw(at("adapters", "adapter_model.safetensors"), {
    [`${module}.lora_A.weight`]: floats([1, 128], 1),
    [`${module}.lora_B.weight`]: floats([128, 1], 1),
  });
  const demo = checkpointFolder("demo-lm");
  const commands = {
    "model.gguf": ["quantize", demo, "--to", "q8_0"],
    fp8: ["quantize", demo, "--to", "fp8"],
    merged: ["merge", demo, "--lora", at("adapters")],
  };
  for (const [name, argv] of Object.entries(commands)) {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      let interrupt = () => {};
      let released = false;
      const parts: string[] = [];
      const disk: Disk = {
        ...fs,
        open: ((file: string, flags: string) => {
          if (flags === "wx") {
            parts.push(path.basename(file));
            interrupt();
          }
          return fs.open(file, flags);
        }) as Disk["open"],
      };
      const found = await withOutput(
        (io) => main([...argv, "--out", at("out", name)], io),
        {
          files: nodeFiles(disk),
          onInterrupt: (action) => {
            interrupt = () => action(constants.signals[signal]);
            return () => {
              released = true;
            };
          },
        },
      );
      const code = 128 + constants.signals[signal];
      t.strictSame(found, { code, out: "", err: "" }, `${name}, ${signal}`);
      t.equal(parts.length, 1, "the first file is incomplete");
      t.ok(released);
    }
  }
  const left = readdirSync(at("out"), { recursive: true });
  t.strictSame(left.sort(), ["fp8", "merged"], "empty folders");
});
