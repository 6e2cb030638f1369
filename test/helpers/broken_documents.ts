/** Plans with errors in their document, mesh, memory or weights. */

import {
  type Broken,
  broken,
  DOWN,
  EXCHANGE,
  exchange,
  kernelOf,
  launch,
  LOGITS,
  steps,
} from "./break_plan.ts";

export const BROKEN_DOCUMENTS: readonly Broken[] = [
  // Document.
  broken("unknown field", "schema", null, /unknown field 'extra'/, (p) => {
    Object.assign(p, { extra: 1 });
  }),
  broken("unknown field in a step", "schema", DOWN, /'fast'/, (p) => {
    Object.assign(steps(p)[DOWN]!, { fast: true });
  }),
  broken("unknown op", "schema", DOWN, /unknown 'op'/, (p) => {
    Object.assign(steps(p)[DOWN]!, { op: "explode" });
  }),
  broken("missing field", "schema", EXCHANGE, /no field 'rowBytes'/, (p) => {
    Reflect.deleteProperty(steps(p)[EXCHANGE]!, "rowBytes");
  }),
  broken("negative size", "schema", null, /must be at least 0/, (p) => {
    p.buffers.sent!.bytes = -4;
  }),
  broken("size that is not an integer", "schema", null, /integer/, (p) => {
    p.axes.embed!.size = 1.5;
  }),
  broken("unsupported version", "schema", null, /must be 2/, (p) => {
    Object.assign(p, { version: 3 });
  }),

  broken(
    "buffer missing on a rank that uses it",
    "stages",
    null,
    /rank 1 does not have it/,
    (p) => {
      const { bytes } = p.buffers.sent!;
      Object.assign(p.buffers.sent!, {
        bytes: { every: 1, runs: [[1, bytes], [1, 0]] },
      });
    },
  ),

  // Mesh, ranks, references.
  broken(
    "mesh size that differs from the rank count",
    "mesh",
    null,
    /3 ranks/,
    (p) => {
      p.mesh[0]!.size = 3;
    },
  ),
  broken("unused mesh axis", "mesh", null, /mesh axis 'tp'.*nothing/, (p) => {
    p.mesh.push({ name: "tp", size: 2 });
    p.ranks = 4;
  }),
  broken(
    "segment count that is not a power of two",
    "numerics",
    null,
    /up to 6 seg/,
    (p) => {
      Object.assign(p.numerics, { segments: 6 });
    },
  ),
  broken("unknown numerics class", "schema", null, /exact/, (p) => {
    Object.assign(p.numerics, { class: "loose" });
  }),
  broken("two mesh axes with one name", "mesh", null, /named 'ep'/, (p) => {
    p.mesh.push({ name: "ep", size: 1 });
  }),
  broken(
    "bytes for three ranks on two",
    "ranks",
    null,
    /given for 3 ranks of 2/,
    (p) => {
      p.buffers.sent!.bytes = { every: 1, runs: [[1, 4], [2, 8]] };
    },
  ),
  broken(
    "data for three ranks on two",
    "ranks",
    null,
    /'groupRank@ep'.* 3 ranks/,
    (p) => {
      p.buffers["groupRank@ep"]!.data = { every: 1, lists: [[0], [1], [2]] };
    },
  ),
  broken(
    "group rank over an unknown mesh axis",
    "references",
    null,
    /'ghost'/,
    (p) => {
      p.buffers["groupRank@ep"]!.data = { groupRank: ["ghost"] };
    },
  ),
  broken("stage that does not exist", "ranks", DOWN, /on ep 0 2/, (p) => {
    steps(p)[DOWN]!.ranks = { ep: [0, 2] };
  }),
  broken("unknown buffer", "references", DOWN, /no such buffer/, (p) => {
    const { bindings } = launch(p, DOWN);
    bindings[Object.keys(bindings)[0]!] = "nowhere";
  }),
  broken("unknown kernel", "references", DOWN, /no such kernel/, (p) => {
    launch(p, DOWN).kernel = "constructor";
  }),
  broken("unknown mesh axis", "references", EXCHANGE, /'xp'/, (p) => {
    exchange(p, EXCHANGE).over = ["xp"];
  }),
  broken("unknown dynamic axis", "references", DOWN, /'tokn'/, (p) => {
    launch(p, DOWN).workgroups[1] = { count: "tokn" };
  }),

  // Placement, axes, ports.
  broken("expert on two ranks", "placement", null, /exactly once/, (p) => {
    p.axes["expert/ep"]!.table = [[0, 1], [0, 3]];
  }),
  broken("axis without counts", "placement", null, /not counted/, (p) => {
    const size = { count: "token/ep" };
    p.counts = ["other"];
    p.axes.other = { size: 4, dynamic: true };
    p.programs[0]!.steps = JSON.parse(
      JSON.stringify(steps(p)).replaceAll(
        JSON.stringify(size),
        JSON.stringify({ count: "other" }),
      ).replaceAll('"count":"token/ep"', '"count":"other"'),
    );
  }),
  broken("buffer with a shorter axis", "axes", null, /axis 'embed'/, (p) => {
    p.buffers.sent!.axes[1]!.size = 8;
  }),
  broken("port with swapped axes", "ports", null, /'embed token'/, (p) => {
    p.programs[0]!.inputs.x!.axes = ["embed", "token"];
  }),
  broken("port on scratch", "ports", null, /kind 'scratch'/, (p) => {
    p.programs[0]!.inputs.x!.buffer = "sent";
  }),
  broken("bound on a float", "ports", null, /only integer/, (p) => {
    p.programs[0]!.inputs.x!.below = 4;
  }),

  // Memory.
  broken("wrong bytes", "bytes", null, /'sent'/, (p) => {
    p.buffers.sent!.bytes = 64;
  }),
  broken("allocation too small", "bytes", null, /allocation \d+ has 8/, (p) => {
    p.allocations[p.buffers.sent!.allocation]!.bytes = 8;
  }),
  broken("offset not aligned", "bytes", null, /no multiple of 256/, (p) => {
    p.buffers.sendRow!.offset += 4;
  }),
  broken("offset outside", "bytes", null, /at 1048576 on rank 0/, (p) => {
    p.buffers.sendRow!.offset = 1048576;
  }),
  broken(
    "row stride shorter than a row",
    "bytes",
    null,
    /row stride 7/,
    (p) => {
      p.buffers.router!.rowStride = 7;
    },
  ),
  broken("wrong peak", "peak", null, /rank 0/, (p) => {
    p.peakBytes = Number(p.peakBytes) - 4;
  }),
  broken("wrong staging", "staging", null, /host staging/, (p) => {
    p.staging.host = 4;
  }),
  broken("buffer above the limit", "limits", null, /maxBufferSize/, (p) => {
    p.requiredLimits.maxBufferSize = 1024;
  }),
  broken("binding above the limit", "limits", LOGITS, /'router'|'x'/, (p) => {
    p.requiredLimits.maxStorageBufferBindingSize = 64;
  }),
  broken(
    "buffer longer than kernels can index",
    "limits",
    LOGITS,
    /index at most/,
    (p) => {
      p.requiredLimits.maxStorageBufferBindingSize = 2 ** 40;
      p.buffers.router!.bytes = 2 ** 34;
    },
  ),
  broken("too many bindings", "limits", null, /ShaderStage/, (p) => {
    p.requiredLimits.maxStorageBuffersPerShaderStage = 3;
  }),
  broken("too many workgroups", "limits", DOWN, /PerDimension/, (p) => {
    launch(p, DOWN).workgroups[2] = { mul: [65536, { count: "token" }] };
  }),
  broken("workgroup too large", "limits", null, /WorkgroupSizeX/, (p) => {
    const kernel = kernelOf(p, DOWN);
    kernel.tree.workgroupSize = 512;
  }),
  broken("unknown limit", "limits", null, /'maxLuck'/, (p) => {
    p.requiredLimits.maxLuck = 1;
  }),
  broken("unknown feature", "limits", null, /'warp-drive'/, (p) => {
    p.requiredFeatures.push("warp-drive");
  }),
  broken("constant with too few elements", "contents", null, /given 0/, (p) => {
    p.buffers["groupRank@ep"]!.data = { every: 1, lists: [[0], []] };
  }),
  broken("data in a scratch buffer", "contents", null, /'sent'/, (p) => {
    p.buffers.sent!.data = { all: [1] };
  }),

  // Weights.
  broken("weight not filled", "weights", null, /0 weights fill/, (p) => {
    p.weights.pop();
  }),
  broken("weight filled twice", "weights", null, /2 weights fill/, (p) => {
    p.weights.push(p.weights[0]!);
  }),
  broken("weight of wrong shape", "weights", null, /'embed' has 15/, (p) => {
    const weight = p.weights[0]!;
    weight.shape[weight.axes.indexOf("embed")] = 15;
  }),
  broken("weight of wrong dtype", "weights", null, /bf16/, (p) => {
    p.weights[0]!.stored = "bf16";
  }),
  broken("sharded axis with its global size", "axes", null, /in parts/, (p) => {
    const { buffer } = p.weights.at(-1)!;
    p.buffers[buffer]!.axes[0]!.size = 8;
  }),
  broken(
    "stacked experts without an expert in the name",
    "weights",
    null,
    /name does not say/,
    (p) => {
      p.weights.at(-1)!.source = "experts";
    },
  ),
];
