// `run --replay`: repeats the expert choices recorded by another run.
// needs: cpu
// rotates with: engine/replay.ts
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { checkpointFolder, readReference } from "./helpers/checkpoints.ts";
import {
  integers,
  type RawTensor,
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const folder = temporaryFolder(t);
const at = (name: string) => path.join(folder, `${name}.safetensors`);

const { "p0.input_ids": first, "p1.input_ids": second } = await readReference(
  "mixtral-6e",
);
/** Two prompts of unequal lengths: the second row ends with padding. */
const [rows, columns] = [2, Math.max(first!.data.length, second!.data.length)];
const prompts = [first!, second!].map(({ data }) => [...data]);
const padded = (of: (id: number | undefined) => number) =>
  integers(
    [rows, columns],
    prompts.flatMap((ids) =>
      Array.from({ length: columns }, (_, i) => of(ids[i]))
    ),
  );
const INPUTS = {
  input_ids: padded((id) => id ?? 0),
  attention_mask: padded((id) => id === undefined ? 0 : 1),
};
await writeRaw(at("inputs"), INPUTS);

function run(checkpoint: string, outputs: string, ...args: string[]) {
  return switchyard([
    ...["run", checkpointFolder(checkpoint), "--adapter", "cpu"],
    ...["--inputs", at("inputs"), "--outputs", at(outputs), ...args],
  ]);
}

const int32 = ({ data }: RawTensor) =>
  new Int32Array(new Uint8Array(data).buffer);

/** Returns a trace in which each choice is the next expert. Padding is unchanged. */
function shifted(
  trace: { readonly [name: string]: RawTensor },
  experts: number,
) {
  return Object.fromEntries(
    Object.entries(trace).filter(([name]) => name.endsWith("topk_idx")).map(
      ([name, tensor]) => [
        name,
        integers(
          tensor.shape,
          [...int32(tensor)].map((e) => e < 0 ? e : (e + 1) % experts),
        ),
      ],
    ),
  );
}

for (
  const { checkpoint, experts } of [
    { checkpoint: "mixtral-6e", experts: 6 },
    // This router has a bias and groups of experts, which replay ignores.
    { checkpoint: "deepseekv3-16e", experts: 16 },
    { checkpoint: "gptoss-8e", experts: 8 },
  ]
) {
  t.test(`${checkpoint} routes by the trace`, async (t) => {
    t.match(await run(checkpoint, "own"), { code: 0, err: "" });
    for (const mesh of ["ep=1", "ep=3", "dp=2,ep=2"]) {
      const again = await run(
        ...[
          checkpoint,
          "again",
          "--replay",
          at("own"),
          "--mesh",
          mesh,
        ] as const,
      );
      t.match(again, { code: 0, err: "" });
      t.ok(
        readFileSync(at("again")).equals(readFileSync(at("own"))),
        `its own choices: the same bytes, ${mesh}`,
      );
    }
    const own = await readRaw(at("own"));
    const other = shifted(own, experts);
    await writeRaw(at("other"), other);
    t.match(await run(checkpoint, "forced", "--replay", at("other")), {
      code: 0,
      err: "",
    });
    const forced = await readRaw(at("forced"));
    for (const [name, tensor] of Object.entries(other)) {
      t.strictSame(int32(forced[name]!), int32(tensor), name);
    }
    t.ok(Object.keys(other).length >= 2, "several routers");
    t.not(
      Buffer.compare(forced["logits"]!.data, own["logits"]!.data),
      0,
      "other logits",
    );
  });
}

t.test("weights are computed from the current logits of the given experts", async (t) => {
  await run("mixtral-6e", "own");
  const own = await readRaw(at("own"));
  // The same experts in another order: only the order of the sum differs.
  const reversed = Object.fromEntries(
    Object.entries(own).filter(([name]) => name.endsWith("topk_idx")).map(
      ([name, tensor]) => {
        const ids = [...int32(tensor)];
        return [name, integers(tensor.shape, ids.map((_, i) => ids[i ^ 1]!))];
      },
    ),
  );
  await writeRaw(at("turned"), reversed);
  t.match(await run("mixtral-6e", "same", "--replay", at("turned")), {
    code: 0,
    err: "",
  });
  const same = await readRaw(at("same"));
  const floats = ({ data }: RawTensor) =>
    new Float32Array(new Uint8Array(data).buffer);
  const [found, wanted] = [floats(same["logits"]!), floats(own["logits"]!)];
  const largest = wanted.reduce((n, x) => Math.max(n, Math.abs(x)), 0);
  const maxError = wanted.reduce(
    (n, x, i) => Math.max(n, Math.abs(x - found[i]!)),
    0,
  );
  t.ok(maxError < 1e-5 * largest, `${maxError} of ${largest}`);
});

t.test("a trace that does not fit is rejected by tensor name", async (t) => {
  await run("mixtral-6e", "own");
  const own = await readRaw(at("own"));
  const name = "layer1.topk_idx";
  const { shape } = own[name]!;
  const refused = async (change: { readonly [name: string]: RawTensor }) => {
    const { [name]: _, ...rest } = own;
    await writeRaw(at("wrong"), { ...rest, ...change });
    const { code, err } = await run(
      ...["mixtral-6e", "none", "--replay", at("wrong")] as const,
    );
    t.equal(code, 1);
    return err.trimEnd();
  };
  t.equal(
    await refused({}),
    `Cannot replay '${name}': the trace has no such tensor. Record it by running the same model`,
  );
  t.equal(
    await refused({
      [name]: integers([rows, columns], new Array(rows * columns).fill(0)),
    }),
    `Cannot replay '${name}': it is I32 [${rows}, ${columns}], and the batch needs I32 [${
      shape.join(", ")
    }]. Record it on the same batch`,
  );
  t.equal(
    await refused({ [name]: own["layer1.router_logits"]! }),
    `Cannot replay '${name}': it is F32 [${rows}, ${columns}, 6], and the batch needs I32 [${
      shape.join(", ")
    }]. Record it on the same batch`,
  );
  const ids = int32(own[name]!);
  ids[(columns + 1) * shape[2]! + 1] = 6;
  t.equal(
    await refused({ [name]: integers(shape, [...ids]) }),
    `Cannot replay '${name}': row 1, column 1, choice 1 is expert 6, and there are 6. Record it by running the same model`,
  );
  ids[(columns + 1) * shape[2]! + 1] = -1;
  t.match(
    await refused({ [name]: integers(shape, [...ids]) }),
    "choice 1 is expert -1, and there are 6",
  );
});

t.test("a model file has its own inputs", async (t) => {
  const layer = path.join(import.meta.dirname, "../examples/layer.ts");
  const { code, err } = await switchyard([
    ...["run", layer, "--inputs", at("inputs"), "--outputs", at("none")],
    ...["--replay", at("inputs")],
  ]);
  t.equal(code, 2);
  t.equal(
    err,
    "Cannot use --replay with a model file: it declares its own inputs. Pass 'choices' to 'route' in the file\n",
  );
});
