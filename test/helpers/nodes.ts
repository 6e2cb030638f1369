/** Runtimes of the command: the newest release of each supported major of Node.js, and Deno. */

import { existsSync } from "node:fs";
import { clonePath } from "./compiled.ts";

interface Installed {
  supportedMajors(): number[];
  programOf(major: number): string | undefined;
}

/** Runtime with its arguments before a script. `skip`: reason to skip its tests, or false. */
export interface Runtime {
  readonly name: string;
  readonly program: string;
  readonly argv: readonly string[];
  readonly skip: false | string;
}

const { href } = new URL("../../scripts/nodes.mjs", import.meta.url);
const { supportedMajors, programOf } = await import(href) as Installed;

export const NODES: readonly Runtime[] = supportedMajors().map((major) => {
  const program = programOf(major);
  return {
    name: `Node.js ${major}`,
    program: program ?? "",
    argv: [],
    skip: program ? false : `it is not installed: run 'npm run nodes'`,
  };
});

const DENO_FILE = clonePath("node_modules/.bin/deno");

/** Deno of the npm package. */
export const DENO: Runtime = {
  name: "Deno",
  program: DENO_FILE,
  argv: ["run", "--allow-all", "--no-check"],
  skip: existsSync(DENO_FILE) ? false : "it is not installed",
};

export const RUNTIMES: readonly Runtime[] = [...NODES, DENO];
