/** Hosts files of `launch`, in one format for all MPI implementations. */

import { DataError } from "../../spec/mod.ts";

/** A machine and its number of ranks. */
export interface Host {
  readonly name: string;
  readonly slots: number;
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9.\-_]*$/;

/**
 * Reads a hosts file. Each line is `NAME` or `NAME slots=N`, in the order of the ranks; the default is 1 slot. A `#`
 * starts a comment.
 */
export function parseHosts(text: string, file: string): Host[] {
  const hosts = text.split(/\r?\n/).flatMap((line, i): Host[] => {
    const words = line.replace(/#.*/, "").trim().split(/\s+/);
    const [name = "", slots = "slots=1", ...rest] = words;
    if (name === "") return [];
    const count = /^slots=([1-9]\d{0,4})$/.exec(slots)?.[1];
    if (!NAME.test(name) || count === undefined || rest.length > 0) {
      throw new DataError(
        `Cannot read '${file}': line ${
          i + 1
        } is '${line.trim()}'. Write a host's name, and 'slots=N' if it takes more than one rank`,
      );
    }
    return [{ name, slots: Number(count) }];
  });
  const names = hosts.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) {
    throw new DataError(
      `Cannot read '${file}': host '${twice}' appears twice. Give it once, with 'slots=N'`,
    );
  }
  return hosts;
}

/** Checks that the hosts have enough slots, and returns only the hosts that are needed. */
export function hostsFor(
  hosts: readonly Host[],
  ranks: number,
  file: string,
): Host[] {
  const taken: Host[] = [];
  let left = ranks;
  for (const { name, slots } of hosts) {
    if (left === 0) break;
    taken.push({ name, slots: Math.min(slots, left) });
    left -= taken.at(-1)!.slots;
  }
  if (left === 0) return taken;
  throw new DataError(
    `Cannot start ${ranks} ranks: the hosts of '${file}' have ${
      ranks - left
    } slots. Add hosts, or 'slots=N' after a name`,
  );
}
