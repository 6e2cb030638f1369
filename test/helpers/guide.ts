/** Commands of the guides in `docs/`. */

import { readFileSync, writeFileSync } from "node:fs";
import { clonePath } from "./compiled.ts";

/** A page of `docs/`. */
export function readPage(name: string): string {
  return readFileSync(clonePath(`docs/${name}`), "utf8");
}

/** Lines of the blocks of shell of a page, as words. */
export function commandsOf(page: string): string[][] {
  return [...page.matchAll(/```sh\n(.*?)```/gs)].flatMap(([, block]) =>
    block!.trim().split("\n").map((line) =>
      [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, text, word]) =>
        text ?? word!
      )
    )
  );
}

/** Writes the file that a page shows first, into a folder. */
export function writeShownFile(page: string, folder: string): void {
  const [, name, text] = /^`(\w+\.ts)`:\n\n```ts\n(.*?)```/ms.exec(page)!;
  writeFileSync(`${folder}/${name}`, text!);
}
