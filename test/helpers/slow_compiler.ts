/** C compiler that runs until the process that started it ends. */

import { chmodSync, existsSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** Environment that selects the compiler, and a cache folder for objects. */
export interface SlowCompiler {
  readonly env: { readonly CC: string; readonly XDG_CACHE_HOME: string };
  /** Resolves when the compiler has started or `ended` returns true. */
  started(ended: () => boolean): Promise<void>;
}

/** Creates the compiler in a folder. */
export function slowCompiler(folder: string): SlowCompiler {
  const [CC, begun] = ["cc", "begun"].map((name) =>
    path.join(folder, name)
  ) as [string, string];
  writeFileSync(
    CC,
    `#!/bin/sh
case "$*" in *-dM*) exec cc "$@" ;; esac
: >"${begun}"
while kill -0 $PPID 2>/dev/null; do sleep 0.1; done
`,
  );
  chmodSync(CC, 0o755);
  return {
    env: { CC, XDG_CACHE_HOME: path.join(folder, "cache") },
    started: async (ended) => {
      while (!existsSync(begun) && !ended()) await sleep(5);
    },
  };
}
