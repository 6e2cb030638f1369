// Switch block compared with recorded runs of transformers: outputs, losses and dropped tokens, on one rank and on
// several.
// needs: cpu, gpu
// rotates with: compiler/graph/routing, compiler/kernels/routing/router, compiler/kernels/routing/capacity.ts
import t from "tap";
import { compile } from "../../compiler/mod.ts";
import { type SwitchBlock, switchBlock } from "../helpers/switch_block.ts";
import { openSafetensors } from "../../runtime/mod.ts";
import { relativeError } from "../helpers/checkpoints.ts";
import { gpuIsSoftware } from "../helpers/needs.ts";
import { oneInTurn } from "../helpers/seed.ts";
import { readJson, readTensors } from "../helpers/read_tensors.ts";
import {
  bytesOf,
  f32,
  fileSource,
  openSession,
  TARGETS,
  type Tensors,
} from "../helpers/sessions.ts";

interface Recorded {
  readonly name: string;
  readonly batch: number;
  readonly seq: number;
  readonly d_model: number;
  readonly d_ff: number;
  readonly num_experts: number;
  readonly expert_capacity: number;
  readonly router_bias: boolean;
  readonly dropped_tokens: number;
}

const CASES = readJson("switch/cases.json") as unknown as readonly Recorded[];

function blockOf(recorded: Recorded): SwitchBlock {
  return {
    sequences: recorded.batch,
    tokens: recorded.seq,
    embed: recorded.d_model,
    ffn: recorded.d_ff,
    experts: recorded.num_experts,
    capacity: recorded.expert_capacity,
    routerBias: recorded.router_bias,
  };
}

const RANKS = [1, 2, 3, 4];

for (const recorded of CASES) {
  for (const { target, skip } of TARGETS) {
    t.test(`${recorded.name}, on the ${target}`, { skip }, async (t) => {
      const file = `switch/${recorded.name}.safetensors`;
      const wanted = readTensors(file);
      // The file names weights `weight.` plus the block's name.
      const tensors = await openSafetensors([
        fileSource(`test/references/${file}`),
      ]);
      const weights = new Map([...tensors].map(([name, entry]) => [
        ...[name.replace(/^weight\./, ""), entry] as const,
      ]));
      const block = blockOf(recorded);
      const shape = [block.sequences, block.tokens, block.embed];
      let bits: string | undefined;
      const isSlow = target === "gpu" && gpuIsSoftware;
      for (const ep of isSlow ? oneInTurn(RANKS) : RANKS) {
        const plan = await compile(switchBlock(block), { mesh: { ep } });
        const session = await openSession(plan, { target, tensors: weights });
        const outputs: Tensors = await session.run("main", {
          input: f32(shape, wanted["input"]!),
        });
        const { output, router_logits, router_mask, expert_index } = outputs;
        t.ok(relativeError(output!.data, wanted["output"]!) < 1e-5, "output");
        t.ok(
          relativeError(router_logits!.data, wanted["router_logits"]!) < 1e-5,
          "logits",
        );
        for (const loss of ["z_loss", "aux_loss"]) {
          const [found, expected] = [
            outputs[loss]!.data[0]!,
            wanted[loss]![0]!,
          ];
          t.ok(
            Math.abs(found - expected) <= 2e-6 * Math.max(1, expected),
            `${loss}: ${found}, ${expected}`,
          );
        }
        t.strictSame([...router_mask!.data], wanted["router_mask"], "mask");
        t.strictSame([...expert_index!.data], wanted["expert_index"], "index");
        const kept = Array.from(router_mask!.data).filter((x) => x === 1);
        t.equal(
          block.sequences * block.tokens - kept.length,
          recorded.dropped_tokens,
          "dropped tokens",
        );
        bits ??= bytesOf(outputs);
        t.equal(bytesOf(outputs), bits, `the bits of one rank, ep=${ep}`);
        session.close();
      }
    });
  }
}
