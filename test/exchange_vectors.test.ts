/** Exchanges and regrouping, against values of MaxText's and torchtitan's tests. */
// needs: cpu, gpu

import t from "tap";
import {
  elementwiseGrid,
  regroup,
  regroupGrid,
} from "../compiler/kernels/mod.ts";
import { combine, compile, dispatch, model, route } from "../compiler/mod.ts";
import { blocksOf } from "../spec/plan/bytes.ts";
import { gatherRows } from "../spec/local/gather_rows.ts";
import { readJson } from "./helpers/read_tensors.ts";
import { testKernels, workgroups } from "./helpers/run_kernel.ts";

const { goldens } = readJson("routing/vectors.json") as unknown as {
  readonly goldens: {
    /** Numbers of rows from each shard to each other. */
    readonly maxtext_all_to_all_sharded: {
      readonly group_sizes: readonly (readonly number[])[];
      readonly input_offsets: readonly (readonly number[])[];
      readonly send_sizes: readonly (readonly number[])[];
      readonly output_offsets: readonly (readonly number[])[];
      readonly recv_sizes: readonly (readonly number[])[];
    };
    /** Rows of each shard, sent to all. */
    readonly maxtext_all_to_all_unsharded: {
      readonly group_sizes: readonly number[];
      readonly input_offsets: readonly number[];
      readonly send_sizes: readonly (readonly number[])[];
      readonly output_offsets: readonly (readonly number[])[];
      readonly recv_sizes: readonly number[];
    };
    /** Max rows that a shard receives for `local` choices per shard; a factor of -1 is the worst case. */
    readonly maxtext_ragged_buffer: readonly {
      readonly local: number;
      readonly ep: number;
      readonly k: number;
      readonly E: number;
      readonly factor: number;
      readonly out: number;
    }[];
    /** Rows of each local expert by rank, and the order by expert. */
    readonly torchtitan_permute: readonly {
      readonly counts: readonly number[];
      readonly ranks: number;
      readonly out: readonly number[];
      readonly per_expert: readonly number[];
    }[];
  };
};

t.test("blocksOf() sends the blocks of MaxText's ragged all-to-all", (t) => {
  const golden = goldens.maxtext_all_to_all_sharded;
  const counts = golden.group_sizes;
  const splits = [...counts.keys(), counts.length];
  const blocks = counts.map((_, groupRank) =>
    blocksOf(counts, { splits, direction: "forward" }, { groupRank })
  );
  const column = <K extends "offset" | "count">(key: K) => ({
    send: blocks.map(({ send }) => send.map((block) => block[key])),
    receive: blocks.map(({ receive }) => receive.map((block) => block[key])),
  });
  t.same(column("offset").send, golden.input_offsets);
  t.same(column("count").send, golden.send_sizes);
  t.same(column("count").receive, golden.recv_sizes);
  // MaxText stores the destination offset of a block at its sender.
  const there = counts.map((_, from) =>
    counts.map((_, to) => column("offset").receive[to]![from])
  );
  t.same(there, golden.output_offsets);
  t.end();
});

testKernels(
  "gatherRows() gathers like MaxText's exchange of an unsharded batch",
  async (t, target) => {
    const golden = goldens.maxtext_all_to_all_unsharded;
    const counts = golden.group_sizes;
    // A row is a number that identifies its shard and index.
    const sources = counts.map((count, s) =>
      Uint32Array.from({ length: count }, (_, i) => 100 * (s + 1) + i)
    );
    const total = golden.recv_sizes.reduce((a, b) => a + b);
    const { dst } = await target.run(
      gatherRows({ name: "gather", rowWords: 1, sources: [0, 1, 2, 3] }),
      {
        counts: Uint32Array.from(counts),
        ...Object.fromEntries(sources.map((rows, s) => [`src${s}`, rows])),
        dst: new Uint32Array(total),
      },
      workgroups(elementwiseGrid(total)),
    );
    const wanted = new Uint32Array(total);
    sources.forEach((rows, from) => {
      const offsets = golden.output_offsets[from]!;
      offsets.forEach((offset, to) => {
        const first = golden.input_offsets[from]!;
        const sent = rows.slice(first, first + golden.send_sizes[from]![to]!);
        // All shards receive the same rows, so one result is checked.
        wanted.set(sent, offset);
        t.equal(sent.length, golden.recv_sizes[from], `${from} to ${to}`);
      });
    });
    t.same([...dst!], [...wanted]);
  },
);

t.test("a rank has capacity for MaxText's worst case", async (t) => {
  const worst = goldens.maxtext_ragged_buffer.filter(({ factor }) =>
    factor === -1
  );
  t.equal(worst.length, 2);
  for (const { local, ep, k, E, out } of worst) {
    const token = local / k * ep;
    const layer = model({ token, expert: E, embed: 1 }, (m) => {
      const logits = m.input("logits", "token expert");
      const routing = route(logits, {
        over: "expert",
        topK: k,
        preset: "mixtral",
      });
      const sent = dispatch(m.input("x", "token embed"), routing);
      return { y: combine(sent, routing) };
    });
    const plan = await compile(layer, { mesh: { ep } });
    const rows = Object.values(plan.buffers).flatMap(({ name, axes }) =>
      /^rowOf/.test(name) ? axes.map(({ size }) => size) : []
    );
    t.same(rows, [out], `${ep} shards`);
  }
});

testKernels("regroup() orders rows as torchtitan does", async (t, target) => {
  for (const golden of goldens.torchtitan_permute) {
    const { counts, ranks, out, per_expert } = golden;
    const own = counts.length / ranks;
    const columns = own * ranks;
    // Counts of the other ranks' experts are 0: only this rank's rows matter.
    const all = Uint32Array.from({ length: ranks * columns }, (_, i) => {
      const [rank, column] = [Math.floor(i / columns), i % columns];
      return column < own ? counts[rank * own + column]! : 0;
    });
    const splits = Array.from({ length: ranks + 1 }, (_, rank) => rank * own);
    const rows = out.length;
    const result = await target.run(
      regroup({ name: "regroup", splits, tileRows: 4 }),
      {
        counts: all,
        groupRank: Uint32Array.of(0),
        tiles: new Uint32Array(1 + 3 * (rows + own)),
        rowOf: new Uint32Array(rows),
        expertOf: new Uint32Array(rows),
        rowCount: new Uint32Array(1),
      },
      workgroups(regroupGrid(rows)),
    );
    t.same([...result["rowOf"]!], out, `${counts} of ${ranks} ranks`);
    const found = per_expert.map((_, e) =>
      [...result["expertOf"]!].filter((of) => of === e).length
    );
    t.same(found, per_expert, "rows of each expert");
  }
});
