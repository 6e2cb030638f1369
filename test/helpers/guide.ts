/** Commands, files and programs of the guides in `docs/`. */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { clonePath } from "./compiled.ts";

/** Reads a page of `docs/`. */
export function readPage(name: string): string {
  return readFileSync(clonePath(`docs/${name}`), "utf8");
}

/** Returns the lines of a page's shell blocks, split into words. */
export function commandsOf(page: string): string[][] {
  return [...page.matchAll(/```sh\n(.*?)```/gs)].flatMap(([, block]) =>
    block!.trim().split("\n").map((line) =>
      [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, text, word]) =>
        text ?? word!
      )
    )
  );
}

/** Returns a guide's command with one step and two tokens. */
export function shortened(argv: readonly string[]): string[] {
  return argv.map((word, i) =>
    argv[i - 1] === "--steps" ? "1" : argv[i - 1] === "-n" ? "2" : word
  );
}

/** Writes the files that a page shows to a folder: code blocks after "`name`:". */
export function writeShownFiles(page: string, folder: string): void {
  const shown = page.matchAll(/^`([\w./]+\.\w+)`:\n\n```\w+\n(.*?)```/gms);
  for (const [, name, text] of shown) {
    const file = path.join(folder, name!);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text!);
  }
}

/** Returns the JavaScript programs of a page. */
export function programsOf(page: string): string[] {
  return [...page.matchAll(/```js\n(.*?)```/gs)].map(([, text]) => text!);
}
