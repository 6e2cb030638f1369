/** Training texts: plain and compressed. */

import { spawnSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { gzipSync } from "node:zlib";
import t from "tap";
import * as textFiles from "../cli/text_files.ts";
import { files } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";

const TEXT = "Es war einmal … a fox 🦊 and a crow.\n".repeat(2000);

async function readTextFile(file: string, from = files): Promise<string> {
  let text = "";
  for await (const chunk of textFiles.readTextFile(file, from)) text += chunk;
  return text;
}

/** Compresses the text with a program, if it is installed. */
function compressed(tool: string): Uint8Array | undefined {
  const { status, stdout } = spawnSync(tool, ["-c"], { input: TEXT });
  return status === 0 ? stdout : undefined;
}

t.test("plain, and compressed by gzip", async (t) => {
  const folder = temporaryFolder(t);
  const file = path.join(folder, "text");
  for (const bytes of [TEXT, gzipSync(TEXT), ""]) {
    await writeFile(file, bytes);
    t.equal(await readTextFile(file, files), bytes === "" ? "" : TEXT);
  }
});

for (const tool of ["xz", "zstd", "bzip2"]) {
  const bytes = compressed(tool);
  t.test(`compressed by ${tool}`, {
    skip: bytes === undefined && `there is no '${tool}'`,
  }, async (t) => {
    const file = path.join(temporaryFolder(t), "text");
    await writeFile(file, bytes!);
    t.equal(await readTextFile(file, files), TEXT);
    await writeFile(file, bytes!.subarray(0, bytes!.length >> 1));
    await t.rejects(readTextFile(file, files), {
      name: "DataError",
      message: /is no text in UTF-8, plain or compressed by gzip, .* or bzip2/,
    }, "truncated files are rejected");
  });
}

t.test("the decompressor is missing", async (t) => {
  const file = path.join(temporaryFolder(t), "text.xz");
  await writeFile(file, Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 1, 2));
  const before = process.env["PATH"];
  process.env["PATH"] = path.dirname(file);
  try {
    await t.rejects(readTextFile(file, files), {
      name: "MachineError",
      message:
        /compressed by xz, and there is no 'xz' on the path\. Install it, or unpack the file/,
    });
  } finally {
    process.env["PATH"] = before;
  }
});

t.test("invalid UTF-8", async (t) => {
  const file = path.join(temporaryFolder(t), "text");
  await writeFile(file, Uint8Array.of(0x41, 0xff, 0xfe));
  await t.rejects(readTextFile(file, files), { message: /no text in UTF-8/ });
});
