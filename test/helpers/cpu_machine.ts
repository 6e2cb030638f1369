/** Machine of CPU devices, for plans that tests compare with runs. */

import { readJson } from "./read_tensors.ts";
import { repositoryFile } from "./sessions.ts";

/** Describes a machine with two ranks on one CPU device, which runs C ("native") or WebAssembly ("cpu"). */
export function cpuMachine(computer: "cpu" | "native"): object {
  const laptop = readJson(repositoryFile("machines/laptop-16gb.json"));
  const { cpu } = laptop["devices"] as { cpu: object };
  return {
    ...laptop,
    devices: { cpu: { ...cpu, computer } },
    hosts: [{ name: "node", devices: [{ kind: "cpu", ranks: 2 }] }],
  };
}
