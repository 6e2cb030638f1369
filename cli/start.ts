/** `npm start`: prints the plan's summary, then text from the bundled checkpoint on four ranks. */

import process from "node:process";
import {
  candidatesOf,
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  openTarget,
  openTokenizer,
  TextStream,
} from "../engine/mod.ts";
import { invariant, summarizePlan } from "../spec/mod.ts";
import { type CliIo, processIo } from "./io.ts";
import { exitCodeOf } from "./main.ts";
import { packageFile } from "./package_file.ts";
import { createProgressBar } from "./progress.ts";
import { UsageError } from "./flags/values.ts";

/** The bundled checkpoint. */
const FOLDER = packageFile("examples/demo-lm");

const PROMPT = "Once upon a time there was a";

const SAMPLING = { temperature: 0.7, topK: 40, seed: 1 };

/** Runs the demonstration, which takes no arguments. Returns the exit code. */
export async function start(
  argv: readonly string[] = process.argv.slice(2),
  io: CliIo = processIo(),
): Promise<number> {
  return await exitCodeOf(io, async () => {
    if (argv.length > 0) {
      throw new UsageError(
        `Cannot start with '${
          argv[0]
        }': the demonstration takes no arguments. For anything else use 'npm run -s switchyard -- --help'`,
      );
    }
    await demonstrate(io);
    return 0;
  });
}

async function demonstrate(io: CliIo): Promise<void> {
  const target = await loadTarget(FOLDER, io.files);
  const tokenizer = await openTokenizer(FOLDER, io.files);
  invariant(target.kind === "checkpoint" && tokenizer, "no bundled checkpoint");
  const prompt = await tokenizer.encode(PROMPT);
  const bar = createProgressBar(io);
  const opened = await openTarget(target, io.files, {
    mesh: { ep: 4 },
    need: { tokens: prompt.length, sequences: 1, context: 256 },
    next: { candidates: candidatesOf(SAMPLING) },
    sharing: "shared",
    adapter: "auto",
    threads: io.threads,
    graphics: io.graphics,
    onProgress: bar.update,
  }).finally(bar.stop);
  const { plan, session } = opened;
  try {
    await io.out(`${summarizePlan(plan).trimEnd()}\n\n${PROMPT}`);
    const text = new TextStream(tokenizer);
    const started = io.now();
    const result = await generate(
      new Decoder(session, decoderShape(plan)!),
      [prompt],
      {
        ...SAMPLING,
        maxNewTokens: 100,
        stop: target.checkpoint.stop,
        now: io.now,
        onToken: async (_, token) => await io.out(await text.push(token)),
      },
    );
    const seconds = (io.now() - started) / 1000;
    const { tokens } = result.sequences[0]!;
    await io.out(
      `${await text.end()}\n\n${tokens.length} tokens in ${
        seconds.toFixed(1)
      } s\n`,
    );
  } finally {
    await opened.close();
  }
}
