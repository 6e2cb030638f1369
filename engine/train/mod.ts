/** Training: steps of one plan on text, and checkpoints from which a run goes on as if it had not been stopped. */

export { type StepMetrics, train, type TrainOptions } from "./train.ts";
export { readTraining, type TrainingState } from "./saved.ts";
export {
  adamW,
  rateAt,
  type Schedule,
  sgd,
  type TrainSettings,
} from "./settings.ts";
