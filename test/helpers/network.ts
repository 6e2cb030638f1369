/** Hosts that are network namespaces of this machine, joined by a bridge: what ranks exchange between them crosses interfaces. */

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
import type { MpiFamily } from "../../cli/mpi_launcher.ts";

/** Some hosts. */
export interface Network {
  readonly hosts: readonly string[];
  /** Stands in for ssh: `agent [option…] HOST COMMAND`. */
  readonly agent: string;
  /** Bytes that a host's interface received so far. */
  received(host: string): number;
  /** Limits what each host sends, in Mbit/s; a text says why that cannot be done here. */
  throttle(megabits: number): string | undefined;
}

/** What the launchers of MPI need, to reach the hosts of a network and use it. */
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
      // UCX sees that it is one machine, and would use its memory.
      UCX_TLS: "tcp,self",
      UCX_NET_DEVICES: "eth0",
    };
}

/** Take a namespace down, whatever is still running there. */
function remove(name: string): void {
  for (const pid of ip("netns", "pids", name).out.split(/\s+/)) {
    if (pid !== "") spawnSync("kill", ["-9", pid]);
  }
  ip("netns", "del", name);
  rmSync(`/etc/netns/${name}`, { recursive: true, force: true });
}

/** Take down what is left of a process that was killed. */
function removeStale(): void {
  for (const line of ip("netns", "list").out.split("\n")) {
    const [name, pid] = /^sy(\d+)(b|h\d+)/.exec(line) ?? [];
    if (name !== undefined && !existsSync(`/proc/${pid}`)) remove(name);
  }
}

/** Set hosts up until this process ends; a text says why that cannot be done here. */
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
  // Whatever happens to the tests.
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

/** Runs a command in the namespace of a host, under its name: launchers tell hosts apart by that. */
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
  const said = (stderr ?? "").trim().split("\n")[0];
  return {
    ok: status === 0,
    out: stdout ?? "",
    problem: error ? error.message : `'ip ${args.join(" ")}' says '${said}'`,
  };
}

/** What went wrong, if anything. */
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
    // In place of /etc/hosts, there.
    mkdirSync(`/etc/netns/${host}`, { recursive: true });
    writeFileSync(
      `/etc/netns/${host}/hosts`,
      `127.0.0.1 localhost\n${names}\n`,
    );
  }
  return undefined;
}
