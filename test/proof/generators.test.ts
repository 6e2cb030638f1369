// Generators of kernels: every small launch stores all expected elements, each in one invocation, and no others, and
// loads only written elements.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import * as heads from "../helpers/generator_attention.ts";
import * as bytes from "../helpers/generator_bytes.ts";
import * as choices from "../helpers/generator_choices.ts";
import * as dispatch from "../helpers/generator_dispatch.ts";
import * as routing from "../helpers/generator_routing.ts";
import * as sequences from "../helpers/generator_sequences.ts";
import {
  ofContractBatches,
  ofContractMatrices,
} from "../helpers/generator_contractions.ts";
import * as sums from "../helpers/generator_sums.ts";
import { faultsOf, type Launch } from "../helpers/launch_faults.ts";
import { isInTurn } from "../helpers/seed.ts";

/** Launches of each generator, by name. */
const CASES: { readonly [generator: string]: () => Iterable<Launch> } = {
  addParts: sums.ofAddParts,
  assign: dispatch.ofAssign,
  assignFew: dispatch.ofAssignFew,
  attention: heads.ofAttention,
  attentionMatrices: heads.ofAttentionMatrices,
  attentionMerge: heads.ofAttentionMerge,
  attentionParts: heads.ofAttentionParts,
  attentionResult: heads.ofAttentionResult,
  attentionSum: heads.ofAttentionSum,
  combine: dispatch.ofCombine,
  combineTranspose: dispatch.ofCombineTranspose,
  compareIds: dispatch.ofCompareIds,
  conv1d: sequences.ofConv1d,
  decodeRows: dispatch.ofDecodeRows,
  encodeRows: dispatch.ofEncodeRows,
  expertOuter: sums.ofExpertOuter,
  keep: routing.ofKeep,
  keyGrad: heads.ofKeyGrad,
  linearRecurrence: sequences.ofLinearRecurrence,
  listRows: dispatch.ofListRows,
  mark: routing.ofMark,
  marks: routing.ofMarks,
  matmul: sums.ofMatmul,
  matmulBytes: bytes.ofMatmulBytes,
  matmulCombined: choices.ofMatmulCombined,
  contractBatches: ofContractBatches,
  contractMatrices: ofContractMatrices,
  matmulMatrices: sums.ofMatmulMatrices,
  matmulOfChoices: choices.ofMatmulOfChoices,
  mergeContract: heads.ofMergeContract,
  mergeRuns: routing.ofMergeRuns,
  moveRows: dispatch.ofMoveRows,
  nodeCounts: dispatch.ofNodeCounts,
  permute: dispatch.ofPermute,
  permuteOne: dispatch.ofPermuteOne,
  quantize: bytes.ofQuantize,
  queryGrad: heads.ofQueryGrad,
  reduce: sums.ofReduce,
  reduceInTeams: sums.ofReduceInTeams,
  regroup: dispatch.ofRegroup,
  rmsNorm: sums.ofRmsNorm,
  roundRows: dispatch.ofRoundRows,
  router: routing.ofRouter,
  routerByLanes: routing.ofRouterByLanes,
  rowStarts: sums.ofRowStarts,
  sendIds: dispatch.ofSendIds,
  scoreBlocks: heads.ofScoreBlocks,
  scoreKeys: heads.ofScoreKeys,
  segmentSum: sums.ofSegmentSum,
  selectKeys: heads.ofSelectKeys,
  shift: sequences.ofShift,
  slots: routing.ofSlots,
  softmax: sums.ofSoftmax,
  sortRuns: routing.ofSortRuns,
  topK: sums.ofTopK,
  topKPart: sums.ofTopKPart,
};

t.test("every generator of compiler/kernels has cases", (t) => {
  const folder = path.join(import.meta.dirname, "../../compiler/kernels");
  const found = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .flatMap((file) => {
      const text = readFileSync(path.join(folder, file), "utf8");
      return [
        ...text.matchAll(/^export function (\w+)\((?:(?!\): )[^])*\): (\S+)/gm),
      ]
        .filter(([, , type]) => type === "Kernel")
        .map(([, generator]) => generator!);
    });
  t.strictSame(found.sort(), Object.keys(CASES).sort());
  t.end();
});

for (const [generator, cases] of Object.entries(CASES)) {
  t.test(`${generator}() stores each element once`, (t) => {
    let launches = 0;
    for (const launch of cases()) {
      if (!isInTurn(launches++, 6)) continue;
      const faults = faultsOf(launch);
      if (faults.length === 0) continue;
      const { kernel: _, ...rest } = launch;
      t.fail(faults.join("; "), { launch: JSON.stringify(rest) });
      break;
    }
    t.ok(launches > 3, `${launches} launches`);
    t.end();
  });
}
