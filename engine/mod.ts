/** The engine: loads a target, compiles, verifies, runs and generates. Files are passed in. */

export type { CacheDType } from "../compiler/mod.ts";
export { type Need } from "./bounds.ts";
export {
  checkTarget,
  type Diagnostic,
  familyOf,
  type FamilyReference,
  formatDiagnostic,
  formatError,
  loadReward,
  loadTarget,
  type LoadTargetOptions,
  loadTrainable,
  loadTrainedFile,
  loadTrainingFile,
  openCheckFile,
  parseReference,
} from "./check.ts";
export {
  type ChatMessage,
  type ChatTemplate,
  openChatTemplate,
} from "./checkpoint/chat.ts";
export {
  type Checkpoint,
  openCheckpoint,
  openGrammars,
  openTokenizer,
} from "./checkpoint/checkpoint.ts";
export {
  Decoder,
  type DecoderShape,
  decoderShape,
} from "./generation/decoder.ts";
export type { Companion } from "./companions.ts";
export {
  type AdapterChoice,
  chooseAdapter,
  type ChosenAdapter,
  type DeviceSharing,
  type SelectDevicesOptions,
} from "./devices.ts";
export { type FileSystem, type OpenFile } from "./files.ts";
export { Batch, type BatchStep } from "./generation/batch.ts";
export type {
  BatchSequence,
  Ending,
  SequenceOptions,
} from "./generation/sequence.ts";
export {
  generate,
  type Generated,
  type GeneratedSequence,
  type GenerateOptions,
} from "./generation/generate.ts";
export { hashCheckpoint } from "./generation/receipt/checkpoint_hashes.ts";
export {
  readReceipt,
  type Receipt,
  receiptOf,
  receiptPlan,
} from "./generation/receipt/receipt.ts";
export {
  checkpointDifferences,
  replaySequences,
  TOGETHER,
} from "./generation/receipt/replay.ts";
export { modelDrafter } from "./generation/speculation/draft_model.ts";
export { lookupDrafter } from "./generation/speculation/lookup.ts";
export {
  type Predicting,
  predictingDrafter,
} from "./generation/speculation/predictor.ts";
export { predictorCompanion } from "./generation/predictor.ts";
export {
  type Drafter,
  Speculation,
  type SpeculationStats,
} from "./generation/speculation/speculation.ts";
export {
  generateText,
  type GenerateTextOptions,
} from "./generation/generate_text.ts";
export { type LoadedModel, openModel } from "./model.ts";
export {
  type Opened,
  type OpenOptions,
  openTarget,
  type PlanOptions,
  planTarget,
  tuneTarget,
} from "./open.ts";
export {
  type Encoded,
  type Encoder,
  type EncodeTask,
} from "./quantize/encode.ts";
export { type Importance } from "./quantize/gguf_file.ts";
export {
  measureImportance,
  type MeasureImportanceOptions,
} from "./quantize/importance.ts";
export {
  quantizeCheckpoint,
  type Quantized,
  type QuantizeOptions,
} from "./quantize/mod.ts";
export {
  QUANTIZE_TARGETS,
  type QuantizeTargetName,
  type Rule,
} from "../spec/weights/quantize_targets.ts";
export { randomBatch, randomInputs, randomWeightParts } from "./random.ts";
export {
  keepTuning,
  readTunings,
  type SavedTunings,
  type Tuned,
  type TuneOptions,
} from "./tune/mod.ts";
export { given } from "./given.ts";
export { joinJob, RankCountError } from "./job.ts";
export { type Layers, layersOf } from "../spec/plan/layers.ts";
export {
  type ClaimedResults,
  type CurvePoint,
  type ExpertLoad,
  type Found,
  helpSearch,
  knownOf,
  type MachineMeter,
  type MeasureMachineOptions,
  meshName,
  meshOf as replicaMesh,
  type Objective,
  openMachineMeter,
  planSummary,
  recordedLoad,
  search,
  SEARCH_NUMERICS,
  type SearchBatch,
  type Searched,
  type SearchHelper,
  type SearchPhase,
  type SearchTask,
  type Summarized,
  summarizeTarget,
  type SummarizeTargetOptions,
  type SummaryOptions,
  trainedDType,
} from "./planner/mod.ts";
export {
  type ChatFile,
  type ChatReport,
  type Chats,
  chatSteps,
  openChats,
  type OpenChatsOptions,
  planRollouts,
  planTraining,
  type PlanTrainingOptions,
  type PolicyMetrics,
  type PolicyOptions,
  type PolicyPrompt,
  type PolicySettings,
  readTraining,
  type Reward,
  runTraining,
  type RunTrainingOptions,
  type SavedSettings,
  type StepMetrics,
  type StepSettings,
  type Text,
  type TextOptions,
  trainCheckpoint,
  type TrainingState,
  type TrainOn,
  type TrainOptions,
  trainPolicy,
  type TrainPolicyOptions,
  type TrainSettings,
} from "./train/mod.ts";
export {
  adamw,
  isTraining,
  rateAt,
  type Schedule,
  sgd,
  type TrainedDType,
  type Training,
} from "../compiler/mod.ts";
export { type LoraSettings, mergeLora, type MergeOptions } from "./lora/mod.ts";
export { type Family, isFamily } from "../models/mod.ts";
export { VERSION } from "./version.ts";
export {
  gumbelNoise,
  type NoiseOptions,
  uniformNoise,
  type UniformOptions,
} from "./noise.ts";
export { packPrompts } from "./generation/packing.ts";
export { PageTable } from "./generation/pages.ts";
export {
  type Dropped,
  needOf,
  readBatch,
  runOpened,
  type RunOptions,
  takeDropped,
  type Tensors,
} from "./run.ts";
export {
  compareRouters,
  type CompareRoutersOptions,
  readLogits,
  type RouterComparison,
  type RouterLogits,
  type RouterRow,
} from "./routers.ts";
export {
  type Candidates,
  candidatesOf,
  greedy,
  type Logprob,
  type Logprobs,
  randomNumbers,
  sample,
  type SamplingOptions,
} from "./generation/sampling.ts";
export { type Mean } from "./score/mean.ts";
export {
  type Comparison,
  perplexityOf,
  type Score,
  type ScoredModel,
  type ScoreOptions,
  scoreTexts,
} from "./score/score.ts";
export { StopText } from "./generation/stop_text.ts";
export { type Target } from "./target.ts";
export { readTensors } from "./checkpoint/tensors.ts";
export { readInputs } from "./inputs.ts";
export { CHOICES } from "./replay.ts";
export {
  type Grammars,
  type GrammarSource,
  schemaGrammar,
  type TokenGrammar,
} from "./text/grammar.ts";
export { TextStream, type Tokenizer } from "./text/tokenizer.ts";
export {
  type AdapterSystemInfo,
  type GpuAdapter,
  type HostTensor,
  listAdapters,
  type Progress,
  type RankStatistics,
  type RankTimes,
  rankTimes,
  type Streaming,
  type Trace,
  Tracer,
  withoutAdapter,
  writeSafetensors,
} from "../runtime/mod.ts";
export {
  DEADLINE_MS,
  PeerError,
  type RankIdentity,
  rankIdentity,
  requireKoffi,
  type WorldOptions,
} from "../runtime/mpi/mod.ts";
export { CPU_LIMITS } from "../runtime/cpu/mod.ts";
export { NATIVE_LIMITS, nativeCompiler } from "../runtime/native/mod.ts";
