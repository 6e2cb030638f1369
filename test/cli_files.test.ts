// Files of the command line: large reads, and writes that follow no links.
import {
  existsSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as fs from "node:fs/promises";
import path from "node:path";
import t from "tap";
import { type Disk, nodeFiles } from "../cli/files.ts";

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
