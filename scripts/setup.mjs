/**
 * Makes a fresh clone ready: the locked npm packages and, where asked for, a Vulkan driver. Uses nothing but Node.
 *
 * `node scripts/setup.mjs [--vulkan]` does it by hand; `npm start` and `npm test` do it by themselves.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The folder of package.json. */
export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** The machine cannot do it, as in the command line's exit codes. */
const MACHINE = 3;

const APT_PACKAGE = "mesa-vulkan-drivers";

/** Packages of a lock file by folder, or undefined if there is no such file. */
function lockedPackages(file) {
  if (!existsSync(file)) return undefined;
  return JSON.parse(readFileSync(file, "utf8")).packages;
}

/** Whether node_modules holds what package-lock.json asks for. npm leaves a lock file of its own there when it is done. */
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

/** Installs the locked packages unless they are there. */
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

/** A child's standard output goes to our standard error, which keeps ours for results. */
const OUTPUT = ["ignore", 2, 2];

function filesIn(folder) {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Whether Linux has a Vulkan loader and at least one driver for it. */
export function hasVulkan(env = process.env) {
  const home = env.HOME ?? "";
  const drivers = (env.VK_DRIVER_FILES ?? env.VK_ICD_FILENAMES)
    ?.split(delimiter).filter(existsSync) ?? [
    ...["/etc", "/usr/share", "/usr/local/share", "/usr/local/etc"],
    join(home, ".local/share"),
    ...(env.XDG_DATA_DIRS ?? "").split(delimiter),
  ].flatMap((folder) =>
    filesIn(join(folder, "vulkan/icd.d")).filter((f) => f.endsWith(".json"))
  );
  const loaders = [
    ...(env.LD_LIBRARY_PATH ?? "").split(delimiter),
    ...["/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"],
    ...filesIn("/usr/lib").filter((f) => f.endsWith("-linux-gnu")).map((f) =>
      join("/usr/lib", f)
    ),
  ].filter((folder) => folder !== "" && existsSync(`${folder}/libvulkan.so.1`));
  return drivers.length > 0 && loaders.length > 0;
}

/** Installs Mesa's software Vulkan driver on a Linux machine that has no driver, as root; otherwise says how to. */
export function ensureVulkan() {
  if (process.platform !== "linux" || hasVulkan()) return;
  const commands = [
    ["apt-get", "update", "-qq"],
    ["apt-get", "install", "-y", "-qq", "--no-install-recommends", APT_PACKAGE],
  ];
  const hasApt = spawnSync("apt-get", ["--version"]).status === 0;
  if (!hasApt || process.getuid() !== 0) {
    const command = hasApt
      ? `sudo apt-get install -y ${APT_PACKAGE}`
      : `install '${APT_PACKAGE}' with the system's package manager`;
    fail(`Cannot use Vulkan: this machine has no driver. Run: ${command}`);
  }
  console.error(
    `No Vulkan driver here: installing ${APT_PACKAGE} (Mesa's software driver) with apt-get …`,
  );
  for (const [command, ...argv] of commands) {
    const { status } = spawnSync(command, argv, {
      stdio: OUTPUT,
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    });
    if (status !== 0) {
      fail(
        `Cannot install ${APT_PACKAGE}: '${command} ${
          argv.join(" ")
        }' failed. Install a Vulkan driver by hand`,
      );
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  ensurePackages();
  if (process.argv.includes("--vulkan")) ensureVulkan();
}
