/** The language: declares models with named axes and composes them of ops. */

export type { DType } from "../../spec/dtype.ts";
export type {
  Capacity,
  CapacityFactor,
  ExpertGroups,
  RoutingPreset,
  RuleChoices,
} from "../graph/routing/presets.ts";
export { Tensor } from "./tensor.ts";
export type {
  Axis,
  Broadcast,
  Cat,
  Dot,
  Float,
  Renamed,
  Without,
} from "./types.ts";
export {
  type AxisSizes,
  type DeclareOptions,
  isModel,
  type Model,
  model,
  type Outputs,
  type Scope,
  type UpTo,
  upTo,
} from "./model.ts";
export {
  abs,
  add,
  div,
  exp,
  log,
  map,
  maximum,
  minimum,
  mul,
  neg,
  type Scalar,
  sqrt,
  sub,
  tanh,
} from "./arithmetic.ts";
export * from "./activations.ts";
export { clamp, where } from "./choose.ts";
export { layerNorm, type LayerNormOptions } from "./layer_norm.ts";
export { recompute } from "./recompute.ts";
export { dot, einsum } from "./contraction.ts";
export {
  crossEntropy,
  type CrossEntropyOptions,
  type LabelOptions,
  logProbabilities,
} from "./cross_entropy.ts";
export * from "./reduce.ts";
export * from "./shape.ts";
export * from "./attention.ts";
export * from "./position.ts";
export * from "./select_keys.ts";
export * from "./sequences.ts";
export {
  type CapacityPreset,
  type CapacityRouting,
  route,
  type RouteOptions,
  type Routing,
} from "./route.ts";
export { combine, dispatch, type TopK, topK, type TopKOptions } from "./moe.ts";
export {
  balancingLoss,
  type BalancingOptions,
  biasUpdate,
  type BiasUpdateOptions,
  importanceLoss,
  type ImportanceOptions,
  type TokenOptions,
  zLoss,
} from "./losses.ts";
export type { BalancingRule } from "../graph/routing/losses.ts";
