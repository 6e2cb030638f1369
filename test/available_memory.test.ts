// The memory of --expert-memory auto: that of the machine or of the control groups of the process, version 1 or 2.
import t from "tap";
import { availableMemory, SPARE } from "../runtime/native/mod.ts";

const MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n";

/** Bytes that are left of files of a system. */
function leftOf(files: { readonly [file: string]: string }): number {
  return Math.round(
    availableMemory((file) => files[file] ?? "") / (1 - SPARE),
  );
}

t.test("without groups, the memory of the machine is available", (t) => {
  t.equal(leftOf({ "/proc/meminfo": MEMINFO }), 1000 * 1024);
  t.end();
});

t.test("cached files of a group of version 2 are available", (t) => {
  const left = leftOf({
    "/proc/meminfo": MEMINFO,
    "/proc/self/cgroup": "0::/user/job\n",
    "/sys/fs/cgroup/user/memory.max": "max\n",
    "/sys/fs/cgroup/user/memory.current": "700000\n",
    "/sys/fs/cgroup/user/job/memory.max": "600000\n",
    "/sys/fs/cgroup/user/job/memory.current": "500000\n",
    "/sys/fs/cgroup/user/job/memory.stat":
      "anon 100000\nactive_file 300000\ninactive_file 50000\n",
  });
  t.equal(left, 450_000);
  t.end();
});

t.test("a group of version 1 is limited by the groups that contain it", (t) => {
  const left = leftOf({
    "/proc/meminfo": MEMINFO,
    "/proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/a/b\n0::/\n",
    "/sys/fs/cgroup/memory/other/memory.limit_in_bytes": "1\n",
    "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "400000\n",
    "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": "300000\n",
    "/sys/fs/cgroup/memory/a/memory.stat":
      "inactive_file 7\ntotal_inactive_file 20000\ntotal_active_file 30000\n",
    "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
    "/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "300000\n",
  });
  t.equal(left, 150_000);
  t.end();
});
