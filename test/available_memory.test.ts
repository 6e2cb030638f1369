// Default of --expert-memory auto: available memory of the machine or of its control groups, version 1 or 2.
import t from "tap";
import { availableMemory, SPARE } from "../runtime/native/mod.ts";

/** Files of a system with 1,024,000 available bytes, and the bytes that a process may still use. */
const SYSTEMS: {
  readonly [title: string]: {
    readonly left: number;
    readonly files: { readonly [file: string]: string };
  };
} = {
  "without groups, the memory of the machine is available": {
    left: 1_024_000,
    files: {},
  },
  "a group does not have more memory than the machine": {
    left: 1_024_000,
    files: {
      "/proc/self/cgroup": "0::/job\n",
      "/sys/fs/cgroup/job/memory.max": "9000000\n",
      "/sys/fs/cgroup/job/memory.current": "500000\n",
    },
  },
  "cached files of a group of version 2 are available": {
    left: 450_000,
    files: {
      "/proc/self/cgroup": "0::/user/job\n",
      "/sys/fs/cgroup/user/memory.max": "max\n",
      "/sys/fs/cgroup/user/memory.current": "700000\n",
      "/sys/fs/cgroup/user/job/memory.max": "600000\n",
      "/sys/fs/cgroup/user/job/memory.current": "500000\n",
      "/sys/fs/cgroup/user/job/memory.stat":
        "anon 100000\nactive_file 300000\ninactive_file 50000\n",
    },
  },
  "a group of version 1 is limited by the groups that contain it": {
    left: 150_000,
    files: {
      "/proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/a/b\n0::/\n",
      "/sys/fs/cgroup/memory/other/memory.limit_in_bytes": "1\n",
      "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "400000\n",
      "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": "300000\n",
      "/sys/fs/cgroup/memory/a/memory.stat":
        "inactive_file 7\ntotal_inactive_file 20000\ntotal_active_file 30000\n",
      "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes":
        "9223372036854771712\n",
      "/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "300000\n",
    },
  },
};

for (const [title, { left, files }] of Object.entries(SYSTEMS)) {
  t.test(title, (t) => {
    const texts = {
      "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n",
      ...files,
    } as typeof files;
    const available = availableMemory((file) => texts[file] ?? "");
    t.equal(Math.round(available / (1 - SPARE)), left);
    t.end();
  });
}
