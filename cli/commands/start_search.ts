/** Starts the second thread of `switchyard search` first, so that both threads load their modules at the same time. */

import type { CliIo } from "../io.ts";
import type { SearchFlags } from "./search.ts";

/** Prints the result of the search. Exit code 3: nothing fits. */
export async function searchCommand(
  io: CliIo,
  name: string,
  flags: SearchFlags,
): Promise<number> {
  const thread = io.threads > 1 ? io.searchThread?.() : undefined;
  try {
    const { searchWith } = await import("./search.ts");
    return await searchWith(io, { name, flags, thread });
  } finally {
    thread?.close();
  }
}
