/** One color per meaning, in every picture: roles of work, kinds of memory, and the background. */

/** The meaning of a color. `ink` and `soft`: text on the background. `deep`: text on a strong color. */
export type Ink =
  | "ink"
  | "soft"
  | "deep"
  | "line"
  | "paper"
  | "card"
  | "attention"
  | "router"
  | "dispatch"
  | "experts"
  | "combine"
  | "dense"
  | "update"
  | "weights"
  | "state"
  | "scratch"
  | "staging";

/** A color for each meaning. The hues are those of Okabe and Ito, which colour-blind readers can distinguish. */
export type Palette = { readonly [I in Ink]: string };

/** Colors on a white background. */
export const LIGHT: Palette = {
  ink: "#1d2433",
  soft: "#5b6372",
  deep: "#1d2433",
  line: "#d9d6cd",
  paper: "#fbfaf7",
  card: "#ffffff",
  attention: "#0072b2",
  router: "#a8508c",
  dispatch: "#e08e0b",
  experts: "#009e73",
  combine: "#c4470f",
  dense: "#6b7587",
  update: "#8a7a3c",
  weights: "#009e73",
  state: "#0072b2",
  scratch: "#e08e0b",
  staging: "#8a93a3",
};

/** Colors on a black background. */
export const DARK: Palette = {
  ink: "#e8e6e1",
  soft: "#a3abb8",
  deep: "#14171d",
  line: "#343b47",
  paper: "#14171d",
  card: "#1b2028",
  attention: "#56b4e9",
  router: "#d98fc0",
  dispatch: "#f0b440",
  experts: "#2fc39c",
  combine: "#f08454",
  dense: "#95a0b0",
  update: "#c8b66a",
  weights: "#2fc39c",
  state: "#56b4e9",
  scratch: "#f0b440",
  staging: "#6f7988",
};

/** Returns the colors as style sheet properties: `--ink: #1d2433; …` */
export function paletteStyle(palette: Palette): string {
  return Object.entries(palette).map(([ink, color]) => `--${ink}: ${color};`)
    .join(" ");
}
