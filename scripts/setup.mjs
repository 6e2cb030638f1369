/**
 * Sets up a fresh clone by installing the locked npm packages. It uses only Node.
 *
 * `node scripts/setup.mjs` runs it explicitly; `npm start` and `npm test` run it automatically.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The folder of package.json. */
export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** The exit code for limits of the machine, as in the command line. */
const MACHINE = 3;

/** Returns the packages of a lock file by folder, or undefined if there is no such file. */
function lockedPackages(file) {
  if (!existsSync(file)) return undefined;
  return JSON.parse(readFileSync(file, "utf8")).packages;
}

/** Returns whether node_modules matches package-lock.json. npm writes its own lock file there at the end. */
export function packagesAreCurrent(root = ROOT) {
  const wanted = lockedPackages(join(root, "package-lock.json"));
  const present = lockedPackages(
    join(root, "node_modules", ".package-lock.json"),
  );
  if (present === undefined) return false;
  return Object.entries(wanted).every(([folder, entry]) =>
    folder === "" ||
    (present[folder]?.version ?? (entry.optional && entry.version)) ===
      entry.version
  );
}

function fail(message) {
  console.error(message);
  process.exit(MACHINE);
}

/** Installs the locked packages if they are missing. */
export function ensurePackages(root = ROOT) {
  if (packagesAreCurrent(root)) return;
  console.error("Installing the npm packages of package-lock.json …");
  const npm = process.env.npm_execpath;
  const argv = ["ci", "--prefer-offline", "--no-audit", "--no-fund"];
  const { status } = npm?.endsWith(".js")
    ? spawnSync(process.execPath, [npm, ...argv], { cwd: root, stdio: OUTPUT })
    : spawnSync("npm", argv, {
      cwd: root,
      stdio: OUTPUT,
      shell: process.platform === "win32",
    });
  if (status !== 0) {
    fail("Cannot install the npm packages: 'npm ci' failed. Run 'npm ci'");
  }
}

/** Redirects a child's standard output to standard error, because standard output is for results. */
const OUTPUT = ["ignore", 2, 2];

if (process.argv[1] === fileURLToPath(import.meta.url)) ensurePackages();
