/** Pictures of a plan as figures, figures as SVG, and a page of all pictures. */

export {
  type LayerChoices,
  livePageHtml,
  type PageAssets,
  type PageData,
  type PageDiff,
  pageHtml,
  type ServedData,
  type TraceEvent,
} from "./page_data.ts";
export type { LiveEvents } from "./live.ts";
export { DARK, LIGHT, type Palette } from "./palette.ts";
export { PICTURE_NAMES, type PictureName } from "./pictures/names.ts";
export { type AnswerToken, answerTokens } from "./served_answer.ts";
export { PICTURES } from "./pictures/pictures.ts";
export { loadOverSteps } from "./pictures/load.ts";
export { lossPicture } from "./pictures/loss.ts";
export { type PlanView, viewPlan } from "./plan_view.ts";
export {
  type Figure,
  figureSvg,
  type Shape,
  type Text,
} from "./pictures/figure.ts";
export { type SearchResult, strategyText } from "./search_result.ts";
export { type Side, sideBySide } from "./side_by_side.ts";
export { speedPicture } from "./pictures/speed.ts";
export { meshText } from "./tracks.ts";
export { sentPerToken } from "./traffic.ts";
