/** Hosts as network namespaces of this machine, joined by a bridge, so that exchanges cross network interfaces. */

import { spawnSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import type { MpiFamily } from "../../cli/launch/mpi_launcher.ts";

/** Hosts of a job. */
export interface Network {
  readonly hosts: readonly string[];
  /** Path of the replacement of ssh: `agent [option…] HOST COMMAND`. */
  readonly agent: string;
  /** Returns the bytes that a host's interface has received. */
  received(host: string): number;
  /** Limits the sending rate of each host, in Mbit/s. Returns the problem if it fails. */
  throttle(megabits: number): string | undefined;
}

/** Environment variables with which MPI launchers use the network. */
export function networkVariables(
  family: MpiFamily,
  { agent }: Network,
): { [name: string]: string } {
  return family === "openMpi"
    ? {
      PRTE_MCA_plm_ssh_agent: agent,
      PRTE_MCA_prte_if_include: "eth0",
      OMPI_MCA_btl_tcp_if_include: "eth0",
    }
    : {
      HYDRA_LAUNCHER: "ssh",
      HYDRA_LAUNCHER_EXEC: agent,
      HYDRA_IFACE: "eth0",
      // UCX detects one machine and would use shared memory.
      UCX_TLS: "tcp,self",
      UCX_NET_DEVICES: "eth0",
    };
}

/** Removes a namespace and kills its processes. */
function remove(name: string): void {
  for (const pid of ip("netns", "pids", name).out.split(/\s+/)) {
    if (pid !== "") spawnSync("kill", ["-9", pid]);
  }
  ip("netns", "del", name);
  rmSync(`/etc/netns/${name}`, { recursive: true, force: true });
}

/** Removes namespaces of killed processes. */
function removeStale(): void {
  for (const line of ip("netns", "list").out.split("\n")) {
    const [name, pid] = /^sy(\d+)(b|h\d+)/.exec(line) ?? [];
    if (name !== undefined && !existsSync(`/proc/${pid}`)) remove(name);
  }
}

/** Creates hosts that exist until this process exits. Returns the problem if it fails. */
export function createNetwork(
  count: number,
  scratch: string,
): Network | string {
  if (process.platform !== "linux" || process.getuid?.() !== 0) {
    return "only root may create network namespaces, and only on Linux";
  }
  removeStale();
  const prefix = `sy${process.pid}`;
  const bridge = `${prefix}b`;
  const hosts = Array.from({ length: count }, (_, i) => `${prefix}h${i}`);
  const problem = setUp(bridge, hosts);
  if (problem !== undefined) {
    [...hosts, bridge].forEach(remove);
    return `network namespaces cannot be created here: ${problem}`;
  }
  // Also if tests fail.
  process.once("exit", () => [...hosts, bridge].forEach(remove));
  const agent = path.join(scratch, "agent.sh");
  writeFileSync(agent, AGENT);
  chmodSync(agent, 0o755);
  return {
    hosts,
    agent,
    received: (host) => {
      const { out } = ip("-n", host, "-s", "-j", "link", "show", "eth0");
      const [link] = JSON.parse(out) as {
        stats64: { rx: { bytes: number } };
      }[];
      return link!.stats64.rx.bytes;
    },
    throttle: (megabits) => {
      for (const host of hosts) {
        const limit =
          `netns exec ${host} tc qdisc replace dev eth0 root tbf rate ${megabits}mbit burst 64kb latency 400ms`;
        const { ok, problem } = ip(...limit.split(" "));
        if (!ok) return problem;
      }
      return undefined;
    },
  };
}

/** Runs a command in the namespace of a host, with its hostname, by which launchers distinguish hosts. */
const AGENT = `#!/bin/sh
while :; do
  case "$1" in
    -[oplieF]) shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
host=$1
shift
exec ip netns exec "$host" unshare --uts /bin/sh -c "hostname $host; $*"
`;

interface Outcome {
  readonly ok: boolean;
  readonly out: string;
  readonly problem: string;
}

function ip(...args: readonly string[]): Outcome {
  const { status, error, stdout, stderr } = spawnSync("ip", args, {
    encoding: "utf8",
  });
  const message = (stderr ?? "").trim().split("\n")[0];
  return {
    ok: status === 0,
    out: stdout ?? "",
    problem: error
      ? error.message
      : `'ip ${args.join(" ")}' fails: '${message}'`,
  };
}

/** Creates the namespaces. Returns the problem if it fails. */
function setUp(bridge: string, hosts: readonly string[]): string | undefined {
  const names = hosts.map((host, i) => `10.77.0.${i + 1} ${host}`).join("\n");
  const commands = [
    `netns add ${bridge}`,
    `-n ${bridge} link add br0 type bridge`,
    `-n ${bridge} link set br0 up`,
    ...hosts.flatMap((host, i) => [
      `netns add ${host}`,
      `-n ${host} link set lo up`,
      `link add eth0 netns ${host} type veth peer name port${i} netns ${bridge}`,
      `-n ${bridge} link set port${i} master br0 up`,
      `-n ${host} addr add 10.77.0.${i + 1}/24 dev eth0`,
      `-n ${host} link set eth0 up`,
    ]),
  ];
  for (const command of commands) {
    const { ok, problem } = ip(...command.split(" "));
    if (!ok) return problem;
  }
  for (const host of hosts) {
    // Replaces /etc/hosts in the namespace.
    mkdirSync(`/etc/netns/${host}`, { recursive: true });
    writeFileSync(
      `/etc/netns/${host}/hosts`,
      `127.0.0.1 localhost\n${names}\n`,
    );
  }
  return undefined;
}
