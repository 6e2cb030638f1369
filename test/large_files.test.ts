// Sparse files of more than 2 GiB: unused data is not read, the rest is read in parts.
// needs: cpu
// rotates with: runtime/weights/file_source.ts, runtime/weights/safetensors, engine/train/text.ts, cli/http/serve_run.ts
import { once } from "node:events";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { get, type IncomingMessage } from "node:http";
import { constants } from "node:os";
import path from "node:path";
import t, { type Test } from "tap";
import { serveRun } from "../cli/http/serve_run.ts";
import type { FileSystem } from "../engine/mod.ts";
import { piecesOf } from "../engine/train/text.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder, withOutput } from "./helpers/cli.ts";
import { writeSparse } from "./helpers/sparse.ts";
import { tinyModel } from "./helpers/tiny_training.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
/** A tensor of 2.4 GB. */
const LARGE = { shape: [3, 200_000_000] };
const IDS = { shape: [1, 3], first: [5, 6, 7] };

t.test("an unused tensor is not read", async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  writeSparse(at("in"), { input_ids: IDS, LARGE });
  writeSparse(at("ids"), { input_ids: IDS });
  const run = (...argv: string[]) =>
    switchyard(["run", ...argv, "--adapter", "cpu", "--outputs", at("out")]);
  t.strictSame(await run(MIXTRAL, "--inputs", at("in")), {
    code: 1,
    out: "",
    err:
      "Cannot use input 'LARGE': a checkpoint takes 'input_ids' and 'attention_mask'. Remove it\n",
  });
  writeFileSync(
    at("m.ts"),
    `import { add, model } from "switchyard-moe";
export const m = model({ a: 2 }, (m) => ({ y: add(m.input("x", "a"), 1) }));
`,
  );
  t.strictSame(await run(at("m.ts"), "--inputs", at("in")), {
    code: 1,
    out: "",
    err:
      "Cannot run program 'main': it has no input 'LARGE'. Its inputs are 'x'\n",
  });
  const choices = { shape: [1, 3, 2], first: [0, 1, 0, 1, 0, 1] };
  writeSparse(at("trace"), {
    "layer0.topk_idx": choices,
    "layer1.topk_idx": choices,
    LARGE,
  });
  const { code, err } = await run(
    ...[MIXTRAL, "--inputs", at("ids"), "--replay", at("trace")],
  );
  t.strictSame([code, err], [0, ""]);
  const seen = await switchyard([
    ...["view", at("m.ts"), "--choices", at("trace"), "--out", at("m.html")],
  ]);
  t.strictSame([seen.code, seen.err], [0, ""]);
  const predicted = await switchyard([
    ...["plan", MIXTRAL, "--mesh", "ep=2", "--target", "2x24gb"],
    ...["--experts", at("trace")],
  ]);
  t.strictSame([predicted.code, predicted.err], [0, ""]);
});

t.test("a text of 2.2 GB is read in parts", async (t) => {
  const folder = temporaryFolder(t);
  const text = path.join(folder, "text");
  // Invalid UTF-8, which stops the reader early; class `large` of `npm run fuzz` reads a complete text.
  writeFileSync(text, Uint8Array.of(0xff));
  truncateSync(text, 2.2e9);
  const { code, err } = await switchyard([
    ...["train", await tinyModel(t), "--data", text, "--adapter", "cpu"],
    ...["--out", path.join(folder, "out"), "--steps", "1"],
  ]);
  t.match(err, /^Cannot read '.*text': it is no text in UTF-8, .*\n$/);
  t.equal(code, 1);
});

t.test("pieces of a text do not depend on its chunks", async (t) => {
  const line = "A crow sat on a branch 🦊, with cheese. ";
  const texts = {
    "paragraphs": `${line.repeat(500)}\n\n`.repeat(7),
    "lines": `${line}\n`.repeat(40_000),
    "words": line.repeat(40_000),
    "characters": "🦊".repeat(600_000),
    "odd characters": `x${"🦊".repeat(600_000)}`,
    "little": line,
    "nothing": "",
  };
  for (const [title, text] of Object.entries(texts)) {
    const pieces = async (size: number) => {
      const chunks = Array.from(
        { length: Math.ceil(text.length / size) },
        (_, i) => text.slice(i * size, (i + 1) * size),
      );
      const found: string[] = [];
      for await (const piece of piecesOf(() => chunks)) found.push(piece);
      return found;
    };
    const expected = await pieces(text.length + 1);
    t.ok(expected.join("") === text, title);
    t.ok(
      expected.every((piece) => piece.length <= 1 << 20),
      "pieces are short",
    );
    t.ok(
      expected.every((piece) => !/[\ud800-\udbff]$/.test(piece)),
      "complete characters",
    );
    const again = await pieces(99_991);
    t.strictSame(
      again.map(({ length }) => length),
      expected.map(({ length }) => length),
      `${title} in chunks`,
    );
  }
});

/** Serves a folder; calls `read` before each read of a file. Returns the address and the number of bytes read. */
async function served(
  t: Test,
  folder: string,
  read: (offset: number) => void,
): Promise<{ readonly address: string; bytes(): number }> {
  let bytes = 0;
  const counted: FileSystem = {
    ...files,
    open: async (file) => {
      const opened = await files.open(file);
      return {
        ...opened,
        read: async (offset, length) => {
          read(offset);
          bytes += length;
          return await opened.read(offset, length);
        },
      };
    },
  };
  const address = await new Promise<string>((resolve, reject) => {
    const ended = withOutput(async (io) => {
      await serveRun({
        ...io,
        out: (text) => {
          resolve(/http:\S+/.exec(text)![0]);
          return Promise.resolve();
        },
        onInterrupt: (end) => {
          t.teardown(async () => {
            end(constants.signals.SIGINT);
            await ended;
          });
          return () => {};
        },
      }, { page: "", folder, open: false });
      return 0;
    }, { files: counted });
    ended.catch(reject);
  });
  return { address, bytes: () => bytes };
}

async function ask(address: string): Promise<IncomingMessage> {
  const request = get(address, { agent: false });
  request.on("error", () => {});
  const [response] = await once(request, "response");
  return response as IncomingMessage;
}

t.test("a file of 3 GiB is sent as fast as the client reads", async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  mkdirSync(at("c"));
  writeFileSync(at("c/large.safetensors"), "");
  truncateSync(at("c/large.safetensors"), 3 * 2 ** 30);
  let fails = Infinity;
  const { address, bytes } = await served(t, at("c"), (offset) => {
    if (offset >= fails) throw new Error("the disk reports an error");
  });
  const file = `${address}checkpoint/large.safetensors`;
  // Clients that do not read.
  const idle = await Promise.all(
    Array.from({ length: 100 }, () => ask(file)),
  );
  t.ok(idle.every(({ statusCode }) => statusCode === 200));
  t.equal(idle[0]!.headers["content-length"], `${3 * 2 ** 30}`);
  for (const response of idle) response.destroy();
  const before = bytes();
  const reader = await ask(file);
  let received = 0;
  for await (const chunk of reader) {
    received += chunk.length;
    if (received > 2 ** 26) break;
  }
  // Data that is not yet received is in socket buffers.
  t.ok(bytes() - before < 2 ** 27, `${bytes() - before} bytes were read`);
  fails = 0;
  t.equal((await ask(file)).resume().statusCode, 404, "nothing can be read");
  fails = 1;
  const failed = await ask(file);
  t.equal(failed.statusCode, 200);
  await t.rejects(async () => {
    for await (const _ of failed);
  }, { message: "aborted" });
});
