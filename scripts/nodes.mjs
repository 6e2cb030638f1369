/**
 * `npm run nodes`: installs the newest release of every supported major version of Node.js into `.nodes/VERSION`, for
 * `test/nodes.test.ts`. An existing release is kept; earlier releases of the same major version are removed.
 */

import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ROOT } from "./setup.mjs";

const FOLDER = join(ROOT, ".nodes");

/** npm's package with the program for this system. */
const PACKAGE = `node-${process.platform}-${process.arch}`;

/** Returns the supported major versions from package.json: `^22.0.0 || >=24.0.0`. */
export function supportedMajors() {
  const { engines } = JSON.parse(
    readFileSync(join(ROOT, "package.json"), "utf8"),
  );
  return [...engines.node.matchAll(/(?:\^|>=)(\d+)/g)].map(([, major]) =>
    Number(major)
  );
}

/** Returns the program of a major version, or undefined if none is installed. */
export function programOf(major) {
  const version = versionsOf(major).at(0);
  return version && join(FOLDER, version, "node");
}

function versionsOf(major) {
  if (!existsSync(FOLDER)) return [];
  return readdirSync(FOLDER).filter((name) => name.startsWith(`${major}.`));
}

function newestOf(major) {
  const { stdout } = npm("view", `${PACKAGE}@${major}`, "version", "--json");
  const found = [JSON.parse(stdout || "[]")].flat();
  return found.toSorted((a, b) => minorOf(a) - minorOf(b)).at(-1);
}

/** Returns the minor and patch version as one number. */
function minorOf(version) {
  const [, minor, patch] = version.split(".").map(Number);
  return minor * 1000 + patch;
}

function install(version) {
  mkdirSync(FOLDER, { recursive: true });
  const fresh = mkdtempSync(join(FOLDER, "fresh-"));
  try {
    const { stdout } = npm(
      ...["pack", `${PACKAGE}@${version}`, "--pack-destination", fresh],
      ...["--json", "--prefer-offline"],
    );
    const [{ filename }] = JSON.parse(stdout);
    const { status } = spawnSync("tar", [
      ...["-xzf", filename, "--strip-components=2", "package/bin/node"],
    ], { cwd: fresh });
    if (status !== 0) throw new Error(`'${filename}' cannot be unpacked`);
    rmSync(join(fresh, filename));
    renameSync(fresh, join(FOLDER, version));
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

function npm(...argv) {
  const { status, stdout, stderr } = spawnSync("npm", argv, {
    cwd: ROOT,
    encoding: "utf8",
    shell: process.platform === "win32",
  });
  if (status !== 0) throw new Error(stderr.trim().split("\n")[0]);
  return { stdout };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const major of supportedMajors()) {
    try {
      const newest = newestOf(major);
      const known = versionsOf(major);
      if (!known.includes(newest)) install(newest);
      for (const version of known.filter((version) => version !== newest)) {
        rmSync(join(FOLDER, version), { recursive: true });
      }
      console.log(`Node.js ${newest}`);
    } catch (error) {
      console.error(`Cannot install Node.js ${major}: ${error.message}`);
      process.exitCode = 3;
    }
  }
}
