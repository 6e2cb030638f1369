// Default number of threads: cores of the machine, or CPU quotas of its control groups, version 1 or 2.
import t from "tap";
import { availableCores } from "../runtime/available_cores.ts";

/** Files of a system with 8 cores, and the cores that a process may use. */
const SYSTEMS: {
  readonly [title: string]: {
    readonly cores: number;
    readonly files: { readonly [file: string]: string };
  };
} = {
  "without groups, all cores are available": { cores: 8, files: {} },
  "a container of version 2 has its quota": {
    cores: 2,
    files: {
      "/proc/self/cgroup": "0::/\n",
      "/sys/fs/cgroup/cpu.max": "250000 100000\n",
    },
  },
  "a group is limited by the groups that contain it": {
    cores: 3,
    files: {
      "/proc/self/cgroup": "0::/user/job\n",
      "/sys/fs/cgroup/user/cpu.max": "300000 100000\n",
      "/sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
    },
  },
  "a group of version 1 has its quota, at least one core": {
    cores: 1,
    files: {
      "/proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/b\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
      "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000\n",
      "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    },
  },
  "a quota of more cores than the machine has no effect": {
    cores: 8,
    files: {
      "/proc/self/cgroup": "0::/job\n",
      "/sys/fs/cgroup/job/cpu.max": "1600000 100000\n",
    },
  },
};

for (const [title, { cores, files }] of Object.entries(SYSTEMS)) {
  t.test(title, (t) => {
    t.equal(availableCores((file) => files[file] ?? "", 8), cores);
    t.end();
  });
}
