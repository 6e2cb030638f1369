/** Plans with errors in their kernels, steps or exchanges. */

import {
  BACK,
  type Broken,
  broken,
  COMBINE,
  COUNT,
  COUNTS,
  DOWN,
  EXCHANGE,
  exchange,
  HIDDEN,
  kernelOf,
  launch,
  LOGITS,
  moveToOwnAllocation,
  PERMUTE,
  REGROUP,
  ROUTE,
  stepAt,
  steps,
  swap,
} from "./break_plan.ts";

export const BROKEN_PROGRAMS: readonly Broken[] = [
  // Kernels.
  broken(
    "unbound name",
    "tree",
    null,
    /'ghost' is not bound/,
    (p) => {
      const { tree } = kernelOf(p, DOWN);
      const index = { op: "local", type: "u32", name: "ghost" } as const;
      const [binding] = tree.bindings.filter((b) => b.access === "write");
      tree.body.push({
        op: "store",
        binding: binding!.name,
        index,
        value: { op: "const", type: "f32", value: 0 },
      });
    },
  ),
  broken(
    "exchange in rounds without a start of rounds",
    "rounds",
    EXCHANGE,
    /no rounds start/,
    (p) => {
      exchange(p, EXCHANGE).inRounds = true;
    },
  ),
  broken("sum of two types", "tree", null, /'add' does not take/, (p) => {
    kernelOf(p, DOWN).tree.body.push({
      op: "let",
      name: "odd",
      value: {
        op: "binary",
        type: "u32",
        fn: "add",
        a: { op: "const", type: "u32", value: 1 },
        b: { op: "const", type: "f32", value: 1 },
      },
    });
  }),
  broken("store to a read binding", "tree", null, /access is 'read'/, (p) => {
    for (const b of kernelOf(p, DOWN).tree.bindings) b.access = "read";
  }),
  broken("barrier in a branch", "barriers", null, /a barrier is where/, (p) => {
    const kernel = kernelOf(p, DOWN);
    kernel.tree.body.push({
      op: "if",
      condition: {
        op: "binary",
        type: "bool",
        fn: "lt",
        a: { op: "id", type: "u32", name: "local" },
        b: { op: "const", type: "u32", value: 1 },
      },
      then: [{ op: "barrier" }],
    });
  }),
  broken(
    "binding left out",
    "bindings",
    COMBINE,
    /'sendRow'.*no buffer/,
    (p) => {
      Reflect.deleteProperty(launch(p, COMBINE).bindings, "sendRow");
    },
  ),
  broken("extra binding", "bindings", COMBINE, /no binding 'extra'/, (p) => {
    launch(p, COMBINE).bindings.extra = "x";
  }),
  broken("binding of wrong dtype", "bindings", COUNT, /is i32.*f32/, (p) => {
    launch(p, COUNT).bindings.index = "weight";
  }),
  broken(
    "written buffer bound twice",
    "aliasing",
    PERMUTE,
    /second name/,
    (p) => {
      launch(p, PERMUTE).bindings.x = "sent";
    },
  ),
  broken(
    "largest possible workgroup count",
    "work",
    COMBINE,
    /it takes 4\.29e\+9 workgroups, and 1\.07e\+9 are allowed/,
    (p) => {
      launch(p, COMBINE).workgroups = [65535, 65535, 1];
    },
  ),
  broken(
    "longest possible loop",
    "work",
    ROUTE,
    /it takes .*e\+9 operations an invocation, and 4\.29e\+9 are allowed/,
    (p) => {
      const kernel = kernelOf(p, ROUTE);
      const word = (value: number) => ({
        op: "const" as const,
        type: "u32" as const,
        value,
      });
      kernel.tree.body.push({
        op: "for",
        name: "long",
        from: word(0),
        to: word(2 ** 32 - 1),
        step: word(1),
        body: [],
      });
    },
  ),
  broken("index outside a buffer", "bindings", ROUTE, /element 5/, (p) => {
    const kernel = kernelOf(p, ROUTE);
    kernel.tree.body.push({
      op: "let",
      name: "far",
      value: {
        op: "load",
        type: "u32",
        binding: "lengths",
        index: { op: "const", type: "u32", value: 5 },
      },
    });
  }),

  broken("copy between dtypes", "copies", null, /one is/, (p) => {
    steps(p).push({
      op: "copy",
      ranks: "all",
      from: "sendRow",
      to: "y",
      bytes: 16,
    });
  }),
  broken("copy longer than its buffers", "copies", null, /99996 bytes/, (p) => {
    const copy = { op: "copy", ranks: "all", from: "x", to: "y" } as const;
    steps(p).push({ ...copy, bytes: 99996 });
  }),

  // Data flow.
  broken("read before write", "reads", COUNT, /'index'/, (p) => {
    steps(p)[ROUTE] = { ...steps(p)[LOGITS]! };
  }),
  broken("launch missing on one rank", "reads", ROUTE, /rank 1/, (p) => {
    steps(p)[LOGITS]!.ranks = { ep: [0] };
  }),
  broken("output never written", "reads", null, /output 'y'/, (p) => {
    const { bindings } = launch(p, COMBINE);
    for (const [name, buffer] of Object.entries(bindings)) {
      if (buffer === "y") bindings[name] = "sent";
    }
  }),
  broken("input overwritten", "writes", PERMUTE, /kind 'input'/, (p) => {
    launch(p, PERMUTE).bindings.send = "x";
    launch(p, PERMUTE).bindings.x = "y";
  }),
  broken(
    "live buffers overlap",
    "overlap",
    COUNT,
    /'sendRow'|'weight'/,
    (p) => {
      p.buffers.sendRow!.offset = p.buffers.weight!.offset;
    },
  ),
  broken("live buffers overlap partially", "overlap", HIDDEN, /'map'/, (p) => {
    // 'map' is longer; its end overlaps the start of 'received'.
    p.buffers.received!.offset = p.buffers.map!.offset +
      Number(p.buffers.map!.bytes) - 256;
  }),
  broken(
    "accumulating step repeated",
    "once",
    COMBINE + 1,
    /main\[10\] has/,
    (p) => {
      steps(p).push(structuredClone(steps(p)[COMBINE]!));
    },
  ),
  broken("missing update", "updates", null, /no step writes/, (p) => {
    p.buffers.router!.written = { main: "after reads" };
  }),
  broken(
    "received counts overwritten",
    "overlap",
    null,
    /'receivedCounts/,
    (p) => {
      const { allocation, offset } = p.buffers["receivedCounts forward"]!;
      Object.assign(p.buffers["receivedCounts back"]!, { allocation, offset });
    },
  ),
  broken(
    "scratch in the allocation of the lengths",
    "lengths",
    null,
    /no integer in/,
    (p) => {
      const lengths = p.buffers["dynamic lengths"]!;
      const { bytes } = p.buffers.dot!;
      const { allocation } = lengths;
      Object.assign(p.buffers.dot!, { allocation, offset: 256 });
      lengths.bytes = 256 + Number(bytes);
      lengths.axes[0]!.size = lengths.bytes / 4;
      p.allocations[allocation]!.bytes = lengths.bytes;
    },
  ),
  broken(
    "lengths with more words than inputs",
    "lengths",
    null,
    /no input is/,
    (p) => {
      const lengths = p.buffers["dynamic lengths"]!;
      lengths.bytes = 512;
      lengths.axes[0]!.size = 128;
      p.allocations[lengths.allocation]!.bytes = 512;
    },
  ),
  broken(
    "read of a length of no input",
    "lengths",
    COUNT,
    /word 70 of 'dynamic lengths' is of no input/,
    (p) => {
      const lengths = p.buffers["dynamic lengths"]!;
      Object.assign(lengths, { bytes: 1024 });
      lengths.axes[0]!.size = 256;
      p.allocations[lengths.allocation]!.bytes = 1024;
      kernelOf(p, COUNT).tree.body.push({
        op: "let",
        name: "far",
        value: {
          op: "load",
          type: "u32",
          binding: "lengths",
          index: { op: "const", type: "u32", value: 70 },
        },
      });
    },
  ),
  broken("scratch overlapping a weight", "overlap", null, /'router'/, (p) => {
    const { allocation, offset } = p.buffers.router!;
    Object.assign(p.buffers.dot!, { allocation, offset });
  }),
  broken(
    "allocation bound as read-only and writable",
    "usage",
    PERMUTE,
    /one as read-only and one as writable/,
    (p) => {
      const kernel = kernelOf(p, PERMUTE);
      for (const binding of kernel.tree.bindings) delete binding.writable;
    },
  ),
  broken(
    "buffer bound twice as writable",
    "usage",
    DOWN,
    /twice as writable/,
    (p) => {
      const { bindings } = launch(p, DOWN);
      bindings.x4 = bindings.x1!;
    },
  ),
  broken("copy within an allocation", "usage", null, /both are in/, (p) => {
    steps(p).push({
      op: "copy",
      ranks: "all",
      from: "sent",
      to: "received",
      bytes: 16,
    });
  }),
  broken(
    "barrier in a branch on a writable binding",
    "barriers",
    null,
    /not every invocation arrives/,
    (p) => {
      const { tree } = kernelOf(p, COUNT);
      const lengths = tree.bindings.find(({ name }) => name === "lengths")!;
      lengths.writable = true;
      tree.body.push({
        op: "if",
        condition: {
          op: "binary",
          type: "bool",
          fn: "eq",
          a: {
            op: "load",
            type: "u32",
            binding: "lengths",
            index: { op: "const", type: "u32", value: 0 },
          },
          b: { op: "const", type: "u32", value: 0 },
        },
        then: [{ op: "barrier" }],
      });
    },
  ),
  broken(
    "unreduced logits",
    "unreduced",
    ROUTE,
    /part of a sum over ep/,
    (p) => {
      p.buffers.dot!.unreduced = ["ep"];
    },
  ),

  // Collectives.
  broken(
    "exchange missing on one rank",
    "groups",
    EXCHANGE,
    /wait for ever/,
    (p) => {
      steps(p)[EXCHANGE]!.ranks = { ep: [0] };
    },
  ),
  broken("counts missing on one rank", "groups", COUNTS, /ranks \[0\]/, (p) => {
    steps(p)[COUNTS]!.ranks = { ep: [1] };
  }),
  broken("all-gather of too few bytes", "shapes", COUNTS, /moves 16/, (p) => {
    stepAt(p, "allGather", COUNTS).bytes = 16;
  }),
  broken(
    "rows of wrong length",
    "shapes",
    EXCHANGE,
    /no row of 'sent'/,
    (p) => {
      exchange(p, EXCHANGE).rowBytes = 60;
    },
  ),
  broken(
    "too few splits",
    "shapes",
    EXCHANGE,
    /splits \[0, 8\]/,
    (p) => {
      exchange(p, EXCHANGE).splits = [0, 8];
    },
  ),
  broken(
    "wrong groupRank",
    "shapes",
    EXCHANGE,
    /must hold the rank's number over ep/,
    (p) => {
      p.buffers["groupRank@ep"]!.data = { every: 1, lists: [[1], [0]] };
    },
  ),

  // Dispatch and combine.
  broken("missing combine", "parts", COUNT, /no 'combine'/, (p) => {
    steps(p).splice(COMBINE, 1);
  }),
  broken("missing exchange back", "parts", COUNT, /no 'exchange back'/, (p) => {
    steps(p).splice(BACK, 1);
  }),
  broken("missing count", "parts", null, /no 'count'/, (p) => {
    steps(p).splice(COUNT, 1);
  }),
  broken("collectives swapped", "parts", null, /must come first/, (p) => {
    swap(p, COUNTS, EXCHANGE);
  }),
  broken("regroup before the counts", "parts", null, /must come first/, (p) => {
    const [regroup] = steps(p).splice(REGROUP, 1);
    steps(p).splice(COUNTS, 0, regroup!);
  }),
  broken(
    "exchange in the wrong direction",
    "parts",
    EXCHANGE,
    /exchange back/,
    (p) => {
      exchange(p, EXCHANGE).direction = "back";
    },
  ),
  broken(
    "combine called a dispatch",
    "parts",
    COMBINE,
    /no 'combine' of a dispatch/,
    (p) => {
      steps(p)[COMBINE]!.part!.op = "dispatch";
    },
  ),
  broken(
    "exchange without a dispatch",
    "owned",
    EXCHANGE,
    /no dispatch/,
    (p) => {
      Reflect.deleteProperty(steps(p)[EXCHANGE]!, "part");
    },
  ),
  broken(
    "different counts in the exchange back",
    "transposed",
    BACK,
    /'countsAll'/,
    (p) => {
      const copy = structuredClone(p.buffers.countsAll!);
      copy.name = "others";
      p.buffers.others = copy;
      moveToOwnAllocation(p, copy, 64);
      exchange(p, BACK).counts = "others";
    },
  ),
  broken(
    "different splits in the exchange back",
    "transposed",
    BACK,
    /\[0, 3, 8\]/,
    (p) => {
      exchange(p, BACK).splits = [0, 3, 8];
    },
  ),
  broken(
    "splits that match no sharded axis",
    "transposed",
    EXCHANGE,
    /no axis is placed/,
    (p) => {
      exchange(p, EXCHANGE).splits = [0, 3, 8];
      exchange(p, BACK).splits = [0, 3, 8];
    },
  ),
  broken(
    "combine with another permutation",
    "permutation",
    COMBINE,
    /one permutation/,
    (p) => {
      const copy = structuredClone(p.buffers.sendRow!);
      copy.name = "other";
      p.buffers.other = copy;
      moveToOwnAllocation(p, copy, Number(copy.bytes));
      launch(p, COMBINE).bindings.sendRow = "other";
    },
  ),
  broken("regroup by wrong counts", "regroup", REGROUP, /other counts/, (p) => {
    launch(p, REGROUP).bindings.counts = "tiles";
  }),
  broken(
    "dispatched value dropped",
    "returns",
    EXCHANGE,
    /reaches no combine/,
    (p) => {
      const { bindings } = launch(p, HIDDEN);
      for (const [name, buffer] of Object.entries(bindings)) {
        if (buffer === "received") bindings[name] = "x";
      }
    },
  ),
  broken(
    "returned value not combined",
    "returns",
    BACK,
    /not combined/,
    (p) => {
      launch(p, COMBINE).bindings.returned = "sent";
    },
  ),
  broken(
    "capacity for too few rows",
    "capacity",
    EXCHANGE,
    /'received'/,
    (p) => {
      const received = p.buffers.received!;
      received.axes[0]!.size = 32;
      received.bytes = 32 * 64;
    },
  ),
  broken(
    "remote experts without an exchange",
    "parts",
    COUNT,
    /several ranks/,
    (p) => {
      for (const index of [BACK, EXCHANGE, COUNTS]) steps(p).splice(index, 1);
      for (const step of steps(p)) {
        if (step.op !== "launch") continue;
        for (const [binding, buffer] of Object.entries(step.bindings)) {
          if (buffer === "received") step.bindings[binding] = "sent";
          if (buffer === "countsAll") step.bindings[binding] = "counts";
          if (buffer === "returned") step.bindings[binding] = "dot.2";
        }
      }
    },
  ),
];
