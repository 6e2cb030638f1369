/** Training: steps of one plan on text, and checkpoints that can be resumed exactly. */

export {
  runTraining,
  type RunTrainingOptions,
  trainCheckpoint,
  type TrainOptions,
  trainPolicy,
  type TrainPolicyOptions,
} from "./train.ts";
export {
  planRollouts,
  planTraining,
  type PlanTrainingOptions,
} from "./plan.ts";
export { readTraining, type TrainingState } from "./saved.ts";
export type {
  PolicySettings,
  SavedSettings,
  StepSettings,
  TrainSettings,
} from "./settings.ts";
export type { PolicyMetrics } from "./policy_metrics.ts";
export type { PolicyPrompt, Reward } from "./policy_rollouts.ts";
export type { PolicyOptions } from "./policy_task.ts";
export type { StepMetrics } from "./step.ts";
export type { TextOptions } from "./checkpoint_task.ts";
export type { Text } from "./text.ts";
export type { TrainOn } from "./assistant_text.ts";
export {
  type ChatFile,
  type ChatReport,
  type Chats,
  openChats,
  type OpenChatsOptions,
} from "./chats.ts";
export { chatSteps } from "./sources.ts";
