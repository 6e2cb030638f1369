/**
 * Building blocks of model families: `defineFamily`, fields of config.json, and blocks of decoders in the model
 * language. A family imports the language from `switchyard-moe` and the building blocks from this module,
 * `switchyard-moe/models`.
 */

export {
  defineFamily,
  type Family,
  type FamilyDefinition,
  isFamily,
  type PublishedModel,
} from "./family.ts";
export {
  attendHeads,
  attendWritten,
  type AttentionScope,
  type GroupedAxes,
  groupedAxes,
  type Heads,
  normAllHeads,
  normHeads,
  project,
  projectHeads,
  type Projections,
  rotate,
  splitHeads,
  type Written,
} from "./attention.ts";
export {
  type DecoderDefaults,
  type DecoderFields,
  decoderFields,
  type FieldNames,
  type GroupedDecoder,
  type GroupedDefaults,
  groupedFields,
} from "./common_config.ts";
export {
  anyField,
  type Balance,
  booleanField,
  type Bounds,
  choiceField,
  type Config,
  type DecoderOptions,
  fieldError,
  type Fields,
  fixedWindowField,
  groupEnds,
  ignoreFields,
  innerConfig,
  integerField,
  integersField,
  layersWhere,
  layerTypes,
  numbersField,
  objectField,
  type Objective,
  type ObjectiveScope,
  optionalField,
  optionalIntegerField,
  positiveField,
  requireAbsent,
  requireField,
  requireLayerTypes,
  requireMultiple,
  slidingLayers,
  textConfig,
  windowField,
} from "./config.ts";
export {
  attendCompressed,
  type CompressedAttention,
  compressedAxes,
  type Compression,
} from "./compressed_attention.ts";
export {
  closeStreams,
  connect,
  hyperAxes,
  type HyperConnections,
  openStreams,
  type Streams,
} from "./hyper_connections.ts";
export {
  type Decoder,
  type DecoderAxis,
  type DecoderBlocks,
  decoderModel,
  type DecoderNames,
  type DecoderScope,
  type Layer,
  type LayerKind,
  type Layers,
  type Part,
  type Rows,
  type Start,
  times,
  WRAPPED,
  WRAPPED_CAUSAL,
} from "./decoder.ts";
export {
  type DeltaNet,
  deltaNet,
  deltaNetFields,
  projectFlat,
  projectGrouped,
  projectSplit,
} from "./delta_net.ts";
export {
  type ExpertNames,
  experts,
  fusedExperts,
  fusedMlp,
  type Glu,
  limitedGlu,
  mlp,
  NUMBERED,
  routeLayer,
  type RouterOptions,
  sparseOrDense,
  type TokenRouting,
} from "./feed_forward.ts";
export {
  type Indexer,
  indexerFields,
  selectByIndexer,
  type Selected,
} from "./indexer.ts";
export {
  addStart,
  mixStarts,
  pickStarts,
  residualAxes,
  type ResidualAxis,
  type Starts,
} from "./attention_residuals.ts";
export {
  type KimiDelta,
  kimiDeltaAttention,
  kimiDeltaFields,
  readDecayLimit,
  type StoredDecays,
} from "./kimi_delta_attention.ts";
export {
  attendLatent,
  type LatentAxes,
  latentAxes,
  type LatentBlock,
  type LatentDefaults,
  type LatentFields,
  latentFields,
} from "./latent_attention.ts";
export {
  nextLayer,
  type Predictor,
  predictorModule,
} from "./multi_token_prediction.ts";
export { checkMamba, type Mamba, mamba } from "./mamba.ts";
export { plainNorm } from "./norms.ts";
export { type Routed } from "./losses.ts";
export {
  convolutionAxes,
  type ConvolutionAxis,
  convolve,
} from "./recurrence.ts";
export {
  feedShared,
  predictorTensors,
  type RouterNames,
  routeShared,
  type SharedExpertDefaults,
  type SharedExperts,
  sharedExperts,
  type SharedFieldNames,
  type SharedNames,
} from "./shared_experts.ts";
export { layerRotary, readRotary, ropeScaling, type Rotary } from "./rotary.ts";
export { type Temperature, temperature } from "./temperature.ts";
export {
  grpo,
  type GrpoOptions,
  meanOf,
  type PolicyLoss,
  type PolicyTokens,
  type TokenValues,
} from "./policy.ts";
